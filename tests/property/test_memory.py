"""Extents and intervals against models that cannot be wrong: a bytearray and a set."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from prfaas.core.transfer.extents import ExtentAllocator
from prfaas.core.transfer.intervals import IntervalSet

spans = st.tuples(st.integers(0, 60), st.integers(0, 60)).map(lambda pair: (min(pair), max(pair)))


@given(st.lists(st.tuples(st.booleans(), spans), max_size=40), spans)
def test_intervals_are_a_set_of_numbers(steps: list[tuple[bool, tuple[int, int]]], probe: tuple[int, int]) -> None:
    """Adding, removing and asking agree with a plain set after any history."""
    intervals, model = IntervalSet(), set[int]()
    for add, (start, end) in steps:
        if add:
            assert intervals.add(start, end) == len(set(range(start, end)) - model)
            model |= set(range(start, end))
        else:
            intervals.remove(start, end)
            model -= set(range(start, end))
        assert intervals.size == len(model)
        assert {number for first, last in intervals for number in range(first, last)} == model
        pairs = list(intervals)
        assert all(left[1] < right[0] for left, right in itertools.pairwise(pairs)), "coalesced"
    wanted = set(range(*probe))
    assert intervals.overlaps(*probe) == bool(wanted & model) or not wanted
    if wanted:
        assert intervals.contains(*probe) == (wanted <= model)
    first = intervals.first()
    assert (first is None) == (not model)
    assert first is None or first[0] == min(model)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 3000)), max_size=60))
def test_extents_never_overlap_and_all_come_back(steps: list[tuple[bool, int]]) -> None:
    """Every live extent owns its bytes alone; freeing all leaves one hole."""
    arena, live = ExtentAllocator(8192), []
    for free, number in steps:
        if free and live:
            arena.free(live.pop(number % len(live)))
        else:
            extent = arena.allocate(number)
            if extent is not None:
                live.append(extent)
        arena.check()
        owned = [position for extent in live for position in range(extent.start, extent.end)]
        assert len(owned) == len(set(owned))
    for extent in live:
        arena.free(extent)
    assert arena.allocate(8192) is not None
