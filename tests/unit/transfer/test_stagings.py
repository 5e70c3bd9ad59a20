"""Stagings: freed when the engine has stopped writing and the transfer has ended, not before, and once."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from prfaas.core.errors import Refused
from prfaas.core.transfer.extents import Extent, ExtentAllocator
from prfaas.core.transfer.ledgers import Ledgers
from prfaas.core.transfer.stagings import Staging, Stagings


@pytest.mark.parametrize("engine_first", [True, False])
def test_freed_when_both_have_ended(engine_first: bool) -> None:
    """In either order."""
    arena = ExtentAllocator(1280)
    stagings = Stagings(arena)
    staging = stagings.open("a", "sink", 1000, "engine")
    first, second = lambda: stagings.engine_stopped(staging), lambda: stagings.transfer_ended("a")
    if not engine_first:
        first, second = second, first
    first()
    assert arena.num_live == 1
    assert stagings.find("a") is staging
    second()
    assert arena.num_live == 0
    assert stagings.find("a") is None


def test_a_name_and_a_full_arena_are_refused() -> None:
    """Each with its code; nothing is held by what was refused."""
    arena = ExtentAllocator(1280)
    stagings = Stagings(arena)
    stagings.open("a", "sink", 1000, "engine")
    for name, code in (("a", "exists"), ("b", "arena_full")):
        with pytest.raises(Refused) as refused:
            stagings.open(name, "sink", 1000, "engine")
        assert refused.value.code == code
    assert arena.num_live == 1


def test_a_withdrawn_staging_leaves_its_name_free() -> None:
    """A late word about the old one does not touch the new one."""
    arena = ExtentAllocator(1280)
    stagings = Stagings(arena)
    old = stagings.open("a", "sink", 1000, "engine")
    stagings.withdraw(old)
    new = stagings.open("a", "sink", 1000, "engine")
    stagings.engine_stopped(old)
    assert stagings.find("a") is new
    assert new.engine_writes
    assert arena.num_live == 1


def test_an_extent_without_an_owner_is_found() -> None:
    """Lost bytes, bytes with two owners and bytes that were freed too early: `check` names each."""
    lost = Ledgers(1280)
    extent = lost.extents.allocate(100)
    with pytest.raises(AssertionError, match="start=0"):
        lost.check()
    assert extent is not None
    lost.extents.free(extent)
    lost.check()
    early = Ledgers(1280)
    early.extents.free(early.stagings.open("a", "sink", 100, "engine").extent)
    with pytest.raises(AssertionError, match="'transfer_id': 'a'"):
        early.check()


class StagingsMachine(RuleBasedStateMachine):
    """Any order of operations agrees with a model: who still holds what."""

    names = st.sampled_from(["a", "b", "c"])
    engines = st.sampled_from(["e1", "e2"])

    def __init__(self) -> None:
        super().__init__()
        self.ledgers = Ledgers(2560)
        self.stagings = self.ledgers.stagings
        #: Every staging that ever was, with those that hold it.
        self.holders: dict[Staging, set[str]] = {}

    def live(self, name: str) -> Staging | None:
        found = [staging for staging, by in self.holders.items() if staging.transfer_id == name and by]
        assert len(found) <= 1
        return found[0] if found else None

    @rule(name=names, engine=engines, size=st.integers(1, 1500))
    def open(self, name: str, engine: str, size: int) -> None:
        before = self.live(name)
        try:
            staging = self.stagings.open(name, "sink", size, engine)
        except Refused as refused:
            assert (refused.code == "exists") == (before is not None)
            return
        assert before is None
        self.holders[staging] = {"engine", "transfer"}

    @rule(data=st.data())
    def engine_stops(self, data: st.DataObject) -> None:
        """Also one whose staging has long been over."""
        if self.holders:
            staging = data.draw(st.sampled_from(list(self.holders)))
            self.stagings.engine_stopped(staging)
            self.holders[staging].discard("engine")

    @rule(name=names)
    def transfer_ends(self, name: str) -> None:
        self.stagings.transfer_ended(name)
        staging = self.live(name)
        if staging is not None:
            self.holders[staging].discard("transfer")

    @rule(name=names)
    def withdraw(self, name: str) -> None:
        staging = self.live(name)
        if staging is not None:
            self.stagings.withdraw(staging)
            self.holders[staging].clear()

    @rule(engine=engines)
    def engine_goes(self, engine: str) -> None:
        for staging in self.stagings.of_engine(engine):
            assert staging.engine == engine
            self.stagings.engine_stopped(staging)
            self.holders[staging].discard("engine")

    @invariant()
    def holds(self) -> None:
        self.ledgers.check()
        held = {staging.transfer_id: staging for staging, by in self.holders.items() if by}
        assert dict(self.stagings.live()) == held
        extents: list[Extent] = sorted(staging.extent for staging in held.values())
        assert all(a.end <= b.start for a, b in itertools.pairwise(extents))

    def teardown(self) -> None:
        for staging, by in self.holders.items():
            if by:
                self.stagings.withdraw(staging)
        assert self.ledgers.extents.num_live == 0


TestStagingsMachine = StagingsMachine.TestCase
TestStagingsMachine.settings = settings(max_examples=80, stateful_step_count=40)
