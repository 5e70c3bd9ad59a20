"""A plan: the best configuration of a scenario and everything that is told of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Final

from prfaas.core.planning.cost import Cost, cost_of
from prfaas.core.planning.gains import Gain, gains
from prfaas.core.planning.scenario import PlanningError, PolicyKind, Scenario
from prfaas.core.planning.solution import Solution
from prfaas.core.planning.solve import solve
from prfaas.core.planning.ttft import mean_s, quantile_s, timed_routes
from prfaas.core.planning.usage import Stage, Usage, bottlenecks, egress_of, usages

#: What one more of is bought: a PD instance may prefill or decode.
_OF: Final = {Stage.PRFAAS: "prfaas", Stage.LINK: "link", Stage.PD_DECODE: "pd"}


@dataclass(frozen=True)
class Plan:
    """The answer to a scenario. Rates are requests per second; None where the policy has no such thing.

    `prfaas_rps`, `pd_prefill_rps` and `pd_decode_rps` are the stages' own throughputs Θ (Eq. 3, 4, 5), not divided by
    the share of requests that reaches them.
    """

    scenario: Scenario
    solution: Solution
    usages: tuple[Usage, ...]
    bottlenecks: tuple[Stage, ...]
    gains: tuple[Gain, ...]
    cost: Cost | None
    prfaas_rps: float | None
    pd_prefill_rps: float | None
    pd_decode_rps: float
    egress_bytes_per_s: float | None
    egress_utilization: float | None
    ttft_s_mean: float
    ttft_s_p90: float

    @property
    def offloads(self) -> bool:
        """Whether any request leaves."""
        return self.solution.offload_fraction > 0

    def to_json(self) -> dict[str, object]:
        """The object that `prfaas plan --json` prints; docs/planning.md has the meaning of each key."""
        scenario, solution = self.scenario, self.solution
        has_threshold = scenario.policy in (PolicyKind.PRFAAS, PolicyKind.FIXED) and bool(scenario.prfaas_by_name)
        has_local = scenario.policy is not PolicyKind.NAIVE
        num_prefill = sum(solution.num_pd_prefill.values())
        num_pd = sum(cluster.num_instances for cluster in scenario.pd)
        return {
            "policy": str(scenario.policy),
            "routing_threshold_tokens": round(scenario.threshold_tokens or solution.threshold_tokens)
            if has_threshold
            else None,
            "num_prfaas": sum(c.num_instances for c in scenario.prfaas_by_name.values()) or None,
            "num_pd_prefill": num_prefill if has_local else None,
            "num_pd_decode": num_pd - num_prefill,
            "offload_fraction": solution.offload_fraction if scenario.prfaas_by_name else None,
            "mean_long_tokens": solution.mean_long_tokens,
            "mean_short_tokens": solution.local.mean_tokens or None,
            "prfaas_rps": self.prfaas_rps,
            "pd_prefill_rps": self.pd_prefill_rps,
            "pd_decode_rps": self.pd_decode_rps,
            "system_rps": solution.system_rps,
            "bottleneck": "+".join(self.bottlenecks),
            "egress_bytes_per_s": self.egress_bytes_per_s,
            "egress_utilization": self.egress_utilization,
            "ttft_s_mean": self.ttft_s_mean,
            "ttft_s_p90": self.ttft_s_p90,
            "cost": None if self.cost is None else {"per_hour": self.cost.per_hour, **asdict(self.cost)},
            "arrival_rps": scenario.arrival_rps,
            "service_time": str(scenario.service_time),
            "bands": [
                {
                    "clusters": list(tier.clusters),
                    "min_tokens": max(0.0, tier.band.low_tokens),
                    "max_tokens": tier.band.high_tokens,
                    "fraction": tier.band.fraction,
                    "mean_tokens": tier.band.mean_tokens or None,
                }
                for tier in solution.remote
            ],
            "pd_prefill_instances": solution.num_pd_prefill,
            "resources": [
                {"stage": str(u.stage), "name": u.name, "used": u.used, "capacity": u.capacity} for u in self.usages
            ],
            "one_more_brings_rps": [
                {"of": _OF[gain.stage], "name": gain.name, "extra_rps": gain.extra_rps} for gain in self.gains
            ],
            "notes": list(scenario.notes),
        }


def make_plan(scenario: Scenario) -> Plan:
    """The best plan. Raises PlanningError if not a single request could be served."""
    solution = solve(scenario)
    if not solution.system_rps > 0:
        raise PlanningError("no request can be served: check prefill_instances, the threshold and the links")
    found = usages(scenario, solution)
    routes = timed_routes(scenario, solution)
    found_gains = gains(scenario, solution, found)
    scarce = {gain.stage for gain in found_gains if gain.extra_rps > 0}
    egress, utilization = _egress(scenario, solution, found)
    return Plan(
        scenario=scenario,
        solution=solution,
        usages=tuple(found),
        bottlenecks=tuple(bottlenecks(found, scarce)),
        gains=tuple(found_gains),
        cost=cost_of(scenario, solution),
        prfaas_rps=_prfaas_rps(scenario, solution),
        pd_prefill_rps=_pd_prefill_rps(scenario, solution),
        pd_decode_rps=sum((c.num_instances - solution.num_pd_prefill[c.name]) * c.decode_rps for c in scenario.pd),
        egress_bytes_per_s=egress,
        egress_utilization=utilization,
        ttft_s_mean=mean_s(scenario, routes),
        ttft_s_p90=quantile_s(scenario, routes, 0.9),
    )


def _egress(scenario: Scenario, solution: Solution, found: list[Usage]) -> tuple[float | None, float | None]:
    capacity = sum(usage.capacity for usage in found if usage.stage is Stage.LINK)
    if not capacity:
        return None, None
    egress = sum(egress_of(scenario, route) for route in solution.routes)
    return egress, egress / capacity


def _prfaas_rps(scenario: Scenario, solution: Solution) -> float | None:
    """Eq. 3, summed over clusters, each with all of its links."""
    total = 0.0
    for tier in solution.remote:
        kv_bytes = scenario.service(scenario.kv_bytes, tier.band)
        for name in tier.clusters if tier.band.fraction else ():
            cluster = scenario.prfaas_by_name[name]
            link_rps = sum(link.bytes_per_s for link in scenario.links if link.source == name) / kv_bytes
            total += min(cluster.num_instances / scenario.service(cluster.prefill_s, tier.band), link_rps)
    return total or None


def _pd_prefill_rps(scenario: Scenario, solution: Solution) -> float | None:
    """Eq. 4, summed over clusters."""
    if not solution.local.fraction:
        return None
    return sum(solution.num_pd_prefill[pd.name] / scenario.service(pd.prefill_s, solution.local) for pd in scenario.pd)
