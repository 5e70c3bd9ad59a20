"""Two nodes with real threads: one suite over TCP and over in-process pairs, plain and encrypted."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import random
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from prfaas.core.errors import Refused
from prfaas.core.wire.frames import HEADER_BYTES
from prfaas.core.wire.lane import LaneProtocol
from prfaas.core.wire.messages import Hello
from prfaas.core.wire.node_api import LandingState
from prfaas.testing.node_pair import FAST_LIMITS, NodePair, claim_key, node_pair, wait_for_few_threads, wait_until
from prfaas.transport.outbound import Dial
from prfaas.transport.sockets import bytes_moved, shut

KINDS = ("tcp", "inproc", "tcp+tls", "inproc+tls")


def send(pair: NodePair, name: str, num_prompt_tokens: int, pieces: int = 5) -> bytes:
    """Stage a random image in pieces and close it; returns what it was."""
    memory = pair.stage_open(name, pair.reserve(name, num_prompt_tokens))
    image = random.Random(name).randbytes(len(memory))
    memory[:] = image
    cuts = [len(image) * index // pieces for index in range(pieces + 1)]
    for start, end in itertools.pairwise(cuts):
        pair.source.staged(name, [(start, end)])
    pair.source.stage_close(name)
    return image


def idle(pair: NodePair) -> bool:
    """Nothing is held on either side."""
    return pair.source.plane.ledgers.extents.num_live == 0 and pair.sink.plane.ledgers.extents.num_live == 0


@pytest.mark.parametrize("kind", KINDS)
def test_image_lands_whole(tmp_path: Path, kind: str) -> None:
    """What lands is what was staged, byte for byte, and claiming then consuming frees both sides."""
    with node_pair(tmp_path, kind=kind) as pair:
        image = send(pair, "a", 1000)
        pair.wait_state("a", "landed")
        assert pair.landed_bytes("a") == image
        pair.sink.claim("engine", "a", claim_key(1000))
        assert pair.sink.consumed("engine", "a", 999, 1)
        wait_until(lambda: idle(pair))


@pytest.mark.parametrize("kind", KINDS)
def test_many_at_once(tmp_path: Path, kind: str) -> None:
    """Twenty transfers share the lanes and all land."""
    with node_pair(tmp_path, kind=kind, arena_bytes=32 << 20) as pair:
        images = {f"x{index}": send(pair, f"x{index}", 200 + 97 * index) for index in range(20)}
        for name, image in images.items():
            pair.wait_state(name, "landed")
            assert pair.landed_bytes(name) == image
            pair.sink.drop(name)
        wait_until(lambda: idle(pair))


@pytest.mark.parametrize("kind", KINDS)
def test_lost_lanes_are_resent(tmp_path: Path, kind: str) -> None:
    """Lanes cut again and again in mid-transfer lose nothing: the rest is sent again on others."""
    with node_pair(tmp_path, kind=kind, arena_bytes=64 << 20) as pair:
        wait_until(lambda: pair.source.links["sink"].lanes_up == 4)
        memory = pair.stage_open("a", pair.reserve("a", 60_000))
        image = random.Random(1).randbytes(len(memory))
        memory[:] = image
        step = len(image) // 40
        for index in range(40):
            end = len(image) if index == 39 else (index + 1) * step
            pair.source.staged("a", [(index * step, end)])
            if index % 8 == 3:
                shut(pair.sockets[-1 - index % 3])
        pair.source.stage_close("a")
        pair.wait_state("a", "landed", "aborted")
        assert pair.landed_bytes("a") == image
        assert pair.sink.landing("a").state is LandingState.LANDED


def flipping_proxy(dial: Dial, every_bytes: int, numbers: Iterator[int]) -> Dial:
    """A dialer whose first six connections have one bit of what they send flipped."""

    def connect() -> socket.socket:
        import threading

        flips = next(numbers) < 6
        upstream = dial()
        ours, theirs = socket.socketpair()

        def pump(source: socket.socket, target: socket.socket, flip: bool) -> None:
            seen = 0
            try:
                while data := bytearray(source.recv(65536)):
                    if flip and seen + len(data) > every_bytes > seen and len(data) > 2000:
                        data[len(data) // 2] ^= 1
                    seen += len(data)
                    target.sendall(data)
            except OSError:
                pass
            shut(source)
            shut(target)

        threading.Thread(target=pump, args=(theirs, upstream, flips), daemon=True).start()
        threading.Thread(target=pump, args=(upstream, theirs, False), daemon=True).start()
        return ours

    return connect


def test_idle_lanes_stay_up(tmp_path: Path) -> None:
    """Heartbeats keep them alive for longer than a silent lane may live, and none is redialled."""
    limits = dataclasses.replace(FAST_LIMITS, heartbeat_s=0.5, lane_dead_after_s=1.5)
    with node_pair(tmp_path, limits=limits) as pair:
        first = wait_until(lambda: pair.sockets[0] if len(pair.sockets) == limits.num_lanes else None)
        start = wait_until(lambda: bytes_moved(first))
        # A ping and its pong each time; five of them take longer than `lane_dead_after_s`.
        wait_until(lambda: bytes_moved(first) >= start + 5 * 2 * HEADER_BYTES)
        assert len(pair.sockets) == limits.num_lanes


@pytest.mark.parametrize("kind", KINDS)
def test_flipped_bit_is_caught_and_resent(tmp_path: Path, kind: str) -> None:
    """One flipped bit per lane is noticed by the checksum, the chunk is sent again, and the landing is exact."""
    numbers = itertools.count()
    with node_pair(
        tmp_path, kind=kind, wrap_dial=lambda dial: flipping_proxy(dial, 200_000, numbers), arena_bytes=32 << 20
    ) as pair:
        image = send(pair, "a", 20_000)
        pair.wait_state("a", "landed", "aborted")
        assert pair.landed_bytes("a") == image
        assert pair.sink.landing("a").state is LandingState.LANDED
        noticed = pair.sink.plane.counters["checksum_failures", ""]
        rejected = sum(v for (name, _), v in pair.sink.plane.counters.items() if name == "frames_rejected")
        assert noticed + rejected >= 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_stalled_link_aborts_both_ends(tmp_path: Path, kind: str) -> None:
    """A link that swallows everything half way ends the transfer within its limits and frees both sides."""
    swallow = False

    def stalling(dial: Dial) -> Dial:
        def connect() -> socket.socket:
            if swallow:
                raise OSError("the link is down")
            import threading

            upstream, (ours, theirs) = dial(), socket.socketpair()

            def pump(source: socket.socket, target: socket.socket) -> None:
                moved = 0
                while data := source.recv(65536):
                    moved += len(data)
                    if moved < 300_000:
                        target.sendall(data)

            threading.Thread(target=pump, args=(theirs, upstream), daemon=True).start()
            threading.Thread(target=pump, args=(upstream, theirs), daemon=True).start()
            return ours

        return connect

    with node_pair(tmp_path, kind=kind, wrap_dial=stalling, arena_bytes=32 << 20) as pair:
        wait_until(lambda: pair.source.links["sink"].lanes_up == 4)
        swallow = True
        memory = pair.stage_open("a", pair.reserve("a", 30_000))
        pair.source.staged("a", [(0, len(memory))])
        pair.source.stage_close("a")
        assert pair.wait_state("a", "landed", "aborted", "expired") == "aborted"
        wait_until(lambda: idle(pair))


@pytest.mark.parametrize("kind", KINDS)
def test_lease_runs_out(tmp_path: Path, kind: str) -> None:
    """A landing nobody renews expires, its sender is told, and both sides are empty."""
    with node_pair(tmp_path, kind=kind) as pair:
        wait_until(lambda: pair.source.links["sink"].lanes_up)
        memory = pair.stage_open("a", pair.reserve("a", 1000, lease_s=0.3))
        pair.source.staged("a", [(0, 1000)])
        assert pair.wait_state("a", "expired") == "expired"
        pair.source.staged("a", [(1000, len(memory))])
        pair.source.stage_close("a")
        wait_until(lambda: idle(pair))


@pytest.mark.parametrize("kind", KINDS)
def test_staging_of_a_dead_engine_is_freed(tmp_path: Path, kind: str) -> None:
    """An engine that dies in mid-prefill strands nothing."""
    with node_pair(tmp_path, kind=kind) as pair:
        wait_until(lambda: pair.source.links["sink"].lanes_up)
        pair.stage_open("a", pair.reserve("a", 1000))
        pair.source.staged("a", [(0, 4096)])
        pair.source.detach("engine", is_worker=True)
        assert pair.wait_state("a", "aborted") == "aborted"
        wait_until(lambda: idle(pair))


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_token_is_refused(tmp_path: Path, kind: str) -> None:
    """Knowing a transfer's id is not enough to write into its landing."""
    with node_pair(tmp_path, kind=kind) as pair:
        wait_until(lambda: pair.source.links["sink"].lanes_up)
        reservation = pair.reserve("a", 1000)
        memory = pair.stage_open("a", msgspec.structs.replace(reservation, token="a guess of 22 characters"))
        pair.source.staged("a", [(0, len(memory))])
        pair.source.stage_close("a")
        wait_until(lambda: pair.source.sent.get("a"))
        assert pair.sink.landing("a").state is LandingState.RESERVED
        assert "unknown_landing" in str(pair.source.sent.get("a"))


