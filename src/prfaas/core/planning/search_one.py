"""The best threshold and split for one PD cluster and PrfaaS clusters of one kind: the paper's own case (Eq. 3 to 8).

Θ_prfaas/p rises with t and Θ_pd-p/(1−p) falls, so for each N_p the best t is where they meet (Eq. 7). The search does
not rely on that shape, which tables of measured times need not have: it scans thresholds, then refines around the best.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cache
from typing import Final, NamedTuple

from prfaas.core.planning.golden_section import golden
from prfaas.core.planning.scenario import PdCluster, PolicyKind, Scenario
from prfaas.core.planning.solution import Route, Solution, TierBand
from prfaas.core.planning.workload import Band, band

#: Candidates of the scan; neighbours differ by 2% over [128, 128K], and the refinement looks between them.
NUM_THRESHOLDS: Final = 320

#: Nobody's measurements cross more often than this.
_MAX_CROSSINGS: Final = 12

#: Up to so many splits are all tried.
_FEW_COUNTS: Final = 64

#: Thresholds are whole tokens.
_RESOLUTION_TOKENS: Final = 0.5


Score = tuple[float, float]


class Rates(NamedTuple):
    """What a threshold allows: `long_rps` is Θ_prfaas/p, `short_rps` is Θ_pd-p/(1−p) for one prefill instance, both in
    requests of the whole system per second and infinite where no request uses the stage."""

    threshold_tokens: float
    long: Band
    short: Band
    long_rps: float
    short_rps: float

    def prefill_rps(self, num_prefill: int) -> float:
        """min(Θ_prfaas/p, Θ_pd-p/(1−p)) with that many local prefill instances."""
        return min(self.long_rps, self.short_rps * num_prefill if self.short.fraction else math.inf)


def rates_at(scenario: Scenario, pd: PdCluster, threshold: float) -> Rates:
    """Eq. 3 and 4 at a threshold, divided by the shares of requests that reach the stages."""
    workload = scenario.workload
    long = band(workload, threshold, workload.max_tokens)
    short = band(workload, -math.inf, min(threshold, workload.max_tokens))
    long_rps = math.fsum(remote_capacity(scenario, pd, long).values()) / long.fraction if long.fraction else math.inf
    local_s = scenario.service(pd.prefill_s, short)
    short_rps = 1 / (local_s * short.fraction) if local_s else math.inf
    return Rates(threshold, long, short, long_rps, short_rps)


def remote_capacity(scenario: Scenario, pd: PdCluster, long: Band) -> dict[str, float]:
    """Eq. 3 for each PrfaaS cluster with a link to `pd`: min(N / T_prefill(l_long), B_out / S_kv(l_long))."""
    capacity = {}
    for link in scenario.links:
        cluster = scenario.prfaas_by_name.get(link.source)
        if cluster is not None and link.target == pd.name:
            prefill_s, kv_bytes = scenario.service(cluster.prefill_s, long), scenario.service(scenario.kv_bytes, long)
            network_rps = link.bytes_per_s / kv_bytes if kv_bytes else math.inf
            capacity[cluster.name] = min(cluster.num_instances / prefill_s, network_rps)
    return capacity


def thresholds_of(scenario: Scenario) -> list[float]:
    """Thresholds that the policy lets the search try. Under 0: everything goes; the longest length: nothing does."""
    workload = scenario.workload
    if scenario.policy is PolicyKind.HOMOGENEOUS or not scenario.prfaas_by_name:
        return [workload.max_tokens]
    if scenario.policy is PolicyKind.NAIVE:
        return [min(0.0, workload.min_tokens - 1)]
    if scenario.threshold_tokens is not None:
        return [scenario.threshold_tokens]
    return workload.thresholds(NUM_THRESHOLDS)


def prefill_counts(scenario: Scenario, pd: PdCluster) -> range:
    """Numbers of local prefill instances that the policy lets the search try; at least one instance decodes."""
    if scenario.policy is PolicyKind.NAIVE:
        return range(1)
    return range(pd.num_instances) if pd.num_prefill is None else range(pd.num_prefill, pd.num_prefill + 1)


def solve_one_pd(scenario: Scenario, request_price: float | None = None) -> Solution:
    """The best (t, N_p) by Eq. 6. For one PD cluster and at most one tier of PrfaaS clusters.

    With `request_price`, what serving a request is worth, the best is the one that earns most after paying for its
    egress; without, the one with the greatest throughput.
    """
    (pd,) = scenario.pd
    assert len(scenario.tiers) <= 1, "several tiers need solve_many"
    scanned = [rates_at(scenario, pd, threshold) for threshold in thresholds_of(scenario)]
    refine = len(scanned) > 1 and not scenario.workload.is_discrete
    kept = [1.0 if request_price is None else _share_kept(scenario, pd, r.long, request_price) for r in scanned]

    def scanned_best(count: int) -> float:
        decode_rps = (pd.num_instances - count) * pd.decode_rps
        return max(min(r.prefill_rps(count), decode_rps) * share for r, share in zip(scanned, kept, strict=True))

    @cache
    def best_at(count: int) -> tuple[Score, Rates]:
        decode_rps = (pd.num_instances - count) * pd.decode_rps

        def score(rates: Rates) -> Score:
            """Among equal throughputs, the most prefill to spare: bursts find room there."""
            prefill_rps = rates.prefill_rps(count)
            share = 1.0 if request_price is None else _share_kept(scenario, pd, rates.long, request_price)
            return min(prefill_rps, decode_rps) * share, prefill_rps

        index = max(range(len(scanned)), key=lambda i: score(scanned[i]))
        found = [scanned[index]]
        for middle in {index, *_crossings(scanned, count)} if refine else ():
            around = scanned[max(0, middle - 1)], scanned[middle], scanned[min(len(scanned) - 1, middle + 1)]
            found.append(_refine(around, lambda t: rates_at(scenario, pd, t), score))
        rates = max(found, key=score)
        return score(rates), rates

    counts = prefill_counts(scenario, pd)
    tried = counts if len(counts) <= _FEW_COUNTS else _around_peak(counts, scanned_best, lambda c: best_at(c)[0])
    count = max(tried, key=lambda count: best_at(count)[0])
    rates = best_at(count)[1]
    system_rps = min(rates.prefill_rps(count), (pd.num_instances - count) * pd.decode_rps)
    return Solution(
        remote=tuple(TierBand(tuple(c.name for c in tier), rates.long) for tier in scenario.tiers),
        local=rates.short,
        num_pd_prefill={pd.name: count},
        system_rps=system_rps,
        routes=tuple(_routes(scenario, pd, rates, system_rps)),
    )


def _around_peak(counts: range, coarse: Callable[[int], float], exact: Callable[[int], Score]) -> range:
    """Of many counts, those at the best. What prefill can do rises with N_p and what decode can do falls, so that there
    is one peak: first by the scan alone, which may be a few percent of the counts beside it."""
    low, high, step = counts[0], counts[-1], len(counts)
    while step > 1:
        step = -(-(high - low) // _FEW_COUNTS)
        peak = max(range(low, high + 1, step), key=coarse)
        low, high = max(low, peak - step), min(high, peak + step)
    margin = max(_FEW_COUNTS // 4, len(counts) // 25)
    low, high = max(counts[0], low - margin), min(counts[-1], high + margin)
    # By thirds, not by neighbours: those differ by less than a threshold of whole tokens does.
    while high - low > 2:
        third = max(1, (high - low) // 3)
        low, high = (low + third, high) if exact(low + third) < exact(high - third) else (low, high - third)
    return range(low, high + 1)


def _crossings(scanned: list[Rates], count: int) -> list[int]:
    """Where the two sides of Eq. 7 change places: a peak may stand between two scanned thresholds and be higher than
    the best of them all. One for curves that bend as prefill does; tables may have more."""
    above = [rates.long_rps > rates.short_rps * count for rates in scanned]
    return [index for index in range(1, len(scanned)) if above[index] != above[index - 1]][:_MAX_CROSSINGS]


def _share_kept(scenario: Scenario, pd: PdCluster, long: Band, request_price: float) -> float:
    """What is left of a request's price after its egress is paid, as a share of the price."""
    if not long.fraction:
        return 1.0
    capacity = remote_capacity(scenario, pd, long)
    price_per_byte = {link.source: link.price_per_byte for link in scenario.links if link.target == pd.name}
    total = math.fsum(capacity.values()) or math.inf
    paid = math.fsum(rps / total * price_per_byte[name] for name, rps in capacity.items())
    return 1 - long.fraction * scenario.service(scenario.kv_bytes, long) * paid / request_price


def _refine(
    around: tuple[Rates, Rates, Rates], rates: Callable[[float], Rates], score: Callable[[Rates], Score]
) -> Rates:
    """Narrow down between the neighbours of a scanned threshold, then whole tokens: on a steep side one of them counts.

    It climbs by the second part of the score too, so that on a plateau of throughput it ends where most is to spare."""
    low, high = around[0].threshold_tokens, around[2].threshold_tokens
    peak = math.floor(golden(lambda t: score(rates(t)), low, high, _RESOLUTION_TOKENS))
    return max([*around, *(rates(float(whole)) for whole in range(peak - 1, peak + 3))], key=score)


def _routes(scenario: Scenario, pd: PdCluster, rates: Rates, system_rps: float) -> Iterable[Route]:
    if rates.long.fraction:
        capacity = remote_capacity(scenario, pd, rates.long)
        total = math.fsum(capacity.values())
        for name, share in capacity.items():
            yield Route(name, pd.name, rates.long, system_rps * rates.long.fraction * (share / total if total else 0.0))
    if rates.short.fraction:
        yield Route(None, pd.name, rates.short, system_rps * rates.short.fraction)
