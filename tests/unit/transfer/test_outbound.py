"""What leaves next, how much may be in flight, and how transfers end."""

from __future__ import annotations

import pytest

from prfaas.core.errors import Refused
from prfaas.core.transfer.outbound import MAX_CHUNK_REPEATS, MAX_WAIT_S, Outbound
from prfaas.core.wire.node_api import TransferState


def opened(ledger: Outbound, name: str, size: int, now_s: float = 0.0, deadline_s: float = 100.0) -> None:
    """A transfer that is staged whole and accepted by the peer."""
    ledger.open(name, size, now_s, deadline_s)
    ledger.stage(name, 0, size, now_s)
    ledger.opened(name, ord(name))


def test_fewest_bytes_left_first_until_one_has_waited_too_long() -> None:
    """Shortest remaining first, with an age bound."""
    ledger = Outbound(100, 10_000)
    opened(ledger, "l", 5000)
    opened(ledger, "s", 300)
    assert [getattr(ledger.next_chunk(1, 0.1), "transfer_id") for _ in range(3)] == ["s", "s", "s"]  # noqa: B009
    opened(ledger, "t", 300, now_s=0.2)
    late = MAX_WAIT_S + 0.01
    first, second = ledger.next_chunk(1, late), ledger.next_chunk(1, late)
    assert first is not None
    assert second is not None
    assert (first.transfer_id, second.transfer_id) == ("l", "t")
    ledger.check()


def test_credit_bounds_what_is_in_flight() -> None:
    """No chunk leaves that the receiver has not room for; acknowledgements make room."""
    ledger = Outbound(100, 250)
    opened(ledger, "a", 1000)
    chunks = [ledger.next_chunk(1, 0.0) for _ in range(5)]
    assert [chunk is not None for chunk in chunks] == [True, True, False, False, False]
    assert ledger.bytes_in_flight == 200
    ledger.acked(ord("a"), 0, 0.0)
    assert ledger.next_chunk(1, 0.0) is not None
    ledger.check()


def test_nothing_leaves_before_it_is_staged_or_accepted() -> None:
    """Staged bytes wait for the peer's Opened."""
    ledger = Outbound(100, 1000)
    ledger.open("a", 300, 0.0, 10.0)
    ledger.stage("a", 100, 200, 0.0)
    assert ledger.next_chunk(1, 0.0) is None
    ledger.opened("a", 1)
    chunk = ledger.next_chunk(1, 0.0)
    assert chunk is not None
    assert (chunk.offset, chunk.length) == (100, 100)
    assert ledger.next_chunk(1, 0.0) is None


def test_a_repeat_keeps_the_borders_of_its_first_sending() -> None:
    """Though its neighbours are waiting and would make one larger chunk."""
    ledger = Outbound(100, 1000)
    ledger.open("a", 300, 0.0, 10.0)
    ledger.opened("a", 1)
    ledger.stage("a", 50, 120, 0.0)
    first = ledger.next_chunk(1, 0.0)
    ledger.stage("a", 0, 50, 0.0)
    ledger.stage("a", 120, 300, 0.0)
    assert ledger.lane_lost(1) == 70
    again = ledger.next_chunk(2, 0.0)
    assert first is not None
    assert again is not None
    assert (again.offset, again.length, again.is_repeat) == (first.offset, first.length, True)
    ledger.check()


def test_commits_exactly_once_when_all_is_acknowledged() -> None:
    """Late and unknown acknowledgements change nothing."""
    ledger = Outbound(100, 1000)
    opened(ledger, "a", 150)
    while ledger.next_chunk(1, 0.0):
        pass
    assert ledger.acked(ord("a"), 0, 1.0) is None
    done = ledger.acked(ord("a"), 100, 1.0)
    assert done is not None
    assert done.state is TransferState.COMMITTED
    assert ledger.acked(ord("a"), 100, 1.0) is None
    assert ledger.acked(999, 0, 1.0) is None
    assert ledger.live() == []


def test_a_chunk_that_never_comes_whole_aborts() -> None:
    """After the stated number of repeats."""
    ledger = Outbound(100, 1000)
    opened(ledger, "a", 100)
    for _ in range(MAX_CHUNK_REPEATS):
        assert ledger.next_chunk(1, 0.0) is not None
        assert ledger.nacked(ord("a"), 0, 0.0) is None
    ledger.next_chunk(1, 0.0)
    aborted = ledger.nacked(ord("a"), 0, 0.0)
    assert aborted is not None
    assert "damaged" in str(aborted.reason)
    assert ledger.bytes_in_flight == 0


def test_deadlines_and_early_ends_abort() -> None:
    """Past its deadline; closed before it was staged whole; staged wrongly."""
    ledger = Outbound(100, 1000)
    opened(ledger, "a", 100, deadline_s=5.0)
    ledger.next_chunk(1, 0.0)
    assert [t.transfer_id for t in ledger.expire(5.0)] == ["a"]
    ledger.open("b", 100, 0.0, 10.0)
    ledger.stage("b", 0, 50, 0.0)
    assert ledger.close("b", 0.0) is not None
    for start, end in ((-1, 5), (5, 5), (90, 101), (0, 20)):
        ledger.open("c", 100, 0.0, 10.0)
        ledger.stage("c", 10, 30, 0.0)
        ledger.stage("c", start, end, 0.0)
        assert ledger.find("c") is None
    assert ledger.bytes_in_flight == 0
    ledger.check()


def test_a_name_is_used_once_at_a_time() -> None:
    """Opening again is refused."""
    ledger = Outbound(100, 1000)
    ledger.open("a", 1, 0.0, 1.0)
    with pytest.raises(Refused):
        ledger.open("a", 1, 0.0, 1.0)
