"""Two network namespaces joined by an emulated wide-area link, and loopback in the same terms.

    with wan(WanSettings(rate_mbit=2000, one_way_ms=10, loss_percent=0.01, queue_ms=20)) as net:
        subprocess.Popen([*net.a_prefix, "iperf3", "-s"])
        net.set(rate_mbit=500)

The link is `wanem.c`, compiled when first needed. A kernel without netem will do; two cores carry 1 to 2 Gbit/s well.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

SOURCE = Path(__file__).with_name("wanem.c")
DEVICE = "wan0"
NAMESPACE = "prfaas-wan"
#: Ethernet frames of 1538 bytes on the wire carry 1448 of payload.
GOODPUT_SHARE = 1448 / 1538
_numbers = itertools.count()


class Net(Protocol):
    """Where two ends run and how they reach each other. A prefix goes before an end's argv."""

    @property
    def name(self) -> str: ...
    @property
    def a_prefix(self) -> tuple[str, ...]: ...
    @property
    def b_prefix(self) -> tuple[str, ...]: ...
    @property
    def a_address(self) -> str: ...
    @property
    def b_address(self) -> str: ...
    @property
    def device(self) -> str: ...


@dataclass(frozen=True)
class LoopbackNet:
    """Both ends on 127.0.0.1."""

    name: str = "loopback"
    a_prefix: tuple[str, ...] = ()
    b_prefix: tuple[str, ...] = ()
    a_address: str = "127.0.0.1"
    b_address: str = "127.0.0.1"
    device: str = "lo"


@dataclass(frozen=True)
class Buffers:
    """How far the kernel may grow a socket's buffers."""

    send_max_bytes: int
    receive_max_bytes: int


LARGE = Buffers(64 << 20, 64 << 20)
STOCK = Buffers(4 << 20, 32 << 20)  # what a kernel comes with


@dataclass(frozen=True)
class WanSettings:
    """The link, the same in both directions. `rate_mbit` counts whole Ethernet frames, 0 is unlimited.

    `congestion` names the congestion control of every connection on the link; None leaves the machine's default.
    """

    rate_mbit: float = 2000
    one_way_ms: float = 10
    loss_percent: float = 0
    queue_ms: float = 20
    mtu: int = 1500
    seed: int = 42
    buffers: Buffers = LARGE
    congestion: str | None = None


@dataclass(frozen=True)
class LinkStats:
    """One direction since the start; `queue_max_ms` since the last statistics, `queue_ms` is how long it is now."""

    packets: int
    segments: int
    payload_bytes: int
    lost: int
    dropped: int
    queue_ms: float
    queue_max_ms: float


@dataclass(frozen=True)
class WanStats:
    """Both directions."""

    a_to_b: LinkStats
    b_to_a: LinkStats


class WanNet:
    """A running link. Its methods may be called from any thread."""

    name = "wan"
    a_address = "10.78.0.1"
    b_address = "10.78.0.2"
    device = DEVICE

    def __init__(self, a_namespace: str, b_namespace: str, process: subprocess.Popen[str]) -> None:
        self.a_prefix = ("ip", "netns", "exec", a_namespace)
        self.b_prefix = ("ip", "netns", "exec", b_namespace)
        self._process = process
        self._lock = threading.Lock()

    def set(
        self,
        *,
        rate_mbit: float | None = None,
        one_way_ms: float | None = None,
        loss_percent: float | None = None,
        queue_ms: float | None = None,
    ) -> None:
        """Change the link from now on, both directions. Loss of 100 cuts it; what is in flight still arrives."""
        for command, value in (
            ("rate", rate_mbit),
            ("delay", one_way_ms),
            ("loss", loss_percent),
            ("queue", queue_ms),
        ):
            if value is None:
                continue
            (answer,) = self._ask(f"{command} {value}", num_lines=1)
            if answer != "ok":
                raise ValueError(f"the WAN emulator does not take {command} {value}")

    def stats(self) -> WanStats:
        """What both directions carried so far."""
        lines: list[dict[str, Any]] = [json.loads(line) for line in self._ask("stats", num_lines=2)]
        by_name = {line.pop("direction"): LinkStats(**line) for line in lines}
        return WanStats(**by_name)

    def _ask(self, line: str, *, num_lines: int) -> list[str]:
        assert self._process.stdin
        assert self._process.stdout
        with self._lock:
            if self._process.poll() is None:
                self._process.stdin.write(line + "\n")
                self._process.stdin.flush()
            answers = [self._process.stdout.readline().strip() for _ in range(num_lines)]
        if not all(answers):
            raise RuntimeError("the WAN emulator has ended; what it said is on stderr")
        return answers


