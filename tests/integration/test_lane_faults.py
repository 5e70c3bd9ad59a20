"""What goes wrong between two nodes: each fault is survived or aborted as a whole, and leaves nothing behind."""

from __future__ import annotations

import dataclasses
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from prfaas.core.transfer.extents import Extent
from prfaas.core.wire.node_api import LandingState
from prfaas.launch.addresses import free_ports
from prfaas.testing.lane_proxy import LaneProxy
from prfaas.testing.node_pair import FAST_LIMITS, NodePair, node_pair, wait_until
from prfaas.transport.outbound import Dial
from prfaas.transport.sockets import pace

KINDS = ("tcp", "tcp+tls")
TOKENS = 30_000


@contextmanager
def proxied(directory: Path, kind: str) -> Iterator[tuple[NodePair, LaneProxy]]:
    """Two nodes with something in between that misbehaves on demand."""
    proxies: list[LaneProxy] = []
    lock = threading.Lock()

    def through_proxy(dial: Dial) -> Dial:
        assert isinstance(dial, partial)
        with lock:  # lanes dial at the same time
            if not proxies:
                proxies.append(LaneProxy(dial.args[0]))
        host, port = proxies[0].address.rsplit(":", 1)
        return partial(socket.create_connection, (host, int(port)))

    with node_pair(directory, kind=kind, arena_bytes=64 << 20, wrap_dial=through_proxy) as pair:
        wait_until(lambda: pair.source.links["sink"].lanes_up == FAST_LIMITS.num_lanes)
        try:
            yield pair, proxies[0]
        finally:
            proxies[0].close()


def stage(pair: NodePair, name: str, num_tokens: int = TOKENS) -> bytes:
    """All of a random image at once."""
    memory = pair.stage_open(name, pair.reserve(name, num_tokens))
    memory[:] = random.Random(name).randbytes(len(memory))
    image = bytes(memory)
    pair.source.staged(name, [(0, len(memory))])
    pair.source.stage_close(name)
    return image


def nothing_left(pair: NodePair) -> bool:
    """No memory is held on either side and nothing counts as under way."""
    ends = (pair.source.plane, pair.sink.plane)
    return all(end.ledgers.extents.num_live == 0 for end in ends) and not pair.source.links["sink"].ledger.live()


def descriptors() -> int:
    """Open in this process, which has both nodes."""
    return len(os.listdir("/proc/self/fd"))


def lands_now(pair: NodePair, name: str) -> None:
    """The link is as good as new."""
    wait_until(lambda: pair.source.links["sink"].lanes_up == FAST_LIMITS.num_lanes)
    image = stage(pair, name)
    assert pair.wait_state(name, "landed", "aborted") == "landed"
    assert pair.landed_bytes(name) == image
    pair.sink.drop(name)
    wait_until(lambda: nothing_left(pair))


