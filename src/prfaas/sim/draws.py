"""Numbers drawn by chance that are the same on every machine: what `random.Random` has for this asks the C library."""

from __future__ import annotations

import random
from typing import Final

from prfaas.core.normal_distribution import quantile
from prfaas.core.portable_math import log

#: `random()` may be zero, of which there is no quantile.
_SMALLEST: Final = 2.0e-17


def exponential(rng: random.Random, rate: float) -> float:
    """How long until the next of `rate` a second, or of whatever else it is measured in."""
    return -log(1.0 - rng.random()) / rate


def normal(rng: random.Random) -> float:
    """Mean 0, standard deviation 1."""
    return quantile(max(rng.random(), _SMALLEST))
