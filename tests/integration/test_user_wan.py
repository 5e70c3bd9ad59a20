"""`prfaas wan` with real sockets, real nodes, and as a process that `prfaas up` plans."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from prfaas.deployment.fronts import EmulatedLink, Front
from prfaas.launch.addresses import free_ports_in_a_row
from prfaas.testing.deployed import HttpError, free_ports, http
from prfaas.testing.node_pair import FAST_LIMITS, NodePair, node_pair, wait_until
from prfaas.testing.pd_site import FakePdSite
from prfaas.transport.outbound import Dial
from prfaas.wan.network import Network
from prfaas.wan.settings import changed

MB = 1e6
HOST = "127.0.0.1"


class Wan:
    """A network in a thread with a loop of its own, with one link from west to east."""

    def __init__(self, target: tuple[str, int], bytes_per_s: float, rtt_s: float = 0.0) -> None:
        self.front = (HOST, free_ports(1)[0])
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        link = EmulatedLink("west", "east", bytes_per_s, rtt_s, (Front("east-0", self.front, target),))
        self.network = self._ask(self._start(link))

    def set(self, **values: Any) -> None:
        """As PATCH does."""
        self._ask(self._change(values))

    def figures(self) -> dict[str, Any]:
        return self._ask(self._figures())

    def close(self) -> None:
        self._ask(self.network.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _start(self, link: EmulatedLink) -> Network:
        network = Network(asyncio.get_running_loop())
        network.follow([link])
        return network

    async def _change(self, values: dict[str, Any]) -> None:
        link = self.network.link("west", "east")
        self.network.change(link, changed(link.settings, values))

    async def _figures(self) -> dict[str, Any]:
        return self.network.link("west", "east").figures()

    def _ask(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)


@contextmanager
def wan(bytes_per_s: float, rtt_s: float = 0.0) -> Iterator[tuple[Wan, socket.socket]]:
    """In front of a listener, which is the second."""
    with socket.create_server((HOST, 0)) as listener:
        network = Wan(listener.getsockname()[:2], bytes_per_s, rtt_s)
        try:
            yield network, listener
        finally:
            network.close()


@contextmanager
def connected(network: Wan, listener: socket.socket) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection through it."""
    with socket.create_connection(network.front) as near:
        far, _ = listener.accept()
        with far:
            near.settimeout(60)
            far.settimeout(60)
            yield near, far


def read_all(sock: socket.socket) -> bytes:
    parts = []
    while part := sock.recv(1 << 20):
        parts.append(part)
    return b"".join(parts)


