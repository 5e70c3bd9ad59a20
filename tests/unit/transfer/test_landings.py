"""Landings: who may write, when they end, and that their bytes are freed exactly once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from prfaas.core.errors import Refused
from prfaas.core.transfer.extents import Extent, ExtentAllocator
from prfaas.core.transfer.landings import ChunkVerdict, ClaimKey, Landing, Landings, Occupied
from prfaas.core.wire.node_api import LandingState

KEY = ClaimKey(5, "digest", "secret")


@pytest.fixture
def arena() -> Iterator[ExtentAllocator]:
    """Checked when the test ends."""
    arena = ExtentAllocator(10_240)
    yield arena
    arena.check()


def reserve(landings: Landings, name: str = "a", size: int = 1000, lease_s: float = 10.0) -> Landing:
    """A landing at time 0 whose handle is its name's hash."""
    return landings.reserve(
        name, token="t", claim_key=KEY, handle=hash(name) & 0xFFFF, num_bytes=size, skip_tokens=0, fingerprint="f",
        now_s=0.0, lease_s=lease_s,
    )  # fmt: skip


def write(landings: Landings, landing: Landing, start: int, end: int, lane: int = 1, good: bool = True) -> ChunkVerdict:
    """One chunk by the peer."""
    landings.begin_chunk("peer", lane, landing.handle, start, end - start)
    return landings.end_chunk("peer", lane, landing.handle, start, end - start, good=good, now_s=1.0)


def test_landed_only_when_every_byte_is_verified(arena: ExtentAllocator) -> None:
    """In any order, a damaged chunk not counted."""
    landings = Landings(arena)
    landing = reserve(landings)
    landings.open("peer", "a", "t", 1000, "f")
    assert write(landings, landing, 500, 1000) is ChunkVerdict.ACCEPTED
    assert write(landings, landing, 0, 500, good=False) is ChunkVerdict.DAMAGED
    assert landing.state is LandingState.RECEIVING
    assert write(landings, landing, 0, 500) is ChunkVerdict.LANDED
    assert write(landings, landing, 0, 500) is ChunkVerdict.ACCEPTED, "a repeat is acknowledged and discarded"
    assert landing.bytes_repeated == 500
    landings.check()


@pytest.mark.parametrize(
    ("token", "size", "fingerprint", "code"),
    [("x", 1000, "f", "unknown_landing"), ("t", 999, "f", "size_mismatch"), ("t", 1000, "g", "layout_mismatch")],
)
def test_a_sender_must_know_and_fit_the_landing(
    arena: ExtentAllocator, token: str, size: int, fingerprint: str, code: str
) -> None:
    """Each mismatch has its own answer, and an unknown id answers as a wrong token does."""
    landings = Landings(arena)
    reserve(landings)
    with pytest.raises(Refused) as refused:
        landings.open("peer", "a", token, size, fingerprint)
    assert refused.value.code == code
    with pytest.raises(Refused) as unknown:
        landings.open("peer", "b", "t", size, fingerprint)
    assert unknown.value.code == "unknown_landing"


def test_another_sender_cannot_join(arena: ExtentAllocator) -> None:
    """Opening is idempotent for one sender and closed to others; their chunks go nowhere."""
    landings = Landings(arena)
    landing = reserve(landings)
    assert landings.open("peer", "a", "t", 1000, "f") is landings.open("peer", "a", "t", 1000, "f")
    with pytest.raises(Refused):
        landings.open("other", "a", "t", 1000, "f")
    assert landings.begin_chunk("other", 2, landing.handle, 0, 10) is None


def test_a_lease_runs_out_unless_renewed_or_claimed(arena: ExtentAllocator) -> None:
    """Renewing moves it; a claim stops it."""
    landings = Landings(arena)
    reserve(landings, "a")
    reserve(landings, "b")
    claimed = reserve(landings, "c")
    landings.open("peer", "c", "t", 1000, "f")
    write(landings, claimed, 0, 1000)
    landings.claim("c", "engine", KEY)
    landings.renew("b", 5.0, 10.0)
    assert [landing.transfer_id for landing in landings.expire(10.0)] == ["a"]
    assert [landing.transfer_id for landing in landings.expire(1000.0)] == ["b"]
    assert claimed.state is LandingState.CLAIMED
    assert arena.num_live == 1
    assert landings.engine_gone("engine") == [claimed]
    assert arena.num_live == 0


