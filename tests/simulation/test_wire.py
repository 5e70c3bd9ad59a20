"""Sender's and receiver's ledgers over lanes that lose, damage and cut, by seed. A failure prints its seed."""

import itertools
import random

import pytest

from prfaas.core.cache.extents import ExtentAllocator
from prfaas.core.cache.landings import ChunkVerdict, Landings, LandingState
from prfaas.core.wire.outbound import Chunk, Outbound, TransferState

CHUNK = 1000


class World:
    """Two ledgers, some lanes, and a memory on each side. Every step of it is drawn from one seed."""

    def __init__(self, seed: int) -> None:
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
        self.results: dict[str, TransferState] = {}

    def open(self, name: str, size: int) -> None:
        handle = len(self.images) + 1
        self.landings.reserve(
            name, token="t", handle=handle, num_bytes=size, num_prompt_tokens=2, skip_tokens=0,
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

    def cut(self, lane: int) -> None:
        queue = self.lanes.pop(lane)
        if queue and self.random.random() < 0.5:
            chunk = queue[0]
            extent = self.landings.begin_chunk("peer", lane, chunk.handle, chunk.offset, chunk.length)
            if extent is not None:
                self.memory[extent.start : extent.start + extent.size // 2] = bytes(extent.size // 2)
        self.landings.lane_lost(lane)
        self.out.lane_lost(lane)
        self.lanes[self.next_lane] = []
        self.next_lane += 1

    def deliver(self, lane: int, trouble: float) -> None:
        chunk = self.lanes[lane].pop(0)
        data = self.images[chunk.transfer_id][chunk.offset : chunk.offset + chunk.length]
        good = self.random.random() >= trouble
        extent = self.landings.begin_chunk("peer", lane, chunk.handle, chunk.offset, chunk.length)
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
                self.landings.drop(failed.transfer_id, "aborted by sender")


@pytest.mark.parametrize("seed", range(200))
def test_every_transfer_lands_whole_or_not_at_all(seed: int) -> None:
    """Whatever lanes lose or damage, LANDED means equal bytes, and afterwards no byte of the arena is held."""
    print(f"seed {seed}")
    world = World(seed)
    names = [f"x{index}" for index in range(5)]
    for name in names:
        world.open(name, world.random.randrange(1, 20 * CHUNK))
    for _ in range(20_000):
        world.step(trouble=0.05)
        if len(world.results) == len(names):
            break
    assert len(world.results) == len(names), "liveness: every transfer ends"
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
