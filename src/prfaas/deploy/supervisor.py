"""Starts processes, watches their health, and ends every one of them, whatever happens.

Laws of this file:
- A child that dies is reported, never restarted in silence.
- Children run in groups of their own and are ended by group: vLLM has children too.
- A child whose supervisor is killed dies with it (PR_SET_PDEATHSIG), so nothing is left behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from prfaas.core.errors import PrfaasError
from prfaas.deploy.plan import ProcessSpec

_PR_SET_PDEATHSIG = 1
#: How long a group may take to end after each signal.
GRACE_S = 8.0
POLL_S = 0.2
LAST_LINES = 15


class ProcessDied(PrfaasError):
    """A supervised process ended on its own; the text has its exit status and the end of its log."""


class NotHealthy(PrfaasError):
    """Something did not become healthy in time."""


@dataclass(eq=False)
class Running:
    """One started process. `ended_told` avoids reporting its end twice."""

    spec: ProcessSpec
    popen: subprocess.Popen[bytes]
    log: Path
    healthy: bool = False
    ended_told: bool = False

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def is_alive(self) -> bool:
        return self.popen.poll() is None

    def last_lines(self) -> str:
        """The end of its log, for error messages."""
        with contextlib.suppress(OSError):
            lines = self.log.read_text(errors="replace").splitlines()
            return "\n".join(f"    {line}" for line in lines[-LAST_LINES:])
        return "    (no log)"


class Supervisor:
    """Owns a set of processes for as long as its `with` block runs."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.processes: dict[str, Running] = {}

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def start(self, specs: list[ProcessSpec]) -> None:
        """Start processes in order, without waiting for their health."""
        self.logs.mkdir(parents=True, exist_ok=True)
        for spec in specs:
            log = self.logs / f"{spec.name}.log"
            with log.open("wb") as stream:
                popen = subprocess.Popen(
                    spec.argv,
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **spec.env},
                    start_new_session=True,
                    preexec_fn=_die_with_parent,
                )
            self.processes[spec.name] = Running(spec, popen, log)

    def wait_healthy(
        self, timeout_s: float, names: list[str] | None = None, on_tick: Callable[[Supervisor], None] | None = None
    ) -> None:
        """Wait until all (or `names`) are healthy. Raises ProcessDied or NotHealthy; `on_tick` may show progress."""
        deadline = time.monotonic() + timeout_s
        wanted = [self.processes[name] for name in names or self.processes]
        while True:
            for running in self.newly_ended():
                raise ProcessDied(describe_end(running))
            self.probe(wanted)
            if on_tick is not None:
                on_tick(self)
            if all(running.healthy for running in wanted):
                return
            if time.monotonic() > deadline:
                late = next(running for running in wanted if not running.healthy)
                raise NotHealthy(f"{late.spec.name} is not healthy after {timeout_s:g} s; its log is {late.log}")
            time.sleep(POLL_S)

    def probe(self, wanted: list[Running] | None = None) -> None:
        """Ask every process for its health once."""
        for running in wanted or list(self.processes.values()):
            running.healthy = running.is_alive and is_healthy(running.spec)

    def newly_ended(self) -> list[Running]:
        """Processes that ended since the last call."""
        ended = [running for running in self.processes.values() if not running.is_alive and not running.ended_told]
        for running in ended:
            running.ended_told = True
            running.healthy = False
        return ended

    def stop(self) -> None:
        """End every group: SIGINT, then SIGTERM, then SIGKILL. Safe to call again."""
        running = list(self.processes.values())
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            alive = [process for process in running if _group_alive(process.pid)]
            for process in alive:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, number)
            _wait_groups(running, GRACE_S)
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.popen.wait(1.0)
        self.processes.clear()


def describe_end(running: Running) -> str:
    """What a person needs when a process ended on its own."""
    code = running.popen.returncode
    how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with status {code}"
    return f"{running.spec.name} {how}; the end of {running.log}:\n{running.last_lines()}"


def is_healthy(spec: ProcessSpec, timeout_s: float = 2.0) -> bool:
    """Does the process answer 200? A node that waits for its engine is healthy when the engine has registered."""
    try:
        with urllib.request.urlopen(spec.health_url, timeout=timeout_s) as response:
            body = response.read()
    except (OSError, urllib.error.URLError, ValueError):
        return False
    if not spec.needs_engine:
        return True
    try:
        return bool(json.loads(body).get("engines"))
    except ValueError:
        return False


def _die_with_parent() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _group_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _wait_groups(running: list[Running], grace_s: float) -> None:
    deadline = time.monotonic() + grace_s
    while time.monotonic() < deadline:
        for process in running:
            process.popen.poll()  # reap, so that an ended leader does not keep its group
        if not any(_group_alive(process.pid) for process in running):
            return
        time.sleep(0.05)