@pytest.mark.parametrize("kind", KINDS)
def test_full_arena_is_refused(tmp_path: Path, kind: str) -> None:
    """No room is an answer, not an accident."""
    with node_pair(tmp_path, kind=kind, arena_bytes=64 << 10) as pair, pytest.raises(Refused, match="no room"):
        pair.reserve("a", 10_000)


def garbage(rng: random.Random) -> bytes:
    """Something between noise and nearly a frame."""
    good = LaneProtocol(dialer=True).send_message(Hello("n", "b", "sink", 0, "sha256", "prfaas", ""))
    choice = rng.randrange(4)
    if choice == 0:
        return rng.randbytes(rng.randrange(1, 200))
    if choice == 1:
        return good[: rng.randrange(1, len(good))]
    if choice == 2:
        damaged = bytearray(good)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        return bytes(damaged)
    return b"PRFS" + struct.pack("<BBHQQIIII", 1, 6, 0, 1, 0, 0xFFFFFFFF, 0, 0, 0)


@pytest.mark.slow
def test_ten_thousand_garbage_frames(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """Noise on a node's port costs it nothing: no crash, no memory, no threads, and good peers still get through."""
    import resource
    import threading

    with node_pair(tmp_path, limits=FAST_LIMITS) as pair:
        wait_until(lambda: pair.source.links["sink"].lanes_up == FAST_LIMITS.num_lanes)
        at_rest = threading.active_count()
        rng = random.Random(7)
        address = pair.sink.inbound.address

        def throw(count: int) -> None:
            for index in range(count):
                with socket.create_connection(address) as sock:
                    sock.sendall(garbage(rng))
                if index % 100 == 99:  # stay below the listen queue; an overflow costs a second of TCP's patience
                    wait_for_few_threads(at_rest + 20)

        throw(1000)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        throw(9000)
        grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        record_property("grown_kib", grown_kib)
        assert grown_kib < 16 * 1024
        image = send(pair, "a", 1000)
        pair.wait_state("a", "landed")
        assert pair.landed_bytes("a") == image


@pytest.mark.parametrize("field", ["layout", "hash_seed", "name"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_peer_that_does_not_agree_is_refused_with_the_reason(tmp_path: Path, kind: str, field: str) -> None:
    """Another KV layout, another hash seed, or simply the wrong node: no lane comes up, and both sides can say why."""
    with node_pair(tmp_path, kind=kind) as pair:
        wait_until(lambda: pair.source.links["sink"].lanes_up == 4)
        sink = pair.sink.plane
        if field == "layout":
            sink.fingerprint = "another"
        elif field == "hash_seed":
            sink.identity = dataclasses.replace(sink.identity, hash_seed="another")
        else:
            sink.identity = dataclasses.replace(sink.identity, name="another")
        for sock in pair.sockets:
            shut(sock)
        code = {"layout": "layout_mismatch", "hash_seed": "hash_mismatch", "name": "wrong_node"}[field]
        wait_until(lambda: code in (pair.source.links["sink"].refusal or ""))
        wait_until(lambda: sink.counters["frames_rejected", code] > 0)
        assert pair.source.links["sink"].lanes_up == 0
        reservation = pair.reserve("a", 100)
        with pytest.raises(Refused, match="cannot be reached"):
            wait_until(lambda: _refused_open(pair, reservation))


def _refused_open(pair: NodePair, reservation: dict[str, object]) -> bool:
    """Open until the link counts as lost; a transfer that was opened before that is given up by itself."""
    pair.stage_open("a", reservation)
    pair.source.stage_close("a")
    return False


def test_another_protocol_version_is_refused(tmp_path: Path) -> None:
    """By the first header, before anything is read on its say."""
    with node_pair(tmp_path) as pair:
        hello = bytearray(LaneProtocol(dialer=True).send_message(Hello("n", "b", "sink", 0, "sha256", "prfaas", "")))
        hello[4] = 99
        with socket.create_connection(pair.sink.inbound.address) as sock:
            sock.sendall(hello)
            with contextlib.suppress(ConnectionResetError):
                assert sock.recv(1) == b""
        wait_until(lambda: pair.sink.plane.counters["frames_rejected", "version"] == 1)