def send_whole(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def in_thread(work: Callable[[], object]) -> threading.Thread:
    """Errors of sockets that are cut under it are expected."""

    def run() -> None:
        with contextlib.suppress(OSError):
            work()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def test_bytes_cross_in_both_directions_and_so_do_ends() -> None:
    """Every byte, in order, with delay, jitter and stalls; one end may close long before the other."""
    with wan(100 * MB, 0.01) as (network, listener):
        network.set(jitter="3ms", stalls_per_mb=0.2)
        forth, back = random.Random(1).randbytes(6_000_000), random.Random(2).randbytes(300_000)
        with connected(network, listener) as (near, far):
            sender = in_thread(lambda: send_whole(near, forth))
            assert read_all(far) == forth
            far.sendall(back)
            far.shutdown(socket.SHUT_WR)
            assert read_all(near) == back
            sender.join(60)
        wait_until(lambda: not network.figures()["connections"])
        assert network.figures()["held_bytes"] == 0
        assert network.figures()["carried_bytes"] == len(forth)


def test_flipped_bits_are_those_that_are_counted() -> None:
    """And none on the way back."""
    with wan(100 * MB) as (network, listener), connected(network, listener) as (near, far):
        network.set(flips_per_mb=20)
        forth, back = random.Random(1).randbytes(2_000_000), random.Random(2).randbytes(300_000)
        in_thread(lambda: send_whole(near, forth))
        came = read_all(far)
        wrong = int.from_bytes(came, "big") ^ int.from_bytes(forth, "big")
        assert wrong.bit_count() == network.figures()["flips"] > 0
        in_thread(lambda: send_whole(far, back))
        assert read_all(near) == back


def received_bytes_per_s(sock: socket.socket, num_bytes: float) -> float:
    """Of the next so many bytes."""
    started_s, count = time.monotonic(), 0
    while count < num_bytes:
        count += len(sock.recv(65536))
    return count / (time.monotonic() - started_s)


def test_a_link_is_never_faster_than_it_is_told_and_a_change_takes_effect() -> None:
    """Upper bounds only: a busy machine may be slower. The slow link is felt by the sender, not hidden in a buffer."""
    with wan(4 * MB) as (network, listener), connected(network, listener) as (near, far):
        in_thread(lambda: near.sendall(bytes(400_000_000)))
        started_s, count = time.monotonic(), 0
        while count < 6 * MB:
            count += len(far.recv(65536))
        assert count / (time.monotonic() - started_s) <= 4.4 * MB
        network.set(bandwidth="8000Mbps")
        started_s = time.monotonic()
        while count < 66 * MB:
            count += len(far.recv(1 << 20))
        assert time.monotonic() - started_s < 14.0  # at 4 MB/s it would be 15 s
        network.set(bandwidth="8Mbps")
        assert network.figures()["held_bytes"] < 70 * MB
        # What had passed the bottleneck before comes first, later on a busy machine.
        wait_until(lambda: received_bytes_per_s(far, MB) <= 1.4 * MB, 120)


def test_delay_is_no_less_than_asked_for() -> None:
    """A round trip, and one more for the handshake."""
    with wan(100 * MB, 0.1) as (network, listener):
        started_s = time.monotonic()
        with connected(network, listener) as (near, far):
            near.sendall(b"x")
            assert far.recv(1) == b"x"
            assert time.monotonic() - started_s >= 0.149
            started_s = time.monotonic()
            far.sendall(b"y")
            assert near.recv(1) == b"y"
            assert time.monotonic() - started_s >= 0.049


def test_a_reset_cut_refuses_and_heals() -> None:
    """Connections are reset at both ends, new ones refused; afterwards they are taken again."""
    with wan(100 * MB) as (network, listener):
        with connected(network, listener) as (near, far):
            near.sendall(b"x")
            assert far.recv(1) == b"x"
            network.set(cut="reset")
            for sock in (near, far):
                with pytest.raises(ConnectionResetError):
                    sock.recv(1)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(network.front)
        network.set(cut=None)
        with connected(network, listener) as (near, far):
            near.sendall(b"x")
            assert far.recv(1) == b"x"


def test_a_silent_cut_lets_nothing_pass_and_loses_nothing() -> None:
    """Neither bytes nor the end of a connection; a new one is taken and gets no answer. After it all goes on."""
    with wan(100 * MB) as (network, listener), connected(network, listener) as (near, far):
        network.set(cut="silent")
        near.sendall(b"hello")
        near.shutdown(socket.SHUT_WR)
        with connected(network, listener) as (late, far_late):
            late.sendall(b"late")
            for sock in (far, far_late):
                sock.settimeout(0.3)
                with pytest.raises(TimeoutError):
                    sock.recv(1)
                sock.settimeout(60)
            network.set(cut=None)
            assert read_all(far) == b"hello"
            assert far_late.recv(10) == b"late"


def test_a_reset_of_one_end_reaches_the_other() -> None:
    """And a target that is not there ends the connection."""
    with wan(100 * MB) as (network, listener):
        with connected(network, listener) as (near, far):
            near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            near.close()
            with pytest.raises(ConnectionResetError):
                far.recv(1)
        listener.close()
        with socket.create_connection(network.front) as near:
            near.settimeout(60)
            with contextlib.suppress(ConnectionResetError):
                assert near.recv(1) == b""


@contextmanager
def nodes(directory: Path, kind: str, bytes_per_s: float, rtt_s: float) -> Iterator[tuple[NodePair, Wan]]:
    """Two nodes whose lanes cross the network."""
    made: list[Wan] = []
    lock = threading.Lock()

    def through(dial: Dial) -> Dial:
        assert isinstance(dial, partial)
        with lock:  # lanes dial at the same time, and again
            if not made:
                made.append(Wan(dial.args[0], bytes_per_s, rtt_s))
        return partial(socket.create_connection, made[0].front)

    with node_pair(directory, kind=kind, arena_bytes=64 << 20, wrap_dial=through) as pair:
        try:
            wait_until(lambda: pair.source.links["sink"].lanes_up == FAST_LIMITS.num_lanes)
            yield pair, made[0]
        finally:
            made[0].close()


def stage(pair: NodePair, name: str, num_tokens: int) -> bytes:
    memory = pair.stage_open(name, pair.reserve(name, num_tokens))
    memory[:] = random.Random(name).randbytes(len(memory))
    pair.source.staged(name, [(0, len(memory))])
    pair.source.stage_close(name)
    return bytes(memory)


@pytest.mark.parametrize("kind", ["tcp", "tcp+tls"])
def test_a_transfer_crosses_and_respects_the_rate(tmp_path: Path, kind: str) -> None:
    """Byte for byte, no sooner than the link carries it."""
    with nodes(tmp_path, kind, 20 * MB, 0.01) as (pair, network):
        started_s = time.monotonic()
        image = stage(pair, "one", 30_000)
        assert pair.wait_state("one", "landed", "aborted") == "landed"
        assert len(image) / (time.monotonic() - started_s) <= 22 * MB
        assert pair.landed_bytes("one") == image
        assert network.figures()["carried_bytes"] >= len(image)


@pytest.mark.parametrize("how", ["reset", "silent"])
def test_a_transfer_outlives_a_short_cut(tmp_path: Path, how: str) -> None:
    """Lanes come up again, or wake up; what was on its way is sent again or goes on."""
    with nodes(tmp_path, "tcp", 5 * MB, 0.01) as (pair, network):
        image = stage(pair, "one", 30_000)
        wait_until(lambda: network.figures()["carried_bytes"] > 100_000)
        network.set(cut=how)
        time.sleep(0.2)  # the cut itself
        network.set(cut=None, bandwidth="1Gbps")
        assert pair.wait_state("one", "landed", "aborted") == "landed"
        assert pair.landed_bytes("one") == image


@pytest.mark.parametrize("kind", ["tcp", "tcp+tls"])
def test_no_wrong_byte_lands_over_a_link_that_flips_bits(tmp_path: Path, kind: str) -> None:
    """Damage is found by checksum or seal; what lands is what was sent. A transfer may be given up, too."""
    with nodes(tmp_path, kind, 20 * MB, 0.0) as (pair, network):
        network.set(flips_per_mb=1)
        for number in range(3):
            image = stage(pair, f"bad {number}", 30_000)
            if pair.wait_state(f"bad {number}", "landed", "aborted") == "landed":
                assert pair.landed_bytes(f"bad {number}") == image
        assert network.figures()["flips"]
        network.set(flips_per_mb=0)
        wait_until(lambda: pair.source.links["sink"].lanes_up == FAST_LIMITS.num_lanes)
        image = stage(pair, "good", 2000)
        assert pair.wait_state("good", "landed", "aborted") == "landed"
        assert pair.landed_bytes("good") == image


@pytest.mark.parametrize("how", ["reset", "silent"])
def test_a_long_cut_aborts_and_a_healed_link_is_as_good_as_new(tmp_path: Path, how: str) -> None:
    """Both ends give the transfer up; the next one lands."""
    with nodes(tmp_path, "tcp", 5 * MB, 0.01) as (pair, network):
        stage(pair, "one", 30_000)
        wait_until(lambda: network.figures()["carried_bytes"] > 100_000)
        network.set(cut=how)
        assert pair.wait_state("one", "landed", "aborted") == "aborted"
        network.set(cut=None, bandwidth="1Gbps")
        wait_until(lambda: pair.source.links["sink"].lanes_up == FAST_LIMITS.num_lanes)
        image = stage(pair, "two", 2000)
        assert pair.wait_state("two", "landed", "aborted") == "landed"
        assert pair.landed_bytes("two") == image


@pytest.mark.parametrize("kind", ["tcp", "tcp+tls"])
def test_idle_lanes_notice_a_silent_cut(tmp_path: Path, kind: str) -> None:
    """Although this process's kernel acknowledges what it takes, as any proxy's would: before there is a prompt the sender
    knows that nobody answers."""
    with nodes(tmp_path, kind, 5 * MB, 0.01) as (pair, network):
        link = pair.source.links["sink"]
        wait_until(lambda: link.lanes_up == FAST_LIMITS.num_lanes)
        network.set(cut="silent")
        wait_until(lambda: link.lanes_up == 0)
        network.set(cut=None)
        wait_until(lambda: link.lanes_up == FAST_LIMITS.num_lanes)
        image = stage(pair, "two", 2000)
        assert pair.wait_state("two", "landed", "aborted") == "landed"
        assert pair.landed_bytes("two") == image


@pytest.fixture(scope="module")
def site() -> Iterator[FakePdSite]:
    """Gateway, nodes and engines without a model; their link is emulated."""

    def emulate(document: dict[str, Any]) -> None:
        # Ports in a row: a control, and a front for each of three instances.
        base = free_ports_in_a_row(4)
        document["links"][0] |= {"emulated_at": f"{HOST}:{base + 1}", "rtt": "20ms"}

    with FakePdSite(edit=emulate) as deployed:
        yield deployed


def test_up_runs_lanes_through_it(site: FakePdSite) -> None:
    """Planned first, healthy, and KVCache that is offloaded has crossed it; lanes inside a cluster have not."""
    assert next(iter(site.specs)) == "wan"
    control = site.specs["wan"].health_url.removesuffix("/health")
    before = site.metric(control, "prfaas_wan_carried_bytes_total", source="west", target="east")
    assert site.route(site.short_tokens) == "pd_prefill"
    inside = site.metric(control, "prfaas_wan_carried_bytes_total", source="west", target="east")
    assert site.route(site.long_tokens) == "remote"
    after = site.metric(control, "prfaas_wan_carried_bytes_total", source="west", target="east")
    assert after - inside > 10 * (inside - before + 1)
    (link,) = http(f"{control}/links")[0]["links"]
    assert (link["from"], link["to"], link["bandwidth"], link["rtt"], link["cut"]) == (
        "west",
        "east",
        "1000Mbps",
        0.02,
        None,
    )
    assert list(link["fronts"]) == ["east-p", "east-d1", "east-d2"]
    assert link["connections"] == 2  # the instance that prefills gets no lanes from outside


def test_a_link_is_changed_at_run_time(site: FakePdSite) -> None:
    """By HTTP and by the command; errors say what is wrong."""
    control = site.specs["wan"].health_url.removesuffix("/health")
    link = f"{control}/links/west/east"
    assert http(link, {"bandwidth": "500Mbps", "jitter": "1ms"}, "PATCH")[0]["bandwidth"] == "500Mbps"
    for url, body, status, expected in (
        (link, {"bandwidth": 5}, 400, "100Gbps"),
        (link, ["x"], 400, "must be a JSON object"),
        (f"{control}/links/east/west", {"rtt": 0}, 404, "there are: west to east"),
        (f"{control}/nothing", {}, 404, "Not Found"),
    ):
        with pytest.raises(HttpError) as refused:
            http(url, body, "PATCH")
        assert refused.value.status == status
        assert expected in refused.value.body["error"]["message"]
    command = [sys.executable, "-m", "prfaas", "link", str(site.file)]
    done = subprocess.run(
        [*command, "west", "east", "rtt=5ms", "cut=reset"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert "500Mbps rtt 5 ms jitter 1 ms CUT (reset)" in done.stdout
    wait_until(lambda: site.route(site.long_tokens) != "remote", 60.0)
    http(link, {"cut": None}, "PATCH")
    wait_until(lambda: site.route(site.long_tokens) == "remote", 60.0)
    wrong = subprocess.run([*command, "west", "east", "rtt=5x"], capture_output=True, text=True, timeout=60)
    assert wrong.returncode == 2
    assert "rtt: '5x' is not a duration" in wrong.stderr


def test_it_follows_the_file(site: FakePdSite) -> None:
    """An instance that leaves has no front any more; one that comes back has."""
    control = site.specs["wan"].health_url.removesuffix("/health")
    endpoints = site.document["clusters"]["east"]["endpoints"]
    last = endpoints.pop()
    site.rewrite()
    wait_until(lambda: list(http(f"{control}/links")[0]["links"][0]["fronts"]) == ["east-p", "east-d1"], 30.0)
    endpoints.append(last)
    site.rewrite()
    wait_until(lambda: len(http(f"{control}/links")[0]["links"][0]["fronts"]) == 3, 30.0)
    wait_until(site.lanes_are_up, 60.0)
