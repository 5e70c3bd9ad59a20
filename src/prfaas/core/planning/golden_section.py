"""Golden-section search."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, TypeVar

_GOLDEN: Final = (math.sqrt(5) - 1) / 2


Score = TypeVar("Score", float, tuple[float, float])


def golden(score: Callable[[float], Score], low: float, high: float, resolution: float) -> float:
    """Where `score` is greatest between `low` and `high`, to `resolution`. If it has several peaks, one of them."""
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = score(left), score(right)
    while high - low > resolution:
        if at_left >= at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = score(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = score(right)
    return (low + high) / 2
