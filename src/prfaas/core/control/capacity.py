"""How many requests a second a deployment could serve, with the instances that it has or with others: Λ_max of Eq. 6,
from measured times, over the lengths that come.

Laws of this file:
- Prefill is as much as the split of Eq. 7 allows (see `threshold`), decode is the sum over all clusters (Eq. 5).
  Whatever is less binds.
- A cluster of which nobody knows how it decodes limits nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from prfaas.core.control.estimates import Estimates
from prfaas.core.control.fleet import Fleet
from prfaas.core.control.link_rates import Pair
from prfaas.core.control.threshold import Stage, solve
from prfaas.core.record import record
from prfaas.core.topology import Duty, Role


@record
class Counts:
    """Instances by cluster: those that prefill for others, those that decode, and of these those that prefill too."""

    prefill: Mapping[str, int]
    decode: Mapping[str, int]
    both: Mapping[str, int]

    def plus(self, cluster: str, duty: Duty, num: int = 1) -> Counts:
        """With so many more, or fewer, of one duty: prefill or decode."""
        if duty is Duty.PREFILL:
            return replace(self, prefill={**self.prefill, cluster: self.prefill.get(cluster, 0) + num})
        return replace(self, decode={**self.decode, cluster: self.decode.get(cluster, 0) + num})


@record
class Capacity:
    """Requests per second."""

    prefill_rps: float
    decode_rps: float

    @property
    def max_rps(self) -> float:
        return min(self.prefill_rps, self.decode_rps)


def counts_now(fleet: Fleet) -> Counts:
    """Those that work."""
    prefill, decode, both = {}, {}, {}
    for cluster in fleet.topology.clusters:
        name = cluster.name
        prefill[name] = len(fleet.working_prefillers(name))
        if cluster.role is Role.PD:
            decoders = fleet.working_decoders(name)
            decode[name], both[name] = len(decoders), sum(1 for i in decoders if i.duty.prefills)
    return Counts(prefill, decode, both)


def prefill_stages(
    fleet: Fleet,
    estimates: Estimates,
    counts: Counts,
    now_s: float,
    more_bytes: Mapping[Pair, float] = MappingProxyType({}),
) -> tuple[list[Stage], list[Stage]]:
    """All that prefill: of PrfaaS clusters, and of PD clusters. A PD cluster where none does so for others prefills
    where it decodes. `more_bytes`: a second, that some links would carry beyond what they do."""
    prfaas, pd = [], []
    for cluster in fleet.topology.clusters:
        name = cluster.name
        num = counts.prefill.get(name, 0)
        if cluster.role is Role.PD:
            num = num or counts.both.get(name, 0) or counts.decode.get(name, 0)
            pd.append(estimates.stage(name, num, math.inf))
        else:
            pairs = fleet.links_from(name)
            carried = math.fsum(estimates.links.bytes_per_s(pair, now_s) + more_bytes.get(pair, 0.0) for pair in pairs)
            prfaas.append(estimates.stage(name, num, carried))
    return prfaas, pd


def decode_rps(estimates: Estimates, counts: Counts) -> float:
    """Θ_pd-d of all clusters; inf if one of them is not known."""
    total = 0.0
    for name, num in counts.decode.items():
        if num:
            model = estimates.cluster(name)
            if model.max_batch is None or model.step_s is None:
                return math.inf
            total += num * model.max_batch / (model.step_s * estimates.output_tokens)
    return total


def capacity(
    fleet: Fleet,
    estimates: Estimates,
    counts: Counts,
    now_s: float,
    more_bytes: Mapping[Pair, float] = MappingProxyType({}),
) -> Capacity:
    """Of such requests as come; lengths must have been seen."""
    stages = prefill_stages(fleet, estimates, counts, now_s, more_bytes)
    split = solve(estimates.lengths.bins(), *stages, estimates.kv_bytes)
    return Capacity(split.max_rps, decode_rps(estimates, counts))
