"""Lanes and chunks from what is known of a link, and the trial between two congestion controls."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas.core.link.congestion_trial import TRIAL_S, CongestionTrial, LaneProgress
from prfaas.core.link.lane_plan import MAX_LANES, MIN_CHUNK_BYTES, chunk_bytes, next_chunk_bytes, num_lanes

GBPS = 125e6


@pytest.mark.parametrize(
    ("gbps", "rtt_s", "congestion", "lanes"),
    [
        (None, None, "bbr", 4),
        (None, None, "cubic", 8),
        (2, 0.02, "bbr", 4),
        (2, 0.08, "bbr", 8),
        (2, 0.08, "cubic", 16),
        (10, 0.02, "bbr", 10),
        (100, 0.05, "bbr", MAX_LANES),
    ],
)
def test_lanes(gbps: float | None, rtt_s: float | None, congestion: str, lanes: int) -> None:
    """Enough windows for the link, within bounds; twice as many where a loss halves a window."""
    assert num_lanes(None if gbps is None else gbps * GBPS, rtt_s, congestion=congestion) == lanes


@given(st.one_of(st.none(), st.floats(0, 1e12)), st.integers(0, 64), st.integers(4096, 1 << 26))
def test_chunks_stay_within_what_was_agreed(capacity: float | None, lanes: int, limit: int) -> None:
    """Never over the limit of either end, and never so small that headers weigh."""
    assert min(limit, MIN_CHUNK_BYTES) <= chunk_bytes(capacity, lanes, limit) <= limit


def test_chunks_grow_with_the_link() -> None:
    """A quarter of a MiB at 100 Mbit/s, four at 2 Gbit/s, as much as agreed from 10 on."""
    sizes = [chunk_bytes(gbps * GBPS, 4, 16 << 20) >> 10 for gbps in (0.1, 2, 10, 40)]
    assert sizes == [256, 4096, 16384, 16384]
    assert chunk_bytes(None, 4, 16 << 20) == 1 << 20
    assert chunk_bytes(None, 4, 16 << 20, is_short=True) == 16 << 20


@pytest.mark.parametrize("lanes", [1, 4, 32])
def test_the_last_chunks_of_a_transfer_are_small(lanes: int) -> None:
    """Lanes that take chunks in turn, all equally fast, end within a small chunk of each other."""
    left, ends = 512 << 20, [0] * lanes
    while left:
        first = min(range(lanes), key=ends.__getitem__)
        size = min(left, next_chunk_bytes(4 << 20, left, lanes))
        ends[first] += size
        left -= size
    assert max(ends) - min(ends) <= MIN_CHUNK_BYTES


def play(trial: CongestionTrial, bbr: int, cubic: int, *, seconds: float = 10.0, limited: bool = True) -> str | None:
    """Lanes 1 and 3 use BBR, 2 and 4 cubic; each moves so many bytes in a tenth of a second. Returns the choice."""
    for tick in range(int(seconds * 10)):
        lanes = {n: LaneProgress("bbr" if n % 2 else "cubic", tick * (bbr if n % 2 else cubic)) for n in range(1, 5)}
        choice = trial.observe(lanes, 0.1, limited=limited)
        if choice is not None:
            return choice
    return None


@pytest.mark.parametrize(
    ("bbr", "cubic", "choice"), [(100, 100, "bbr"), (100, 20, "bbr"), (100, 120, "bbr"), (100, 140, "cubic")]
)
def test_what_clearly_moves_more_stays(bbr: int, cubic: int, choice: str) -> None:
    """BBR unless cubic is clearly better; later lanes get what was chosen."""
    trial = CongestionTrial("bbr", "cubic")
    assert [trial.algorithm_for(index) for index in range(4)] == ["bbr", "cubic", "bbr", "cubic"]
    assert play(trial, bbr, cubic) == choice
    assert [trial.algorithm_for(index) for index in range(4)] == [choice] * 4
    assert play(trial, 1, 1000) is None, "decided once"


def test_nothing_is_learnt_while_the_application_is_the_limit() -> None:
    """Nor before the trial is over, nor while only one of the two has lanes."""
    trial = CongestionTrial("bbr", "cubic")
    assert play(trial, 100, 10, limited=False) is None
    assert play(trial, 100, 10, seconds=TRIAL_S / 2) is None
    alone = CongestionTrial("bbr", "cubic")
    for tick in range(100):
        assert alone.observe({1: LaneProgress("bbr", tick)}, 0.1, limited=True) is None


def test_a_redialled_lane_does_not_count_backwards() -> None:
    """A new connection begins at zero under a number of its own."""
    trial = CongestionTrial("bbr", "cubic")
    for tick in range(100):
        lanes = {tick: LaneProgress("bbr", 10**9), tick + 1: LaneProgress("cubic", 0)}
        assert trial.observe(lanes, 0.1, limited=True) is None
