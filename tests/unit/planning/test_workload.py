"""Partial moments, conditional means and expectations of curves against samples drawn here, deep in the tail too."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from prfaas.core.model.curve import Curve, polynomial, saturating, through
from prfaas.core.planning.workload import Empirical, TruncatedLogNormal, WorkloadError, band, constant

NUM_SAMPLES = 10_000_000
NUM_TAIL_SAMPLES = 2_000_000
SEED = 7041603

#: mu, sigma, min, max where samples of the normal distribution fall often enough.
BODIES = [(9.9, 1.0, 128, 131072), (9.0, 0.25, 4000, 16000), (5.0, 3.0, 1, 400_000), (12.0, 1.5, 1000, 200_000)]

#: And where one in a million does, above and below the median.
TAILS = [(7.0, 1.0, 140_000, 1_000_000), (11.0, 0.5, 1, 5000)]


class Samples:
    """Sorted lengths, and what a partial mean of them is worth."""

    def __init__(self, lengths: np.ndarray) -> None:
        self.lengths = np.sort(lengths)

    def agree(self, exact: float, low: float, high: float, value_of: Curve | int) -> None:
        """E[value(L); low < L ≤ high] within five standard errors, which the samples themselves tell."""
        first, end = np.searchsorted(self.lengths, [low, high], side="right")
        inside = self.lengths[first:end]
        values = inside**value_of if isinstance(value_of, int) else reference(value_of, inside)
        mean = values.sum() / len(self.lengths)
        error = math.sqrt(max(0.0, np.dot(values, values) / len(self.lengths) - mean**2) / len(self.lengths))
        assert abs(exact - mean) <= 5 * error + 1e-9 * abs(exact) + 20 / len(self.lengths), (low, high, value_of)


QUADRATIC = polynomial(0.467, 1.3e-4, 2.9e-10)
WINDOW = saturating(3e-4, 6000.0)
POINTS = [(1000, 1.0), (8000, 3.0), (32000, 20.0), (128000, 31.0)]
TABLE = through(POINTS)


def reference(curve: Curve, lengths: np.ndarray) -> np.ndarray:
    """The curves above with NumPy's own means."""
    if curve is QUADRATIC:
        return np.polyval([2.9e-10, 1.3e-4, 0.467], lengths)
    if curve is WINDOW:
        return 3e-4 * np.minimum(lengths, 6000.0)
    beyond = 31.0 + (lengths - 128000) * (31.0 - 20.0) / 96000
    below = 1.0 + (lengths - 1000) * 2.0 / 7000
    inside = np.interp(lengths, *zip(*POINTS, strict=True))
    return np.where(lengths > 128000, beyond, np.where(lengths < 1000, below, inside))


@pytest.fixture(scope="module")
def normals() -> np.ndarray:
    """Ten million samples of the standard normal distribution, shared."""
    print(f"seed {SEED}")
    return np.random.default_rng(SEED).standard_normal(NUM_SAMPLES)


def tail_beyond(a: float, b: float, rng: np.random.Generator) -> np.ndarray:
    """Standard normals between a > 0 and b, by rejection from an exponential distribution."""
    found: list[np.ndarray] = []
    while sum(map(len, found)) < NUM_TAIL_SAMPLES:
        x = a + rng.exponential(1 / a, NUM_TAIL_SAMPLES)
        found.append(x[(rng.random(NUM_TAIL_SAMPLES) < np.exp(-((x - a) ** 2) / 2)) & (x <= b)])
    return np.concatenate(found)[:NUM_TAIL_SAMPLES]


@pytest.fixture(scope="module", params=[pytest.param(p, marks=pytest.mark.slow) for p in [*BODIES, *TAILS]], ids=str)
def sampled(request: pytest.FixtureRequest, normals: np.ndarray) -> tuple[TruncatedLogNormal, Samples]:
    """A distribution and lengths from it."""
    mu, sigma, low, high = request.param
    a, b = (math.log(low) - mu) / sigma, (math.log(high) - mu) / sigma
    if request.param in BODIES:
        inside = normals[(normals >= a) & (normals <= b)]
    else:
        rng = np.random.default_rng(SEED)
        inside = tail_beyond(a, b, rng) if a > 0 else -tail_beyond(-b, -a, rng)
    assert len(inside) > 1_000_000
    return TruncatedLogNormal(mu, sigma, low, high), Samples(np.exp(mu + sigma * inside))


def intervals(lengths: np.ndarray) -> list[tuple[float, float]]:
    """Everything, and intervals between random quantiles, narrow and wide."""
    rng = random.Random(SEED)
    ends = [sorted((rng.random(), rng.random())) for _ in range(5)]
    at = [float(lengths[int(q * len(lengths))]) for pair in ends for q in pair]
    return [(-math.inf, math.inf), (0.0, at[0]), (at[1], 1e12), *zip(at[0::2], at[1::2], strict=True)]


def test_partial_moments(sampled: tuple[TruncatedLogNormal, Samples]) -> None:
    """E[L^k; a < L ≤ b] of order 0, 1 and 2 is what samples say, on random intervals."""
    workload, samples = sampled
    for low, high in intervals(samples.lengths):
        for k in range(3):
            samples.agree(workload.moment(k, low, high), low, high, k)
        samples.agree(workload.fraction(low, high), low, high, 0)
    samples.agree(workload.mean_tokens, -math.inf, math.inf, 1)


