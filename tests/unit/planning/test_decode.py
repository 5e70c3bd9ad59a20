"""The largest batch within an SLO, against trying every batch."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas.core.model.decode import DecodeError, DecodePoint, StepTimes, decode_within


def step_at(points: list[DecodePoint], batch: int) -> float:
    """Straight lines between measured points."""
    for low, high in pairwise(points):
        if low.batch <= batch <= high.batch:
            share = (batch - low.batch) / (high.batch - low.batch)
            return low.step_s * (1 - share) + high.step_s * share
    raise AssertionError(batch)


MILLISECONDS = st.integers(1, 100)
MEASURED = st.dictionaries(st.integers(1, 300), MILLISECONDS, min_size=2, max_size=6).map(
    lambda steps: [DecodePoint(batch, ms / 1e3) for batch, ms in sorted(steps.items())]
)


@given(MEASURED, MILLISECONDS)
def test_it_is_the_largest_batch_within_the_slo(points: list[DecodePoint], tpot_ms: int) -> None:
    """No larger batch on the measured lines keeps the SLO, whether or not steps grow with the batch."""
    tpot_s = tpot_ms / 1e3
    if points[0].step_s > tpot_s:
        with pytest.raises(DecodeError, match=r"longer than slo\.tpot"):
            decode_within(points, tpot_s)
        return
    found = decode_within(points[::-1], tpot_s)
    batches = range(points[0].batch, points[-1].batch + 1)
    assert found.batch == max(batch for batch in batches if step_at(points, batch) <= tpot_s * (1 + 1e-12))
    assert found.step_s == pytest.approx(step_at(points, found.batch))


def test_a_batch_that_just_fits_is_not_lost_to_rounding() -> None:
    """Half way between 20 and 30 ms is 25 ms, for every width of the interval."""
    for half in range(1, 200):
        points = [DecodePoint(1, 0.010), DecodePoint(1 + 2 * half, 0.010 + half * 0.001)]
        assert decode_within(points, 0.010 + half * 0.0005).batch == 1 + half


def test_steps_that_fall_again_are_not_given_up() -> None:
    """A noisy measurement in the middle does not hide the largest batch."""
    points = [DecodePoint(8, 0.010), DecodePoint(16, 0.0251), DecodePoint(32, 0.0249)]
    assert decode_within(points, 0.025) == DecodePoint(32, 0.0249)


def test_of_a_batch_measured_twice_the_slower_step_counts() -> None:
    """In either order, and without dividing by nothing."""
    points = [DecodePoint(8, 0.010), DecodePoint(8, 0.020), DecodePoint(16, 0.030)]
    for given_points in (points, points[::-1]):
        assert decode_within(given_points, 0.025).batch == 12
        with pytest.raises(DecodeError, match="8 sequences takes 20 ms"):
            decode_within(given_points, 0.015)


def test_without_an_slo_the_most_tokens_per_second() -> None:
    """Of the measured points only."""
    points = [DecodePoint(1, 0.010), DecodePoint(10, 0.020), DecodePoint(20, 0.050)]
    assert decode_within(points, None) == DecodePoint(10, 0.020)


def test_beyond_the_largest_batch_nothing_is_promised() -> None:
    """However loose the SLO is."""
    assert decode_within([DecodePoint(4, 0.010), DecodePoint(8, 0.012)], 1.0) == DecodePoint(8, 0.012)
    assert decode_within([DecodePoint(4, 0.010)], 0.010) == DecodePoint(4, 0.010)


def test_nothing_known_is_refused() -> None:
    """With or without an SLO."""
    for tpot_s in (None, 1.0):
        with pytest.raises(DecodeError, match="nothing is known"):
            decode_within([], tpot_s)


def test_requests_per_second() -> None:
    """Eq. 5 for one instance: 20 sequences, 25 ms, 1024 tokens."""
    assert DecodePoint(20, 0.025).rps(1024) == 0.78125


def test_a_step_between_measured_batches_lies_on_a_line() -> None:
    """Below the smallest and above the largest it is theirs; of one point it is always that."""
    steps = StepTimes([DecodePoint(8, 0.03), DecodePoint(2, 0.01), DecodePoint(8, 0.02)])
    assert [steps.at(batch) for batch in (0, 1, 2, 5, 8, 20)] == pytest.approx([0.01, 0.01, 0.01, 0.02, 0.03, 0.03])
    assert [StepTimes([DecodePoint(20, 0.025)]).at(batch) for batch in (0, 7, 30)] == [0.025] * 3
    with pytest.raises(DecodeError):
        StepTimes([])
