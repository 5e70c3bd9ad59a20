"""What ends on its own is started again, and a broken process does not keep the machine busy."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from prfaas.launch.restarts import FIRST_S, MOST_S, WELL_S, Restarts


def test_who_ran_well_is_back_soon_and_who_did_not_waits_longer_and_longer() -> None:
    """From a second to a minute; a good run forgets what was before."""
    restarts, now_s = Restarts(), 100.0
    restarts.started("node", now_s)
    now_s += WELL_S
    waits_s = []
    for _ in range(8):
        waits_s.append(restarts.ended("node", now_s))
        assert restarts.due(now_s + waits_s[-1] - 1e-6) == []
        now_s += waits_s[-1]
        assert restarts.due(now_s) == ["node"]
        restarts.started("node", now_s)
        assert restarts.due(now_s + 1e6) == []
    assert waits_s == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    assert restarts.ended("node", now_s + WELL_S) == FIRST_S


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 30)), max_size=30))
def test_each_process_waits_by_itself(ends: list[tuple[str, float]]) -> None:
    """Never less than a second, never more than a minute, whatever others do."""
    alone, together = Restarts(), Restarts()
    now_s = 0.0
    for name in "ab":
        together.started(name, now_s)
    alone.started("a", now_s)
    for name, lived_s in ends:
        now_s += lived_s
        wait_s = together.ended(name, now_s)
        assert FIRST_S <= wait_s <= MOST_S
        together.started(name, now_s)
        if name == "a":
            assert alone.ended(name, now_s) == wait_s
            alone.started(name, now_s)
