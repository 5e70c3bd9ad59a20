"""The best flow of requests between clusters for given bands of lengths.

For given bands every stage has a capacity in requests per second, so the best rates are a linear programme, and the
whole numbers of prefill instances N_p,j make it a mixed-integer one:

    maximise Λ over flows x_ij ≥ 0 (prefilled in i, decoded in j), z_j ≥ 0 (prefilled and decoded in j), 0 ≤ n_j < N_j
    Σ x_ij over the clusters i of tier m and all j = p_m Λ          every request of a band goes somewhere
    Σ z_j = p_0 Λ
    Σ_j x_ij ≤ N_i / T_i(l_m)                                       PrfaaS compute
    x_ij ≤ B_ij / S(l_m)                                            link
    z_j ≤ n_j / T_j(l_0)                                            PD-P
    z_j + Σ_i x_ij ≤ (N_j − n_j) · decode_rps_j                     PD-D
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from prfaas.core.planning.linear import LinearProgramme
from prfaas.core.planning.scenario import PdCluster, PolicyKind, PrfaasCluster, Scenario, WanLink
from prfaas.core.planning.solution import Route, Solution, TierBand
from prfaas.core.planning.workload import Band, band

Tier = tuple[PrfaasCluster, ...]


@dataclass(frozen=True)
class Ladder:
    """Tiers in the order of their bands, shortest lengths first, and the thresholds under each of them."""

    tiers: tuple[Tier, ...]
    edges: tuple[float, ...]


@dataclass(frozen=True)
class Flows:
    """Rates of one programme's optimum, in requests per second. `score` is what was maximised."""

    score: float
    system_rps: float
    counts: dict[str, float]
    remote: dict[tuple[str, str], float]
    local: dict[str, float]


def bands_of(scenario: Scenario, tiers: Sequence[Tier], edges: tuple[float, ...]) -> tuple[Band, list[Band]]:
    """The local band under the lowest threshold, and one per tier above it."""
    workload = scenario.workload
    limits = [*edges, workload.max_tokens]
    local = band(workload, -math.inf, limits[0])
    return local, [band(workload, low, high) for low, high in pairwise(limits)]


def links_from(scenario: Scenario, source: str) -> list[WanLink]:
    """Links that start at a PrfaaS cluster."""
    return scenario.links_by_source.get(source, [])


def tier_rps(scenario: Scenario, tier: Tier, taken: Band) -> float:
    """Eq. 3 for a tier, with all of its links; infinite for an empty band."""
    if not taken.fraction:
        return math.inf
    kv_bytes = scenario.service(scenario.kv_bytes, taken)
    prefill_s = scenario.service(tier[0].prefill_s, taken)
    total = 0.0
    for cluster in tier:
        network = math.fsum(link.bytes_per_s for link in links_from(scenario, cluster.name))
        total += min(cluster.num_instances / prefill_s, network / kv_bytes if kv_bytes else math.inf)
    return total