def test_a_late_writer_keeps_the_extent_until_it_lets_go(arena: ExtentAllocator) -> None:
    """Freeing under a lane's receive would let it write into the next landing."""
    landings = Landings(arena)
    landing = reserve(landings)
    landings.open("peer", "a", "t", 1000, "f")
    landings.begin_chunk("peer", 1, landing.handle, 0, 100)
    landings.drop("a", "gone")
    assert arena.num_live == 1
    landings.lane_lost(1)
    assert arena.num_live == 0
    landings.check()


def test_two_lanes_never_write_one_place(arena: ExtentAllocator) -> None:
    """The second waits, and is told which lane to close; when that has ended the place is its own."""
    landings = Landings(arena)
    landing = reserve(landings)
    landings.open("peer", "a", "t", 1000, "f")
    assert landings.begin_chunk("peer", 1, landing.handle, 0, 100) is not None
    assert landings.begin_chunk("peer", 2, landing.handle, 50, 100) == Occupied((1,))
    assert isinstance(landings.begin_chunk("peer", 2, landing.handle, 100, 100), Extent), "beside it nobody waits"
    landings.lane_lost(2)
    landings.lane_lost(1)
    assert isinstance(landings.begin_chunk("peer", 2, landing.handle, 50, 100), Extent)
    assert write(landings, landing, 50, 150, lane=2) is ChunkVerdict.ACCEPTED


def test_a_chunk_with_other_borders_is_refused(arena: ExtentAllocator) -> None:
    """Of a chunk that is verified in part, the rest cannot be taken."""
    landings = Landings(arena)
    landing = reserve(landings)
    landings.open("peer", "a", "t", 1000, "f")
    write(landings, landing, 0, 100)
    assert write(landings, landing, 50, 150) is ChunkVerdict.MISPLACED
    assert write(landings, landing, 950, 1050) is ChunkVerdict.MISPLACED


def test_chunks_outside_the_landing_touch_nothing(arena: ExtentAllocator) -> None:
    """Whatever offset a sender names."""
    landings = Landings(arena)
    landing = reserve(landings)
    landings.open("peer", "a", "t", 1000, "f")
    for offset in (901, 1000, 2**63):
        assert landings.begin_chunk("peer", 1, landing.handle, offset, 100) is None


def test_final_records_are_bounded(arena: ExtentAllocator) -> None:
    """The oldest is forgotten."""
    landings = Landings(arena, max_final_records=3)
    for index in range(5):
        reserve(landings, f"x{index}")
        landings.drop(f"x{index}", "test")
    assert [landings.find(f"x{index}") is None for index in range(5)] == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("b", KEY),
        ("a", ClaimKey(5, "digest", "another secret")),
        ("a", ClaimKey(5, "digest", "")),
        ("a", ClaimKey(5, "another digest", "secret")),
        ("a", ClaimKey(6, "digest", "secret")),
        ("a", ClaimKey(5, "digest", "s\u00e9cret\udc80")),
    ],
    ids=["id", "secret", "no secret", "digest", "length", "not ascii"],
)
def test_a_claim_needs_id_secret_and_prompt(arena: ExtentAllocator, name: str, key: ClaimKey) -> None:
    """A wrong one of them gets the one answer that an unknown landing gets, whatever state the landing is in."""
    landings = Landings(arena)
    landing = reserve(landings)
    texts = set()
    for _ in range(2):
        with pytest.raises(Refused) as refused:
            landings.claim(name, "engine", key)
        assert refused.value.code == "unknown_landing"
        texts.add(refused.value.message)
        if landing.state is LandingState.RESERVED:
            landings.open("peer", "a", "t", 1000, "f")
            write(landings, landing, 0, 1000)
    with pytest.raises(Refused) as unknown:
        landings.claim("never reserved", "engine", KEY)
    assert texts == {unknown.value.message}
    assert landing.state is LandingState.LANDED
    assert landings.claim("a", "engine", KEY) is landing


def test_only_who_knows_the_secret_can_decline(arena: ExtentAllocator) -> None:
    """A request that names somebody's landing does not end it; its own engine may, whatever it made of the prompt."""
    landings = Landings(arena)
    landing = reserve(landings)
    assert landings.declined("a", "guess", "why", 5) is None
    assert landing.state is LandingState.RESERVED
    assert landings.declined("a", KEY.secret, "why", 5) is landing
    assert (landing.state, landing.reason, landing.tokens_recomputed) == (LandingState.ABORTED, "why", 5)