@pytest.mark.parametrize("curve", [QUADRATIC, WINDOW, TABLE], ids=["quadratic", "window", "table"])
def test_expectations_of_curves(sampled: tuple[TruncatedLogNormal, Samples], curve: Curve) -> None:
    """E[curve(L); a < L ≤ b] is what samples say, whatever pieces the interval cuts."""
    workload, samples = sampled
    for low, high in intervals(samples.lengths):
        samples.agree(workload.expected(curve, low, high), low, high, curve)


def test_conditional_means(sampled: tuple[TruncatedLogNormal, Samples]) -> None:
    """l_long and l_short on both sides of a threshold are the samples' means there, and make up the whole."""
    workload, samples = sampled
    threshold = float(samples.lengths[len(samples.lengths) // 3])
    short, long = band(workload, -math.inf, threshold), band(workload, threshold, workload.max_tokens)
    for found, lengths in (
        (short, samples.lengths[samples.lengths <= threshold]),
        (long, samples.lengths[samples.lengths > threshold]),
    ):
        assert abs(found.mean_tokens - lengths.mean()) <= 5 * lengths.std() / math.sqrt(len(lengths))
    assert short.fraction + long.fraction == pytest.approx(1.0, rel=1e-12)
    together = short.fraction * short.mean_tokens + long.fraction * long.mean_tokens
    assert together == pytest.approx(workload.mean_tokens, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_empirical_is_brute_force(seed: int) -> None:
    """Moments, bands and expectations over recorded lengths are sums over them, ends and ties as promised."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    lengths = [rng.randint(1, 60) * 500 for _ in range(rng.randint(1, 80))]
    workload = Empirical(lengths)
    curve = TABLE + WINDOW
    for _ in range(40):
        low, high = sorted(rng.choice([0, 500 * rng.randint(0, 61), rng.uniform(0, 31_000)]) for _ in range(2))
        inside = [x for x in lengths if low < x <= high]
        for k in range(3):
            assert workload.moment(k, low, high) == pytest.approx(sum(x**k for x in inside) / len(lengths))
        assert workload.expected(curve, low, high) == pytest.approx(sum(map(curve.at, inside)) / len(lengths))
        assert band(workload, low, high).mean_tokens == pytest.approx(sum(inside) / len(inside) if inside else 0.0)
    assert workload.thresholds(3) == [0.0, *sorted(set(map(float, lengths)))]
    assert workload.is_discrete


def test_a_constant_is_all_or_nothing() -> None:
    """A threshold at the length keeps every request, one below it none."""
    workload = constant(5000)
    assert (workload.fraction(5000, math.inf), workload.fraction(4999, math.inf)) == (0.0, 1.0)
    assert workload.expected(QUADRATIC, 0, math.inf) == pytest.approx(QUADRATIC.at(5000))
    assert workload.thresholds(100) == [0.0, 5000.0]


def test_thresholds_span_the_lengths_and_rise() -> None:
    """The first keeps nothing, the last everything, and neighbours differ by the same factor."""
    workload = TruncatedLogNormal(9.9, 1.0, 128, 131072)
    thresholds = workload.thresholds(320)
    assert (workload.fraction(0, thresholds[0]), workload.fraction(0, thresholds[-1])) == (0.0, pytest.approx(1.0))
    assert thresholds == sorted(set(thresholds))
    assert thresholds[200] / thresholds[199] == pytest.approx(1024 ** (1 / 320))
    assert not workload.is_discrete


@pytest.mark.parametrize(
    "parameters",
    [
        (9.9, 0.0, 128, 131072), (9.9, -1.0, 128, 131072), (math.inf, 1.0, 128, 131072), (math.nan, 1.0, 128, 131072),
        (9.9, math.nan, 128, 131072), (9.9, 1.0, 0, 131072), (9.9, 1.0, 128, 128), (9.9, 1.0, 200, 100),
        (9.9, 1.0, 128, math.inf), (9.9, 1.0, math.nan, 131072), (21.0, 1.0, 128, 131072), (9.9, 13.0, 128, 131072),
        (1.0, 0.1, 60_000, 70_000), (12.0, 0.1, 1, 10),
    ],
    ids=str,
)  # fmt: skip
def test_a_distribution_that_cannot_be_is_refused(parameters: tuple[float, float, float, float]) -> None:
    """No parameter gives NaN, an infinity or a division by zero later on."""
    with pytest.raises(WorkloadError, match=r"got mu|got min|practically no length"):
        TruncatedLogNormal(*parameters)


def test_other_workloads_that_cannot_be_are_refused() -> None:
    """No length at all, one below zero, a constant of no token or of infinitely many."""
    for lengths in ([], [5, -1]):
        with pytest.raises(WorkloadError, match="at least one length"):
            Empirical(lengths)
    for tokens in (0, -3, math.inf, math.nan):
        with pytest.raises(WorkloadError, match="at least one token"):
            constant(tokens)


def test_parameters_at_the_edge_of_what_is_allowed_stay_finite() -> None:
    """The widest and the narrowest distribution have finite moments that keep their order."""
    for mu, sigma in [(-12.0, 12.0), (12.0, 12.0), (9.9, 1e-9), (0.0, 1e-300)]:
        workload = TruncatedLogNormal(mu, sigma, 1, 1 << 27)
        mean, square = workload.mean_tokens, workload.moment(2, -math.inf, math.inf)
        assert 1 <= mean <= 1 << 27, (mu, sigma)
        assert mean**2 * (1 - 1e-9) <= square <= (1 << 27) ** 2
        assert workload.fraction(-math.inf, math.inf) == pytest.approx(1.0)
