"""How far each resource of a plan is used at its limit, and which of them is the limit."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from prfaas.core.planning.scenario import Scenario
from prfaas.core.planning.solution import Route, Solution

#: A stage this close to full is a bottleneck: plans are read to three digits.
FULL: Final = 0.999


#: One Gbps, in bytes per second.
GBPS: Final = 125e6


class Stage(StrEnum):
    """Where a request can be held up."""

    PRFAAS = "prfaas_prefill"
    LINK = "link"
    PD_PREFILL = "pd_prefill"
    PD_DECODE = "pd_decode"


@dataclass(frozen=True, slots=True)
class Usage:
    """One resource. `name` is a cluster or `from>to`; `capacity` and `used` are instances, or bytes per second."""

    stage: Stage
    name: str
    used: float
    capacity: float

    @property
    def utilization(self) -> float:
        """0 to 1; 0 for a resource of which there is none."""
        return self.used / self.capacity if self.capacity else 0.0


def usages(scenario: Scenario, solution: Solution) -> list[Usage]:
    """Every resource that the policy may use, busy or not, at the plan's full rate."""
    found = []
    for name, cluster in scenario.prfaas_by_name.items():
        busy = sum(r.rps * scenario.service(cluster.prefill_s, r.band) for r in solution.routes if r.prfaas == name)
        found.append(Usage(Stage.PRFAAS, name, busy, cluster.num_instances))
    for link in scenario.links:
        if link.source in scenario.prfaas_by_name:
            routes = [r for r in solution.routes if (r.prfaas, r.pd) == (link.source, link.target)]
            used = sum(egress_of(scenario, route) for route in routes)
            found.append(Usage(Stage.LINK, f"{link.source}>{link.target}", used, link.bytes_per_s))
    for pd in scenario.pd:
        routes = [r for r in solution.routes if r.pd == pd.name]
        busy = sum(r.rps * scenario.service(pd.prefill_s, r.band) for r in routes if r.prfaas is None)
        count = solution.num_pd_prefill[pd.name]
        found.append(Usage(Stage.PD_PREFILL, pd.name, busy, count))
        decoding = sum(route.rps for route in routes) / pd.decode_rps
        found.append(Usage(Stage.PD_DECODE, pd.name, decoding, pd.num_instances - count))
    return found


def egress_of(scenario: Scenario, route: Route) -> float:
    """Bytes per second that a route sends over its link."""
    return 0.0 if route.prfaas is None else route.rps * scenario.service(scenario.kv_bytes, route.band)


def bottlenecks(found: list[Usage], scarce: set[Stage]) -> list[Stage]:
    """Stages that hold the whole system. One cluster or link holds it when it is full. Of several, some are full by
    chance of how requests are spread: PrfaaS clusters and links hold the system if more of one would bring something
    (`scarce`), PD stages if they are full together. If nothing is (whole instances leave a rest everywhere), the
    stages of the fullest resource."""
    held = []
    for stage in Stage:
        of_stage = [usage for usage in found if usage.stage is stage and usage.used > 0]
        if len(of_stage) > 1 and stage in (Stage.PRFAAS, Stage.LINK):
            is_held = stage in scarce
        else:
            is_held = sum(u.used for u in of_stage) >= FULL * sum(u.capacity for u in of_stage) > 0
        if is_held:
            held.append(stage)
    if not held:
        fullest = max(usage.utilization for usage in found)
        held = [stage for stage in Stage if any(u.stage is stage and u.utilization >= fullest - 1e-9 for u in found)]
    return held
