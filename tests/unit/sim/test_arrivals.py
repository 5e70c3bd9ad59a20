"""Draws from a workload, and times."""

from __future__ import annotations

import itertools
import random
import statistics

import pytest

from prfaas.core.planning.workload import Empirical, TruncatedLogNormal
from prfaas.sim.arrivals import Arrival, bursty, daily, lengths_of, poisson


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


def counts(arrivals: list[Arrival], every_s: float) -> list[int]:
    """How many come in each stretch of time."""
    found = [0] * (int(arrivals[-1].at_s / every_s) + 1)
    for arrival in arrivals:
        found[int(arrival.at_s / every_s)] += 1
    return found


def test_bursts_come_five_times_as_fast_and_keep_the_mean() -> None:
    """Half of the time each: 2/3 and 10/3 of the mean rate, as the counts of short stretches show. Poisson arrivals of
    the same rate vary much less."""
    burst = list(itertools.islice(bursty(random.Random(3), 6.0, 5.0, 50.0, 50.0, lambda rng: 7, 9), 60_000))
    times_s = [arrival.at_s for arrival in burst]
    assert times_s == sorted(times_s)
    assert len(times_s) / times_s[-1] == pytest.approx(6.0, rel=0.1)
    calm = list(itertools.islice(poisson(random.Random(3), 6.0, lambda rng: 7, 9), 60_000))
    spread, usual = (statistics.variance(c) / statistics.fmean(c) for c in (counts(burst, 10.0), counts(calm, 10.0)))
    assert usual == pytest.approx(1.0, abs=0.2)
    # In 10 s come 20 or 100: of a mean of 60 the standard deviation is 40, less where a stretch has both.
    assert 15.0 < spread < 1.0 + 40.0**2 / 60.0
    ordered = sorted(counts(burst, 10.0))
    assert ordered[len(ordered) // 10] == pytest.approx(20, abs=6)
    assert ordered[-len(ordered) // 10] == pytest.approx(100, abs=14)


def test_a_day_has_its_lowest_and_its_highest_hour() -> None:
    """A quarter of the day after the start the most, three quarters after it the least."""
    day = itertools.takewhile(
        lambda arrival: arrival.at_s < 8_000.0, daily(random.Random(4), 10.0, 0.25, 8_000.0, lambda rng: 7, 9)
    )
    found = counts(list(day), 1_000.0)
    assert sum(found) == pytest.approx(80_000, rel=0.02)
    highest, lowest = (found[1] + found[2]) / 2, (found[5] + found[6]) / 2
    # Means of a quarter of a sine around its highest and lowest point.
    swing = 0.6 * 0.9003
    assert lowest / highest == pytest.approx((1 - swing) / (1 + swing), rel=0.05)
