"""Closed forms of the workload against ten million samples of it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from prfaas.core.model.curve import Curve, polynomial, saturating, through
from prfaas.core.planning.workload import Empirical, TruncatedLogNormal, WorkloadError, band, constant

NUM_SAMPLES = 10_000_000
SEED = 20260421

#: mu, sigma, min, max: the paper's, a narrow one, a wide one, and a far tail.
PARAMETERS = [(9.9, 1.0, 128, 131072), (8.0, 0.3, 1000, 20000), (6.0, 2.5, 1, 1_000_000), (7.0, 1.0, 60_000, 131072)]


@pytest.fixture(scope="module", params=[pytest.param(p, marks=pytest.mark.slow) for p in PARAMETERS], ids=str)
def sampled(request: pytest.FixtureRequest) -> tuple[TruncatedLogNormal, np.ndarray]:
    """A distribution and ten million lengths from it, by rejection; the far tail has as many as fall into it."""
    mu, sigma, low, high = request.param
    rng = np.random.default_rng(SEED)
    lengths = np.exp(rng.normal(mu, sigma, NUM_SAMPLES))
    lengths = lengths[(lengths >= low) & (lengths <= high)]
    assert len(lengths) > 200
    return TruncatedLogNormal(mu, sigma, low, high), lengths


def agrees(exact: float, values: np.ndarray) -> None:
    """Within five standard errors of the samples' mean."""
    error = values.std() / math.sqrt(len(values))
    assert abs(exact - values.mean()) <= 5 * error + 1e-12 * abs(exact)


def test_moments_agree_with_samples(sampled: tuple[TruncatedLogNormal, np.ndarray]) -> None:
    """E[L^k; a < L ≤ b] on whole, half and narrow intervals."""
    workload, lengths = sampled
    low, middle, high = workload.min_tokens, float(np.median(lengths)), workload.max_tokens
    for a, b in [
        (-math.inf, math.inf),
        (low, middle),
        (middle, high),
        (middle, middle * 1.05),
        (0.0, low),
        (high, 1e9),
    ]:
        inside = (lengths > a) & (lengths <= b)
        for k in range(3):
            agrees(workload.moment(k, a, b), np.where(inside, lengths**k, 0.0))


@pytest.mark.parametrize(
    "curve",
    [
        polynomial(0.467, 1.3e-4, 2.9e-10),
        saturating(3.0, 5000.0),
        through([(1000, 1.0), (8000, 3.0), (32000, 20.0)]),
        saturating(1.0, 3000.0) + polynomial(2.0, 1e-3),
    ],
    ids=["quadratic", "window", "table", "sum"],
)
def test_expectations_of_curves_agree_with_samples(
    sampled: tuple[TruncatedLogNormal, np.ndarray], curve: Curve
) -> None:
    """Piece by piece, below and above a threshold."""
    workload, lengths = sampled
    threshold = float(np.quantile(lengths, 0.6))
    values = np.array([curve.at(x) for x in lengths[:200_000]])
    for a, b in [(-math.inf, threshold), (threshold, math.inf)]:
        inside = (lengths[:200_000] > a) & (lengths[:200_000] <= b)
        agrees(workload.expected(curve, a, b), np.where(inside, values, 0.0))


def test_the_papers_distribution() -> None:
    """Mean and band at t = 19,400, as derived from the paper's parameters."""
    workload = TruncatedLogNormal(9.9, 1.0, 128, 131072)
    long, short = band(workload, 19_400, math.inf), band(workload, 0, 19_400)
    assert workload.mean_tokens == pytest.approx(27_486, abs=1)
    assert (long.fraction, long.mean_tokens) == (pytest.approx(0.4957, abs=1e-4), pytest.approx(45_046, abs=1))
    assert short.mean_tokens == pytest.approx(10_224, abs=1)
    assert long.fraction + short.fraction == pytest.approx(1.0)


def test_empirical_is_a_sum_over_its_lengths() -> None:
    """Ties count each, both ends of an interval as promised."""
    workload = Empirical([5, 1, 5, 9])
    assert workload.moment(0, 1, 5) == 0.5
    assert workload.moment(1, 0, 5) == (1 + 5 + 5) / 4
    assert workload.moment(2, 5, 9) == 81 / 4
    assert workload.thresholds(10) == [0.0, 1.0, 5.0, 9.0]
    assert constant(7).mean_tokens == 7


@pytest.mark.parametrize(
    "parameters",
    [(9.9, 0, 1, 2), (9.9, 1, 5, 5), (9.9, 1, 0, 5), (math.nan, 1, 1, 2), (1.0, 0.1, 60_000, 70_000), (1, 99, 1, 2)],
)
def test_impossible_distributions_are_refused(parameters: tuple[float, float, float, float]) -> None:
    """Rather than giving zeros and infinities."""
    with pytest.raises(WorkloadError):
        TruncatedLogNormal(*parameters)
