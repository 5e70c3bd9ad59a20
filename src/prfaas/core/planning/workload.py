"""Distributions of the uncached prompt length L, with partial moments that are exact.

Everything that the throughput model needs of a workload is E[L^k; a < L ≤ b] for k = 0, 1, 2: shares of requests,
conditional means, and the expectation of any `Curve`. Nothing here is sampled.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Final

from prfaas.core.errors import PrfaasError
from prfaas.core.model.curve import Curve
from prfaas.core.normal_distribution import share_between
from prfaas.core.portable_math import exp, log

#: ln L of a prompt is under 20; with parameters far beyond, second moments overflow.
MAX_MU: Final = 20
MAX_SIGMA: Final = 12


class WorkloadError(PrfaasError):
    """A distribution that cannot be; the text says which parameter and why."""


class Workload(ABC):
    """Uncached prompt lengths of the requests, in tokens."""

    min_tokens: float
    max_tokens: float

    @abstractmethod
    def moment(self, k: int, low: float, high: float) -> float:
        """E[L^k; low < L ≤ high] for k = 0, 1, 2; 0 if the interval is empty."""

    @abstractmethod
    def thresholds(self, num: int) -> list[float]:
        """Routing thresholds worth trying, in order: from one under which nothing lies, to the longest length. About
        `num` for a continuous distribution; every length that occurs for a discrete one."""

    @property
    def is_discrete(self) -> bool:
        """Whether thresholds between those of `thresholds` make no difference."""
        return True

    def fraction(self, low: float, high: float) -> float:
        """P(low < L ≤ high)."""
        return self.moment(0, low, high)

    def expected(self, curve: Curve, low: float, high: float) -> float:
        """E[curve(L); low < L ≤ high]."""
        return curve.expected(self.moment, low, high)

    @cached_property
    def mean_tokens(self) -> float:
        """E[L]."""
        return self.moment(1, -math.inf, math.inf)


class TruncatedLogNormal(Workload):
    """Log-normal with parameters `mu`, `sigma` of ln L, truncated to [min_tokens, max_tokens].

    With Φ the normal distribution function and z(x) = (ln x − mu) / sigma:
    E[L^k; a < L ≤ b] = exp(k·mu + k²·sigma²/2) · (Φ(z(b) − k·sigma) − Φ(z(a) − k·sigma)) / (Φ(z(max)) − Φ(z(min))).
    """

    def __init__(self, mu: float, sigma: float, min_tokens: float, max_tokens: float) -> None:
        if not (math.isfinite(mu) and math.isfinite(sigma) and sigma > 0):
            raise WorkloadError(f"sigma must be positive and mu finite, got mu {mu}, sigma {sigma}")
        if abs(mu) > MAX_MU or sigma > MAX_SIGMA:
            raise WorkloadError(f"|mu| is at most {MAX_MU} and sigma at most {MAX_SIGMA}, got mu {mu}, sigma {sigma}")
        if not 1 <= min_tokens < max_tokens < math.inf:
            raise WorkloadError(f"min must be at least 1 and under max, got min {min_tokens}, max {max_tokens}")
        self.mu, self.sigma = mu, sigma
        self.min_tokens, self.max_tokens = float(min_tokens), float(max_tokens)
        self._mass = share_between(self._z(self.min_tokens), self._z(self.max_tokens))
        if self._mass < 1e-12:
            raise WorkloadError(
                f"practically no length of a log-normal with mu {mu}, sigma {sigma} lies in"
                f" [{min_tokens:g}, {max_tokens:g}] (its median is {exp(min(mu, 700)):.4g} tokens)"
            )

    def __repr__(self) -> str:
        return f"TruncatedLogNormal({self.mu}, {self.sigma}, {self.min_tokens:g}, {self.max_tokens:g})"

    @property
    def is_discrete(self) -> bool:
        return False

    def moment(self, k: int, low: float, high: float) -> float:
        a, b = max(low, self.min_tokens), min(high, self.max_tokens)
        if a >= b:
            return 0.0
        shift = k * self.sigma
        scale = exp(k * self.mu + shift * shift / 2)
        return scale * share_between(self._z(a) - shift, self._z(b) - shift) / self._mass

    def thresholds(self, num: int) -> list[float]:
        # Equal steps of log length put as many candidates among short prompts as among long ones.
        growth = log(self.max_tokens / self.min_tokens)
        inner = (self.min_tokens * exp(growth * step / num) for step in range(1, num))
        return [0.0, *inner, self.max_tokens]

    def _z(self, tokens: float) -> float:
        return (log(tokens) - self.mu) / self.sigma


class Empirical(Workload):
    """The lengths that occurred, each with the same weight."""

    def __init__(self, lengths_tokens: Iterable[float]) -> None:
        self._lengths = sorted(lengths_tokens)
        if not self._lengths or self._lengths[0] < 0:
            raise WorkloadError("a workload needs at least one length, and none below zero")
        self._sums = [
            list(accumulate(powers, initial=0.0))
            for powers in zip(*((1, x, x * x) for x in self._lengths), strict=True)
        ]
        self.min_tokens, self.max_tokens = float(self._lengths[0]), float(self._lengths[-1])

    @property
    def lengths_tokens(self) -> Sequence[float]:
        """Every length that occurred, in order of size."""
        return self._lengths

    def __repr__(self) -> str:
        return f"Empirical of {len(self._lengths)} lengths, {self.min_tokens:g} to {self.max_tokens:g}"

    def moment(self, k: int, low: float, high: float) -> float:
        first, end = bisect_right(self._lengths, low), bisect_right(self._lengths, high)
        sums = self._sums[k]
        return (sums[end] - sums[first]) / len(self._lengths) if first < end else 0.0

    def thresholds(self, num: int) -> list[float]:
        below = min(0.0, self.min_tokens - 1)
        return [below, *sorted({float(x) for x in self._lengths})]


def constant(num_tokens: float) -> Empirical:
    """Every request has the same length."""
    if not 1 <= num_tokens < math.inf:
        raise WorkloadError(f"a constant length must be at least one token, got {num_tokens}")
    return Empirical([num_tokens])


@dataclass(frozen=True, slots=True)
class Band:
    """The requests with low < L ≤ high: their share, and their mean length (0 if there are none)."""

    low_tokens: float
    high_tokens: float
    fraction: float
    mean_tokens: float


def band(workload: Workload, low: float, high: float) -> Band:
    """The band between two thresholds."""
    fraction = workload.fraction(low, high)
    if fraction <= 1e-12:
        return Band(low, high, 0.0, 0.0)
    return Band(low, high, fraction, workload.moment(1, low, high) / fraction)
