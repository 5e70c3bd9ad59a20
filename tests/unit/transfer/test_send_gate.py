"""How many lanes send at once, and which have fallen behind."""

from __future__ import annotations

from prfaas.core.link.lane_plan import senders_at_once
from prfaas.core.transfer.send_gate import QUICK_S, SLOW_S, SendGate


def test_the_limit_holds_for_lanes_that_are_quick() -> None:
    """One that waits for the network does not keep another from the core."""
    turns = SendGate()
    turns.begun(1, (0, 0), 100, 0.0)
    assert turns.may_begin(0.0), "no limit by default"
    turns.limit = 1
    assert not turns.may_begin(0.0)
    assert turns.may_begin(QUICK_S), "the first one is stuck"
    turns.handed_over(1)
    assert turns.may_begin(0.01)
    turns.begun(1, (0, 1), 100, 0.02)
    turns.lost(1)
    assert turns.may_begin(0.02)


def test_the_same_lanes_go_first() -> None:
    """A later lane sends only when those before it are stuck."""
    turns = SendGate()
    turns.limit = 1
    assert turns.may_begin(0.0, before=[])
    assert not turns.may_begin(0.0, before=[1])
    turns.begun(1, (0, 0), 100, 0.0)
    assert not turns.may_begin(QUICK_S / 2, before=[1])
    assert turns.may_begin(QUICK_S, before=[1])
    assert not turns.may_begin(QUICK_S, before=[1, 2])


def test_half_of_the_cores_send() -> None:
    """And never none."""
    assert [senders_at_once(cores) for cores in (1, 2, 3, 16)] == [1, 1, 1, 8]


def test_a_lane_that_falls_behind_is_named() -> None:
    """Judged by what the others need for as many bytes; not before two seconds, and not for being given more to send."""
    turns = SendGate()
    for lane in (2, 3):
        turns.begun(lane, (0, lane), 1000, 0.0)
        turns.answered((0, lane), 0.05)
    turns.begun(1, (0, 1), 1000, 0.0)
    assert turns.slow(SLOW_S - 0.01) == set()
    assert turns.slow(SLOW_S + 0.01) == {1}
    turns.over(0)
    assert turns.slow(60.0) == set(), "its transfer has ended"
    turns.begun(1, (0, 1), 1000, 0.0)
    turns.lost(1)
    turns.begun(1, (0, 1), 100_000, 0.0)
    assert turns.slow(SLOW_S + 0.5) == set()


def test_all_lanes_slow_is_no_slow_lane() -> None:
    """A link that stalls as a whole has nothing to move chunks to."""
    turns = SendGate()
    for lane in (1, 2):
        turns.begun(lane, (0, lane), 1000, 0.0)
        turns.answered((0, lane), 0.1)
        turns.begun(lane, (1, lane), 1000, 0.1)
    assert turns.slow(60.0) == set()
