"""The uncached lengths that came lately, and how many a second.

Laws of this file:
- A length counts half as much when `HALF_LIFE` others have come after it; a rate, when `RATE_HALF_LIFE_S` have passed.
- A length falls into one of eight bins to each power of two, by whole numbers alone: every machine does the same.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Final, NamedTuple

from prfaas.core.portable_math import LN2, exp2

#: Lengths. A mix that shifts is half forgotten after so many.
HALF_LIFE: Final = 512
#: Seconds: a burst shows within a few, and a quiet minute makes it forgotten.
RATE_HALF_LIFE_S: Final = 15.0
#: Before so many have come, their distribution says little.
MIN_LENGTHS: Final = 64

#: Of an exponential window: what a half-life is to its mean.
_MEAN_AGE_S: Final = RATE_HALF_LIFE_S / LN2
#: So many seconds must have passed before few requests mean a high rate.
_MIN_WINDOW_S: Final = 1.0
_GROWTH: Final = exp2(1.0 / HALF_LIFE)
_TOO_LARGE: Final = 1e100
_STEPS: Final = 8


class LengthBin(NamedTuple):
    """Lengths from `low_tokens` to below `high_tokens`: a share of all that came, and their mean."""

    low_tokens: int
    high_tokens: int
    share: float
    mean_tokens: float


class Lengths:
    """Both, as they were seen."""

    def __init__(self) -> None:
        self.num_seen = 0
        #: By bin: sum of weights, and of weighted lengths.
        self._bins: dict[int, list[float]] = {}
        self._weight = 1.0
        self._rate_sum = 0.0
        self._rate_weight_s = 0.0
        self._seen_s: float | None = None

    def saw(self, num_tokens: int, now_s: float) -> None:
        self.num_seen += 1
        self._weight *= _GROWTH
        entry = self._bins.setdefault(_bin_of(num_tokens), [0.0, 0.0])
        entry[0] += self._weight
        entry[1] += self._weight * num_tokens
        if self._weight > _TOO_LARGE:
            self._shrink()
        self._age(now_s)
        self._rate_sum += 1.0

    def rate_rps(self, now_s: float) -> float:
        """Requests a second."""
        self._age(now_s)
        return self._rate_sum / max(self._rate_weight_s, _MIN_WINDOW_S)

    def bins(self) -> list[LengthBin]:
        """Longest first; those of no weight left out. Shares sum to one."""
        total = math.fsum(weight for weight, _ in self._bins.values())
        return [
            LengthBin(*_edges(index), weight / total, tokens / weight)
            for index, (weight, tokens) in sorted(self._bins.items(), reverse=True)
        ]

    def _age(self, now_s: float) -> None:
        """An exponential window: both sums shrink alike, and the time that has passed is added to one of them."""
        if self._seen_s is None:
            self._seen_s = now_s
            return
        passed_s = now_s - self._seen_s
        if passed_s <= 0:
            return
        self._seen_s = now_s
        keeps = exp2(-passed_s / RATE_HALF_LIFE_S)
        self._rate_sum *= keeps
        self._rate_weight_s = self._rate_weight_s * keeps + _MEAN_AGE_S * (1.0 - keeps)

    def _shrink(self) -> None:
        least = self._weight / (1 << 40)
        self._bins = {i: [w / self._weight, t / self._weight] for i, (w, t) in self._bins.items() if w > least}
        self._weight = 1.0


def _bin_of(num_tokens: int) -> int:
    tokens = max(num_tokens, _STEPS)
    power = tokens.bit_length() - 1
    return power * _STEPS + ((tokens >> (power - 3)) & (_STEPS - 1))


@cache
def _edges(index: int) -> tuple[int, int]:
    power, step = divmod(index, _STEPS)
    low = (_STEPS + step) << (power - 3)
    # Lengths below the first bin are in it too.
    return (0 if index == 3 * _STEPS else low), low + (1 << (power - 3))
