"""What a plan costs: GPU hours are paid for whether they are busy or not, egress by the byte."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from prfaas.core.planning.scenario import PdCluster, PlanningError, PolicyKind, PrfaasCluster, Scenario
from prfaas.core.planning.solution import Solution
from prfaas.core.planning.solve import solve
from prfaas.core.planning.usage import egress_of

_HOUR_S: Final = 3600.0

#: The value of a request and the plan that is best at this value settle in two or three rounds.
_MAX_ROUNDS: Final = 6


@dataclass(frozen=True, slots=True)
class Price:
    """A configuration and what it costs at its full rate."""

    threshold_tokens: float | None
    num_pd_prefill: int
    system_rps: float
    per_request: float
    per_million_tokens: float


@dataclass(frozen=True, slots=True)
class Cost:
    """Money, in `currency`. `cheapest`: the threshold and split with the least cost per request. `without_offload`: the
    same PD clusters alone, without the bills of PrfaaS clusters and links; None where nothing is
    offloaded, or where they serve nothing alone.
    """

    currency: str
    gpu_per_hour: float
    egress_per_hour: float
    per_request: float
    per_million_tokens: float
    cheapest: Price
    without_offload: Price | None

    @property
    def per_hour(self) -> float:
        return self.gpu_per_hour + self.egress_per_hour


def cost_of(scenario: Scenario, solution: Solution) -> Cost | None:
    """The cost of a plan; None without prices. Raises PlanningError if some clusters have a price and others do not."""
    gpu_per_hour = _gpu_per_hour(scenario)
    if gpu_per_hour is None:
        return None
    own = _price(scenario, solution, gpu_per_hour)
    without, cheapest = None, own
    if scenario.prfaas_by_name:
        alone = replace(scenario, policy=PolicyKind.HOMOGENEOUS, threshold_tokens=None)
        local = solve(alone)
        # A single PD instance cannot prefill and decode: then nothing is served without offload, at no price.
        without = _price(alone, local, _gpu_per_hour(alone) or 0.0) if local.system_rps else None
        known = [own]
        if local.system_rps and scenario.policy is PolicyKind.PRFAAS:
            known.append(_price(scenario, local, gpu_per_hour))
        cheapest = _cheapest(scenario, min(known, key=lambda price: price.per_request), gpu_per_hour)
    return Cost(
        currency=scenario.currency,
        gpu_per_hour=gpu_per_hour,
        egress_per_hour=_egress_per_hour(scenario, solution),
        per_request=own.per_request,
        per_million_tokens=own.per_million_tokens,
        cheapest=cheapest,
        without_offload=without,
    )


def _gpu_per_hour(scenario: Scenario) -> float | None:
    rented: list[PrfaasCluster | PdCluster] = [*scenario.prfaas_by_name.values(), *scenario.pd]
    unpriced = [cluster.name for cluster in rented if cluster.price_per_gpu_hour is None]
    if len(unpriced) == len(rented):
        return None
    if unpriced:
        raise PlanningError(f"prices: there is no price per GPU-hour for {', '.join(unpriced)}, but for other clusters")
    return sum(
        cluster.num_instances * cluster.gpus_per_instance * (cluster.price_per_gpu_hour or 0.0) for cluster in rented
    )


def _egress_per_hour(scenario: Scenario, solution: Solution) -> float:
    price = {(link.source, link.target): link.price_per_byte for link in scenario.links}
    routes = [route for route in solution.routes if route.prfaas is not None]
    return sum(egress_of(scenario, r) * price[r.prfaas or "", r.pd] for r in routes) * _HOUR_S


def _price(scenario: Scenario, solution: Solution, gpu_per_hour: float) -> Price:
    per_hour = gpu_per_hour + _egress_per_hour(scenario, solution)
    per_request = per_hour / (solution.system_rps * _HOUR_S)
    tokens = scenario.workload.mean_tokens + scenario.mean_output_tokens
    return Price(
        solution.threshold_tokens if scenario.prfaas_by_name else None,
        sum(solution.num_pd_prefill.values()),
        solution.system_rps,
        per_request,
        per_request / tokens * 1e6,
    )


def _cheapest(scenario: Scenario, best: Price, gpu_per_hour: float) -> Price:
    """Dinkelbach's method: the configuration that earns most if a request is worth what it costs in the best one so
    far, until that is the best one itself."""
    if not any(link.price_per_byte for link in scenario.links):
        return best  # the GPUs are paid for anyway, so that most throughput is cheapest
    near = None
    for _ in range(_MAX_ROUNDS):
        if not best.per_request:
            break  # nobody pays for the GPUs, and nothing is sent
        near = solve(scenario, near=near, request_price=best.per_request)
        if not near.system_rps:
            break  # the best earns next to nothing, and all others lose
        found = _price(scenario, near, gpu_per_hour)
        if found.per_request >= best.per_request * (1 - 1e-6):
            break
        best = found
    return best
