"""A configuration, and the rates at which it runs when it is driven to its limit."""

from __future__ import annotations

import math
from dataclasses import dataclass

from prfaas.core.planning.workload import Band


@dataclass(frozen=True, slots=True)
class TierBand:
    """Lengths that a tier of PrfaaS clusters prefills."""

    clusters: tuple[str, ...]
    band: Band


@dataclass(frozen=True, slots=True)
class Route:
    """Requests of a band that are prefilled in `prfaas` (None: in `pd` itself) and decoded in `pd`, per second."""

    prfaas: str | None
    pd: str
    band: Band
    rps: float


@dataclass(frozen=True)
class Solution:
    """The best configuration that a search found. `system_rps` is Λ_max; the routes' rates sum up to it."""

    remote: tuple[TierBand, ...]
    local: Band
    num_pd_prefill: dict[str, int]
    system_rps: float
    routes: tuple[Route, ...]

    @property
    def threshold_tokens(self) -> float:
        """The routing threshold t: what is longer is offloaded."""
        return self.local.high_tokens

    @property
    def offload_fraction(self) -> float:
        """p = P(L > t)."""
        return math.fsum(tier.band.fraction for tier in self.remote)

    @property
    def mean_long_tokens(self) -> float | None:
        """E[L | L > t]; None if nothing is offloaded."""
        fraction = self.offload_fraction
        if not fraction:
            return None
        return math.fsum(tier.band.fraction * tier.band.mean_tokens for tier in self.remote) / fraction