def test_another_engine_cannot_end_a_claim(arena: ExtentAllocator) -> None:
    """What it read after its claim was over must not be used, and the new loader's claim stays."""
    landings = Landings(arena)
    landing = reserve(landings)
    landings.open("peer", "a", "t", 1000, "f")
    write(landings, landing, 0, 1000)
    landings.claim("a", "engine", KEY)
    assert not landings.consumed("a", "former life", 4, 1)
    assert landings.consumed("a", "engine", 4, 1)
    assert not landings.consumed("a", "engine", 4, 1), "a second report finds the claim over"


def test_neither_records_nor_reprs_show_secrets(arena: ExtentAllocator) -> None:
    """They go into answers, assertions and logs."""
    landing = reserve(Landings(arena))
    for shown in (repr(landing), str(landing.record())):
        assert KEY.secret not in shown
        assert "token='t'" not in shown


def test_limits_are_answers(arena: ExtentAllocator) -> None:
    """A full arena, too many landings, and a name that is taken."""
    landings = Landings(arena, max_landings=2)
    reserve(landings)
    for size, code in ((1000, "exists"), (100_000, "arena_full")):
        with pytest.raises(Refused) as refused:
            reserve(landings, "a" if code == "exists" else "b", size)
        assert refused.value.code == code
    reserve(landings, "b")
    with pytest.raises(Refused) as refused:
        reserve(landings, "c")
    assert refused.value.code == "too_many_landings"


class LandingsMachine(RuleBasedStateMachine):
    """Any order of operations keeps the invariants, and in the end nothing is held."""

    names = st.sampled_from(["a", "b", "c"])
    lanes = st.integers(1, 3)

    def __init__(self) -> None:
        super().__init__()
        self.arena = ExtentAllocator(2560)
        self.landings = Landings(self.arena)
        self.now_s = 0.0
        self.generation = 0
        self.writing: dict[int, tuple[int, int, int]] = {}

    def landing(self, name: str) -> Landing | None:
        return self.landings.find(f"{name}{self.generation}")

    @rule(name=names)
    def reserve(self, name: str) -> None:
        try:
            self.landings.reserve(
                f"{name}{self.generation}", token="t", claim_key=KEY, handle=ord(name) + 1000 * self.generation,
                num_bytes=900, skip_tokens=0, fingerprint="f", now_s=self.now_s, lease_s=5.0,
            )  # fmt: skip
        except Refused:
            return
        self.landings.open("peer", f"{name}{self.generation}", "t", 900, "f")

    @rule(name=names, lane=lanes, third=st.integers(0, 2))
    def begin(self, name: str, lane: int, third: int) -> None:
        landing = self.landing(name)
        if landing is None or lane in self.writing:
            return
        place = self.landings.begin_chunk("peer", lane, landing.handle, third * 300, 300)
        if isinstance(place, Occupied):
            assert lane not in place.lanes
            assert all(self.writing[rival] == (landing.handle, third * 300, 300) for rival in place.lanes)
            return
        self.writing[lane] = (landing.handle, third * 300, 300)

    @rule(lane=lanes, good=st.booleans())
    def end(self, lane: int, good: bool) -> None:
        if lane in self.writing:
            handle, offset, length = self.writing.pop(lane)
            self.landings.end_chunk("peer", lane, handle, offset, length, good=good, now_s=self.now_s)

    @rule(lane=lanes)
    def lose(self, lane: int) -> None:
        self.writing.pop(lane, None)
        self.landings.lane_lost(lane)

    @rule(name=names, how=st.sampled_from(["drop", "claim", "consume", "decline", "engine", "sender"]))
    def act(self, name: str, how: str) -> None:
        key = f"{name}{self.generation}"
        if how == "drop":
            self.landings.drop(key, "test")
        elif how == "claim":
            landing = self.landing(name)
            if landing is not None and landing.state is LandingState.LANDED:
                self.landings.claim(key, "engine", KEY)
        elif how == "consume":
            self.landings.consumed(key, "engine", 4, 1)
        elif how == "decline":
            self.landings.declined(key, KEY.secret, "test", 5)
        elif how == "engine":
            self.landings.engine_gone("engine")
        else:
            self.landings.sender_gone("peer", "test")

    @rule(seconds=st.sampled_from([1.0, 6.0]))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self.landings.expire(self.now_s)
        self.generation += 1

    @invariant()
    def holds(self) -> None:
        self.landings.check()
        self.arena.check()

    def teardown(self) -> None:
        for lane in range(1, 4):
            self.landings.lane_lost(lane)
        self.landings.engine_gone("engine")
        self.landings.expire(self.now_s + 100.0)
        assert self.arena.num_live == 0


TestLandingsMachine = LandingsMachine.TestCase
TestLandingsMachine.settings = settings(max_examples=60, stateful_step_count=40)