@contextmanager
def recovering(directory: Path, kind: str) -> Iterator[tuple[NodePair, LaneProxy]]:
    """As `proxied`, at 20 MB/s; after the block nothing may be left of what happened in it."""
    with proxied(directory, kind) as (pair, proxy):
        lands_now(pair, "before")
        before = descriptors()
        proxy.rate_bytes_per_s = 20e6
        yield pair, proxy
        wait_until(lambda: nothing_left(pair))
        lands_now(pair, "b")
        wait_until(lambda: descriptors() <= before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_short_cut_costs_what_was_not_acknowledged(tmp_path: Path, kind: str) -> None:
    """Every lane is cut in mid-transfer. It goes on where it was: what was acknowledged is not sent again."""
    with recovering(tmp_path, kind) as (pair, proxy):
        image = stage(pair, "a")
        link = pair.source.links["sink"]
        live = wait_until(lambda: t if (t := link.ledger.find("a")) and t.acked.size > len(image) // 3 else None)
        proxy.cut()
        proxy.rate_bytes_per_s = None
        assert pair.wait_state("a", "landed", "aborted") == "landed"
        assert pair.landed_bytes("a") == image
        wait_until(lambda: pair.source.sent.get("a") is not None)
        # What was unanswered at the cut, and what lanes carried that came up during it; a third was acknowledged before.
        assert 0 < live.bytes_resent <= FAST_LIMITS.num_lanes * FAST_LIMITS.credit_bytes < len(image) // 3
        pair.sink.drop("a")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_given_up_leaves_the_link_at_once(tmp_path: Path, kind: str) -> None:
    """The landing is dropped while buffers between the nodes are full: the sender hears of it before they have been
    read, and sends no more of it."""
    with recovering(tmp_path, kind) as (pair, proxy):
        proxy.rate_bytes_per_s = 3e5
        stage(pair, "a")
        link = pair.source.links["sink"]
        wait_until(lambda: link.arrivals.flight_bytes > FAST_LIMITS.credit_bytes // 2)
        pair.sink.drop("a")
        wait_until(lambda: link.ledger.find("a") is None)
        assert link.arrivals.unwanted_bytes > 0, "it has been told, and not with what has arrived"
        sent = pair.source.plane.counters["bytes_sent", "sink"]
        wait_until(lambda: link.arrivals.flight_bytes < FAST_LIMITS.credit_bytes // 4)
        assert (
            pair.source.plane.counters["bytes_sent", "sink"] - sent <= FAST_LIMITS.num_lanes * FAST_LIMITS.chunk_bytes
        )
        proxy.rate_bytes_per_s = None
        wait_until(lambda: link.arrivals.flight_bytes == 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stalled_or_half_open_link_is_noticed_and_given_up(tmp_path: Path, kind: str) -> None:
    """Bytes vanish while connections stay open, as when a peer loses its power. Both ends abort, and both recover."""
    with recovering(tmp_path, kind) as (pair, proxy):
        received = pair.sink.plane.counters
        start = received["bytes_received", "source"]
        stage(pair, "a")
        wait_until(lambda: received["bytes_received", "source"] > start + (2 << 20))
        proxy.stalled = True
        started_s = time.monotonic()
        assert pair.wait_state("a", "aborted") == "aborted"
        record = wait_until(lambda: pair.source.sent.get("a"))
        assert record.state == "aborted"
        limits = FAST_LIMITS
        assert time.monotonic() - started_s >= limits.lane_dead_after_s, "a stall shorter than that is no death"
        wait_until(lambda: nothing_left(pair))
        proxy.heal()
        proxy.cut()


@pytest.mark.parametrize("kind", KINDS)
def test_resets_in_mid_frame(tmp_path: Path, kind: str) -> None:
    """Connections are reset again and again while frames are under way; the image lands whole."""
    with node_pair(tmp_path, kind=kind, arena_bytes=64 << 20) as pair:
        wait_until(lambda: pair.source.links["sink"].lanes_up == FAST_LIMITS.num_lanes)
        before = descriptors()
        for sock in pair.sockets:
            pace(sock, 10e6)
        image = stage(pair, "a")
        received = pair.sink.plane.counters
        for step in range(1, 4):
            wait_until(lambda step=step: received["bytes_received", "source"] > step << 20)  # type: ignore[misc]
            victim = pair.sockets[step]
            victim.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            victim.shutdown(socket.SHUT_RDWR)
        assert pair.wait_state("a", "landed", "aborted") == "landed"
        assert pair.landed_bytes("a") == image
        pair.sink.drop("a")
        wait_until(lambda: nothing_left(pair))
        wait_until(lambda: pair.source.links["sink"].lanes_up == FAST_LIMITS.num_lanes)
        wait_until(lambda: descriptors() <= before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_chunk_waits_for_the_lane_that_still_writes_its_bytes(tmp_path: Path, kind: str) -> None:
    """As after a cut on a busy machine, when the dead lane's thread has not woken yet. Nothing is refused meanwhile."""
    with node_pair(tmp_path, kind=kind, arena_bytes=64 << 20) as pair:
        link, plane = pair.source.links["sink"], pair.sink.plane
        wait_until(lambda: link.lanes_up == FAST_LIMITS.num_lanes)
        memory = pair.stage_open("a", pair.reserve("a", TOKENS))
        wait_until(lambda: pair.sink.landing("a").state is LandingState.RECEIVING)
        landing, late = pair.sink.landing("a"), 1 << 30
        with plane.lock:
            assert landing.sender is not None
            length = FAST_LIMITS.chunk_bytes
            assert isinstance(
                plane.ledgers.landings.begin_chunk(landing.sender, late, landing.handle, 0, length), Extent
            )
        memory[:] = random.Random(kind).randbytes(len(memory))
        image = bytes(memory)
        pair.source.staged("a", [(0, len(memory))])
        pair.source.stage_close("a")
        wait_until(lambda: not link.ledger.has_room)
        with plane.lock:
            assert late in landing.writing
            plane.ledgers.landings.lane_lost(late)
            plane.place_freed.notify_all()
        assert pair.wait_state("a", "landed", "aborted") == "landed"
        assert pair.landed_bytes("a") == image
        assert pair.source.plane.counters["chunks_nacked", "sink"] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_one_lane_at_a_hundredth_is_given_up(tmp_path: Path, kind: str) -> None:
    """It does not hold up the transfer: its connection is replaced, and the others send what it carried."""
    limits = dataclasses.replace(FAST_LIMITS, chunk_bytes=256 << 10, short_link_senders=4, unsent_bytes=1)
    with node_pair(tmp_path, kind=kind, arena_bytes=256 << 20, limits=limits) as pair:
        link = pair.source.links["sink"]
        wait_until(lambda: link.lanes_up == limits.num_lanes)
        for sock in pair.sockets:
            pace(sock, 10e6)
        slow = pair.sockets[0]
        pace(slow, 0.1e6)
        image = stage(pair, "a", 60_000)
        assert pair.wait_state("a", "landed", "aborted", timeout_s=60) == "landed"
        assert pair.landed_bytes("a") == image
        assert slow.fileno() == -1, "the slow connection has been given up"
        assert len(pair.sockets) == limits.num_lanes + 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_deadline_frees_both_ends(tmp_path: Path, kind: str) -> None:
    """Past it the transfer is aborted as a whole."""
    with proxied(tmp_path, kind) as (pair, proxy):
        proxy.rate_bytes_per_s = 2e6
        memory = pair.stage_open("a", pair.reserve("a", TOKENS), deadline_s=1.0)
        pair.source.staged("a", [(0, len(memory))])
        pair.source.stage_close("a")
        assert pair.wait_state("a", "aborted") == "aborted"
        assert pair.sink.landing("a").state is LandingState.ABORTED
        wait_until(lambda: nothing_left(pair))
        proxy.heal()
        lands_now(pair, "b")


def healthy(port: int) -> bool:
    """The node answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def test_a_full_disk_under_the_log_stops_nothing(tmp_path: Path) -> None:
    """Every line that a node logs fails to be written; it serves, and ends in order."""
    http, lanes = free_ports(2)
    argv = [sys.executable, "-m", "prfaas", "kvnode", "--name", "n-0", "--http", f"127.0.0.1:{http}"]
    argv += ["--lanes", f"127.0.0.1:{lanes}", "--socket", str(tmp_path / "n.sock"), "--arena", "1MiB", "--plain"]
    with open("/dev/full", "w", encoding="utf-8") as full:
        process = subprocess.Popen([*argv, "--log-level", "DEBUG"], stdout=full, stderr=full)
        try:
            wait_until(lambda: healthy(http))
            for _ in range(20):
                with socket.create_connection(("127.0.0.1", lanes)) as sock:
                    sock.sendall(b"rubbish" * 20)
            metrics: Callable[[], str] = lambda: (  # noqa: E731
                urllib.request.urlopen(f"http://127.0.0.1:{http}/metrics", timeout=5).read().decode()
            )
            wait_until(lambda: 'prfaas_frames_rejected_total{reason="bad_magic"} 20.0' in metrics())
        finally:
            process.terminate()
            process.wait(30)
