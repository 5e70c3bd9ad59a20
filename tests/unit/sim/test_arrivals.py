"""Draws from a workload, and times."""

from __future__ import annotations

import itertools
import random
import statistics

import pytest

from prfaas.core.planning.workload import Empirical, TruncatedLogNormal
from prfaas.sim.arrivals import lengths_of, poisson


@pytest.mark.parametrize(
    "workload",
    [
        TruncatedLogNormal(9.90, 1.00, 128, 131_072),
        TruncatedLogNormal(3.0, 1.0, 1_000, 100_000),
        TruncatedLogNormal(12.0, 0.5, 100, 20_000),
        Empirical([100, 2_000, 2_000, 50_000]),
    ],
    ids=repr,
)
def test_draws_follow_the_distribution(workload: TruncatedLogNormal | Empirical) -> None:
    """Within three standard errors of its mean and of a share, also where hardly anything of a distribution is kept."""
    rng, draw = random.Random(1), lengths_of(workload)
    drawn = [draw(rng) for _ in range(20_000)]
    assert workload.min_tokens <= min(drawn) <= max(drawn) <= workload.max_tokens
    error = 3 * statistics.stdev(drawn) / 20_000**0.5
    assert statistics.fmean(drawn) == pytest.approx(workload.mean_tokens, abs=error + 0.5)
    middle = statistics.median(drawn)
    share = sum(length <= middle for length in drawn) / 20_000
    assert share == pytest.approx(workload.fraction(0, middle + 0.5), abs=0.015)


def test_arrivals_come_at_their_rate() -> None:
    """On average, and in order."""
    arrivals = list(itertools.islice(poisson(random.Random(2), 4.0, lambda rng: 7, 9), 20_000))
    times_s = [arrival.at_s for arrival in arrivals]
    assert times_s == sorted(times_s)
    assert times_s[-1] == pytest.approx(5_000, rel=0.03)
    assert {(arrival.num_tokens, arrival.num_output_tokens) for arrival in arrivals} == {(7, 9)}
