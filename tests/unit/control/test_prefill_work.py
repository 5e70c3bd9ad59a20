"""What an instance still has to do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas.core.control.prefill_work import PrefillWork


def test_it_is_done_in_order() -> None:
    """Each takes its own time from when its turn came."""
    work = PrefillWork()
    work.add("a", 2.0, 10.0)
    work.add("b", 3.0, 11.0)
    assert work.remaining_s(11.0) == pytest.approx(4.0)
    assert work.remove("a", 12.5) == pytest.approx(2.5)
    assert work.remaining_s(12.5) == pytest.approx(3.0)
    assert work.remove("b", 15.0) == pytest.approx(2.5)
    assert work.remaining_s(20.0) == 0.0


def test_who_is_late_is_expected_to_stay_so() -> None:
    """As late again as it is: an engine that hangs gets less and less."""
    work = PrefillWork()
    work.add("a", 2.0, 0.0)
    assert work.first_done_s == 2.0
    assert [work.remaining_s(at_s) for at_s in (1.0, 2.0, 3.0, 12.0)] == [1.0, 0.0, 1.0, 10.0]


def test_who_ends_out_of_turn_says_nothing_of_its_time() -> None:
    """Nobody knows when its turn came."""
    work = PrefillWork()
    work.add("a", 2.0, 0.0)
    work.add("b", 2.0, 0.0)
    assert work.remove("b", 1.0) is None
    assert work.remove("b", 1.0) is None
    assert list(work) == ["a"]


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.floats(0.01, 9.0), st.booleans()), max_size=40))
def test_nothing_is_left_of_what_was_removed(steps: list[tuple[str, float, bool]]) -> None:
    """Never below zero, and zero when it is empty."""
    work, now_s = PrefillWork(), 0.0
    for name, seconds, adds in steps:
        now_s += seconds / 3
        if adds and name not in list(work):
            work.add(name, seconds, now_s)
        else:
            work.remove(name, now_s)
        assert work.remaining_s(now_s) >= 0.0
        assert bool(len(work)) or work.remaining_s(now_s) == 0.0