class FlowProgramme:
    """The linear programme of this module's text. `counts` fixes every n_j; `whole` makes them whole numbers."""

    def __init__(
        self,
        scenario: Scenario,
        counts: dict[str, int] | None,
        request_price: float | None,
        *,
        whole: bool = False,
    ) -> None:
        self._scenario = scenario
        self._fixed = counts
        self._request_price = request_price
        self._whole = whole

    def score(self, tiers: tuple[Tier, ...], edges: tuple[float, ...]) -> float:
        """Λ at these thresholds, less egress as a share of what requests are worth."""
        return self.solve(Ladder(tiers, edges)).score

    def solve(self, ladder: Ladder) -> Flows:
        """The best rates at a ladder's thresholds."""
        scenario = self._scenario
        local, remote = bands_of(scenario, ladder.tiers, ladder.edges)
        unit = self._bound_rps(ladder.tiers, remote, local)
        if not unit:
            return Flows(0.0, 0.0, {pd.name: self._count_limits(pd)[0] for pd in scenario.pd}, {}, {})
        rows = LinearProgramme()
        lam = rows.column(0.0, math.inf, cost=1.0)
        counts = {pd.name: rows.column(*self._count_limits(pd), whole=self._whole) for pd in scenario.pd}
        flows: dict[tuple[str, str], int] = {}
        for tier, tier_band in zip(ladder.tiers, remote, strict=True):
            self._remote(rows, lam, tier, tier_band, flows, unit)
        shorts = self._local(rows, lam, counts, local, unit)
        into: dict[str, list[tuple[int, float]]] = {pd.name: [] for pd in scenario.pd}
        for (_, target), flow in flows.items():
            into[target].append((flow, 1.0))
        for pd in scenario.pd:
            arrivals = into[pd.name]
            own = [(shorts[pd.name], 1.0)] if pd.name in shorts else []
            per_instance = pd.decode_rps / unit
            rows.at_most(pd.num_instances * per_instance, [*arrivals, *own, (counts[pd.name], per_instance)])
        score, value = rows.maximise()
        return Flows(
            score * unit,
            max(0.0, value[lam]) * unit,
            {name: value[column] for name, column in counts.items()},
            {pair: max(0.0, value[column]) * unit for pair, column in flows.items()},
            {name: max(0.0, value[column]) * unit for name, column in shorts.items()},
        )

    def _bound_rps(self, tiers: Sequence[Tier], remote: Sequence[Band], local: Band) -> float:
        """No Λ is greater: what each stage could do alone. Rates in the programme are shares of it, because the
        solver's tolerances are absolute."""
        scenario = self._scenario
        bounds = [math.fsum(pd.num_instances * pd.decode_rps for pd in scenario.pd)]
        for tier, tier_band in zip(tiers, remote, strict=True):
            if tier_band.fraction:
                bounds.append(tier_rps(scenario, tier, tier_band) / tier_band.fraction)
        if local.fraction:
            most = math.fsum(self._count_limits(pd)[1] / scenario.service(pd.prefill_s, local) for pd in scenario.pd)
            bounds.append(most / local.fraction)
        return min(bounds)

    def _count_limits(self, pd: PdCluster) -> tuple[float, float]:
        if self._fixed is not None:
            return self._fixed[pd.name], self._fixed[pd.name]
        if self._scenario.policy is PolicyKind.NAIVE:
            return 0, 0
        if pd.num_prefill is not None:
            return pd.num_prefill, pd.num_prefill
        return 0, pd.num_instances - 1

    def _remote(
        self,
        rows: LinearProgramme,
        lam: int,
        tier: Tier,
        tier_band: Band,
        flows: dict[tuple[str, str], int],
        unit: float,
    ) -> None:
        if not tier_band.fraction:
            return
        scenario = self._scenario
        kv_bytes = scenario.service(scenario.kv_bytes, tier_band)
        of_tier = []
        for cluster in tier:
            own = []
            for link in links_from(scenario, cluster.name):
                limit = link.bytes_per_s / kv_bytes if kv_bytes else math.inf
                # Without a price nothing but a tie is decided by this: among equal rates, those that send the least.
                cost = 1e-7
                if self._request_price is not None:
                    cost += kv_bytes * link.price_per_byte / self._request_price
                column = rows.column(0.0, limit / unit, cost=-cost)
                flows[cluster.name, link.target] = column
                own.append((column, 1.0))
            rows.at_most(cluster.num_instances / scenario.service(cluster.prefill_s, tier_band) / unit, own)
            of_tier += own
        rows.equal(0.0, [*of_tier, (lam, -tier_band.fraction)])

    def _local(
        self, rows: LinearProgramme, lam: int, counts: dict[str, int], local: Band, unit: float
    ) -> dict[str, int]:
        if not local.fraction:
            return {}
        shorts = {}
        for pd in self._scenario.pd:
            shorts[pd.name] = rows.column(0.0, math.inf)
            per_instance = 1 / self._scenario.service(pd.prefill_s, local) / unit
            rows.at_most(0.0, [(shorts[pd.name], 1.0), (counts[pd.name], -per_instance)])
        rows.equal(0.0, [*((column, 1.0) for column in shorts.values()), (lam, -local.fraction)])
        return shorts


def solution_of(scenario: Scenario, ladder: Ladder, flows: Flows) -> Solution:
    """What a programme's optimum at a ladder means for clusters."""
    local, remote = bands_of(scenario, ladder.tiers, ladder.edges)
    tiers = tuple(
        TierBand(tuple(cluster.name for cluster in tier), tier_band)
        for tier, tier_band in zip(ladder.tiers, remote, strict=True)
    )
    band_of = {name: tier.band for tier in tiers for name in tier.clusters}
    routes = [Route(source, target, band_of[source], rps) for (source, target), rps in flows.remote.items() if rps > 0]
    routes += [Route(None, name, local, rps) for name, rps in flows.local.items() if rps > 0]
    counts = {name: round(count) for name, count in flows.counts.items()}
    return Solution(tiers, local, counts, flows.system_rps, tuple(routes))