def available() -> str | None:
    """Why this machine cannot emulate a WAN; None when it can."""
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    for program in ("ip", "cc", "sysctl"):
        if shutil.which(program) is None:
            return f"needs the program {program}"
    if not Path("/dev/net/tun").exists():
        return "needs /dev/net/tun (modprobe tun)"
    return None


@contextlib.contextmanager
def wan(settings: WanSettings) -> Iterator[WanNet]:
    """The link for as long as the block runs. Nothing of it is left behind, whichever way the block ends."""
    if reason := available():
        raise RuntimeError(f"no WAN here: {reason}")
    _delete_abandoned()
    number = next(_numbers)
    a, b = (f"{NAMESPACE}-{os.getpid()}-{number}{end}" for end in "ab")
    with contextlib.ExitStack() as stack:
        for namespace in (a, b):
            stack.callback(subprocess.run, ["ip", "netns", "del", namespace], check=False, stderr=subprocess.DEVNULL)
            _run("ip", "netns", "add", namespace)
        process = subprocess.Popen(
            [str(_emulator()), a, b, str(settings.seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C reaches it through us
        )
        stack.callback(_end, process)
        assert process.stdout
        if process.stdout.readline() != "up\n":
            raise RuntimeError("the WAN emulator did not start; what it said is on stderr")
        for namespace, address in ((a, WanNet.a_address), (b, WanNet.b_address)):
            _configure(namespace, address, settings)
        net = WanNet(a, b, process)
        net.set(
            rate_mbit=settings.rate_mbit,
            one_way_ms=settings.one_way_ms,
            loss_percent=settings.loss_percent,
            queue_ms=settings.queue_ms,
        )
        yield net


def _configure(namespace: str, address: str, settings: WanSettings) -> None:
    ip = ("ip", "-n", namespace)
    _run(*ip, "address", "add", f"{address}/24", "dev", DEVICE)
    _run(*ip, "link", "set", DEVICE, "mtu", str(settings.mtu), "txqueuelen", "10000", "up")
    _run(*ip, "link", "set", "lo", "up")
    if settings.congestion:  # the namespace's own default cannot be set everywhere
        _run(*ip, "route", "replace", "10.78.0.0/24", "dev", DEVICE, "src", address, "congctl", settings.congestion)
    knobs = (
        "net.ipv4.tcp_no_metrics_save=1",  # or a connection starts from what the one before it learned
        f"net.ipv4.tcp_wmem=4096 65536 {settings.buffers.send_max_bytes}",
        f"net.ipv4.tcp_rmem=4096 131072 {settings.buffers.receive_max_bytes}",
    )
    _run("ip", "netns", "exec", namespace, "sysctl", "-qw", *knobs)


@functools.cache
def _emulator() -> Path:
    """The compiled emulator, in a folder of this process alone that goes with it."""
    folder = tempfile.mkdtemp(prefix="prfaas-wanem-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    program = Path(folder) / "wanem"
    _run("cc", "-O2", "-o", str(program), str(SOURCE), "-lm")
    return program


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe:
            pipe.close()


def _delete_abandoned() -> None:
    """Namespaces of processes that were killed before they could tidy up."""
    folder = Path("/var/run/netns")
    for file in folder.glob(f"{NAMESPACE}-*") if folder.is_dir() else ():
        pid = file.name.removeprefix(f"{NAMESPACE}-").partition("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            subprocess.run(["ip", "netns", "del", file.name], check=False, stderr=subprocess.DEVNULL)


def _run(*argv: str) -> None:
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"`{' '.join(argv)}` failed: {done.stderr.strip()}")
