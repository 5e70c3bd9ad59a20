"""Sender's and receiver's ledgers over lanes that lose, damage and cut, by seed. A failure prints its seed.

A lane ends for its sender at once. At the receiver its thread ends later: until it gets a core it still counts as
writing, and may even finish its chunk from what the kernel holds.
"""

import contextlib
import itertools
import random

import pytest

from prfaas.core.transfer.extents import Extent, ExtentAllocator
from prfaas.core.transfer.landings import ChunkVerdict, ClaimKey, Landings
from prfaas.core.transfer.outbound import Chunk, Outbound
from prfaas.core.wire.node_api import LandingState, TransferState

CHUNK = 1000


class Waiting(Exception):
    """The payload stays in the socket for now."""


class World:
    """Two ledgers, some lanes, and a memory on each side. Every step of it is drawn from one seed. `waking` is the
    chance that the thread of a cut lane gets a core at a step."""

    def __init__(self, seed: int, waking: float = 1.0) -> None:
        self.waking = waking
        self.random = random.Random(seed)
        self.now_s = 0.0
        self.out = Outbound(CHUNK, credit_bytes=8 * CHUNK)
        self.arena = ExtentAllocator(1 << 20)
        self.landings = Landings(self.arena)
        self.memory = bytearray(1 << 20)
        self.images: dict[str, bytes] = {}
        self.unstaged: dict[str, list[tuple[int, int]]] = {}
        self.lanes: dict[int, list[Chunk]] = {lane: [] for lane in range(4)}
        self.next_lane = 4
        #: Lanes that are cut, whose receiving thread has not ended, and what each is writing.
        self.ending: dict[int, tuple[Chunk, Extent]] = {}
        self.results: dict[str, TransferState] = {}
        self.reasons: list[str] = []

    def open(self, name: str, size: int) -> None:
        handle = len(self.images) + 1
        self.landings.reserve(
            name, token="t", claim_key=ClaimKey(2, "d", "s"), handle=handle, num_bytes=size, skip_tokens=0,
            fingerprint="f", now_s=self.now_s, lease_s=1e9,
        )  # fmt: skip
        self.images[name] = self.random.randbytes(size)
        self.out.open(name, size, self.now_s, deadline_s=1e9)
        self.landings.open("peer", name, "t", size, "f")
        self.out.opened(name, handle)
        cuts = sorted({0, size, *(self.random.randrange(size) for _ in range(6))})
        self.unstaged[name] = list(itertools.pairwise(cuts))
        self.random.shuffle(self.unstaged[name])

    def step(self, trouble: float) -> None:
        self.now_s += 0.01
        for name, ranges in self.unstaged.items():
            if ranges and self.random.random() < 0.3:
                start, end = ranges.pop()
                self.out.stage(name, start, end, self.now_s)
        for ending in list(self.ending):
            if self.random.random() < self.waking:
                self.end(ending)
        lane = self.random.choice(list(self.lanes))
        if self.random.random() < trouble:
            self.cut(lane)
        elif self.random.random() < 0.5 and len(self.lanes[lane]) < 3:
            chunk = self.out.next_chunk(lane, self.now_s)
            if chunk is not None:
                self.lanes[lane].append(chunk)
        elif self.lanes[lane]:
            self.deliver(lane, trouble)
        self.out.check()
        self.landings.check()
        self.arena.check()

    def place(self, lane: int, chunk: Chunk) -> Extent | None:
        """Of a chunk that has begun to come in. Raises Waiting while another lane's thread is writing there."""
        place = self.landings.begin_chunk("peer", lane, chunk.handle, chunk.offset, chunk.length)
        if place is not None and not isinstance(place, Extent):
            assert place.lanes
            assert set(place.lanes) <= set(self.ending), "only lanes that the sender gave up are in the way"
            raise Waiting
        return place

    def cut(self, lane: int) -> None:
        """The connection breaks, sometimes in the middle of a chunk."""
        queue = self.lanes.pop(lane)
        self.lanes[self.next_lane] = []
        self.next_lane += 1
        self.out.lane_lost(lane)
        if queue and self.random.random() < 0.5:
            with contextlib.suppress(Waiting):
                extent = self.place(lane, queue[0])
                if extent is not None:
                    self.memory[extent.start : extent.start + extent.size // 2] = bytes(extent.size // 2)
                    self.ending[lane] = queue[0], extent
                    return
        self.landings.lane_lost(lane)

    def end(self, lane: int) -> None:
        """The receiving thread of a lane that was cut gets a core. Its answer reaches nobody."""
        chunk, extent = self.ending.pop(lane)
        if self.random.random() < 0.3:
            self.memory[extent.start : extent.end] = self.image_of(chunk)
            where = chunk.handle, chunk.offset, chunk.length
            self.landings.end_chunk("peer", lane, *where, good=True, now_s=self.now_s)
        self.landings.lane_lost(lane)

    def image_of(self, chunk: Chunk) -> bytes:
        return self.images[chunk.transfer_id][chunk.offset : chunk.offset + chunk.length]

    def deliver(self, lane: int, trouble: float) -> None:
        chunk = self.lanes[lane][0]
        try:
            extent = self.place(lane, chunk)
        except Waiting:
            return
        del self.lanes[lane][0]
        data = self.image_of(chunk)
        good = self.random.random() >= trouble
        if extent is not None:
            self.memory[extent.start : extent.end] = data if good else bytes(len(data))
        verdict = self.landings.end_chunk(
            "peer", lane, chunk.handle, chunk.offset, chunk.length, good=good, now_s=self.now_s
        )
        if self.random.random() < trouble:  # the answer is lost with its lane
            self.cut(lane)
        elif verdict in (ChunkVerdict.ACCEPTED, ChunkVerdict.LANDED):
            done = self.out.acked(chunk.handle, chunk.offset, self.now_s)
            if done is not None:
                self.results[done.transfer_id] = done.state
        else:
            failed = self.out.nacked(chunk.handle, chunk.offset, self.now_s)
            if failed is not None:
                self.results[failed.transfer_id] = failed.state
                self.reasons.append(failed.reason or "")
                self.landings.drop(failed.transfer_id, "aborted by sender")


@pytest.mark.parametrize("seed", range(200))
def test_every_transfer_lands_whole_or_not_at_all(seed: int) -> None:
    """Whatever lanes lose or damage, LANDED means equal bytes, and afterwards no byte of the arena is held."""
    print(f"seed {seed}")
    run_to_the_end(World(seed))


@pytest.mark.parametrize("seed", range(60))
def test_waiting_for_a_dead_lanes_thread_is_not_damage(seed: int) -> None:
    """On a busy machine that thread wakes late: dozens of steps after its chunk was sent again. Every transfer lands."""
    print(f"seed {seed}")
    world = World(seed, waking=0.01)
    run_to_the_end(world)
    assert world.reasons == []
    assert set(world.results.values()) == {TransferState.COMMITTED}


def run_to_the_end(world: World) -> None:
    """Five transfers over lanes with trouble; what landed has equal bytes, and nothing is held in the end."""
    names = [f"x{index}" for index in range(5)]
    for name in names:
        world.open(name, world.random.randrange(1, 20 * CHUNK))
    for _ in range(20_000):
        world.step(trouble=0.05)
        if len(world.results) == len(names):
            break
    assert len(world.results) == len(names), "liveness: every transfer ends"
    for lane in list(world.ending):
        world.end(lane)
    for name in names:
        landing = world.landings.find(name)
        assert landing is not None
        if world.results[name] is TransferState.COMMITTED:
            assert landing.state is LandingState.LANDED
            start = landing.extent.start
            assert bytes(world.memory[start : start + landing.extent.size]) == world.images[name]
        world.landings.drop(name, "test is over")
    assert world.out.bytes_in_flight == 0
    assert world.arena.num_live == 0
