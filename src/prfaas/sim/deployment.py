"""What is simulated: instances with their engines' profiles, links, and what the scheduler is given."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from prfaas.core.control.lifecycle import TransferTerms
from prfaas.core.control.router import COOL_DOWN_S, RoutePolicy
from prfaas.core.model.curve import Curve
from prfaas.core.model.decode import StepTimes
from prfaas.core.planning.scenario import PlanningError, PolicyKind, Scenario
from prfaas.core.planning.serving import moves_threshold, served_threshold_tokens, serving_model
from prfaas.core.planning.solution import Solution
from prfaas.core.topology import Cluster, Duty, Instance, Link, Role, Topology, complete_links
from prfaas.sim.caches import CacheProfile
from prfaas.sim.engine import EngineProfile

#: What `transfer.deadline` and `transfer.lease` are if a file does not say.
DEFAULT_TERMS: Final = TransferTerms(deadline_s=60.0, lease_s=30.0)


@dataclass(frozen=True)
class SimulatedDeployment:
    """`profiles` are by instance. A link without bandwidth has no limit, one without round-trip time no delay.
    `kv_bytes`: what crosses of a prompt of l uncached tokens. `is_layer_wise`: it leaves while prefill goes on.
    Nodes say how their links are every `telemetry_s`, and with `tells_falls` also when much less crosses than did.
    Without `sees_queues` they see late bytes, but not that bytes queue, as where their sockets end at a proxy. An
    instance gets another duty within `switch_s`. Without `caches` prompts are as long as what is uncached of them."""

    topology: Topology
    profiles: dict[str, EngineProfile]
    kv_bytes: Curve
    policy: RoutePolicy
    terms: TransferTerms = DEFAULT_TERMS
    is_layer_wise: bool = True
    telemetry_s: float = 1.0
    tells_falls: bool = True
    sees_queues: bool = True
    switch_s: float = 5.0
    caches: CacheProfile | None = None


def planned_deployment(
    scenario: Scenario,
    solution: Solution,
    *,
    terms: TransferTerms = DEFAULT_TERMS,
    rtts_s: Mapping[tuple[str, str], float] = MappingProxyType({}),
    gateway_rtts_s: Mapping[str, float] = MappingProxyType({}),
    is_layer_wise: bool = True,
    tpot_slo_s: float | None = None,
    max_ttft_s: float | None = None,
    is_fixed: bool = False,
    convertible: Collection[str] = (),
    cool_down_s: float = COOL_DOWN_S,
    has_constant_steps: bool = False,
) -> SimulatedDeployment:
    """A scenario with the split and the threshold of a plan. `rtts_s` are by source and target of a link,
    `gateway_rtts_s` from the gateway, by cluster. `is_fixed`: the threshold stays where it is planned, whatever the
    policy. `convertible`: PD clusters whose instances may get other duties. `has_constant_steps`: a decode step takes
    what it takes with a full batch, as in Eq. 5. Raises PlanningError if it is not known how long a decode step takes.
    """
    clusters = [
        Cluster(pd.name, Role.PD, pd.name in convertible, gateway_rtts_s.get(pd.name, 0.0)) for pd in scenario.pd
    ]
    clusters += [Cluster(name, Role.PRFAAS, rtt_s=gateway_rtts_s.get(name, 0.0)) for name in scenario.prfaas_by_name]
    instances: list[Instance] = []
    profiles: dict[str, EngineProfile] = {}
    for pd in scenario.pd:
        if pd.decode is None:
            raise PlanningError(f"{pd.name}: a simulation needs its decode batch and step")
        num_prefill = solution.num_pd_prefill.get(pd.name, 0)
        steps = StepTimes(pd.decode_steps) if len(pd.decode_steps) > 1 and not has_constant_steps else None
        profile = EngineProfile(pd.prefill_s, pd.decode.batch, pd.decode.step_s, steps=steps)
        for index in range(pd.num_instances):
            instance = _instance(pd.name, index, Duty.PREFILL if index < num_prefill else Duty.DECODE)
            instances.append(instance)
            profiles[instance.name] = profile
    for prfaas in scenario.prfaas_by_name.values():
        for index in range(prfaas.num_instances):
            instance = _instance(prfaas.name, index, Duty.PREFILL)
            instances.append(instance)
            profiles[instance.name] = EngineProfile(prfaas.prefill_s, 1, 1.0)
    links = [
        Link(link.source, link.target, link.bytes_per_s, rtts_s.get((link.source, link.target)))
        for link in scenario.links
        if link.source in scenario.prfaas_by_name
    ]
    topology = Topology(tuple(clusters), tuple(instances), complete_links(clusters, links) if links else ())
    policy = RoutePolicy(
        offload=scenario.policy is not PolicyKind.HOMOGENEOUS,
        threshold_tokens=served_threshold_tokens(solution),
        model=serving_model(scenario, tpot_slo_s) if moves_threshold(scenario) and not is_fixed else None,
        max_ttft_s=max_ttft_s,
        cool_down_s=cool_down_s,
    )
    return SimulatedDeployment(topology, profiles, scenario.kv_bytes, policy, terms, is_layer_wise)


def _instance(cluster: str, index: int, duty: Duty) -> Instance:
    name = f"{cluster}-{index}"
    return Instance(name, cluster, duty, f"sim://{name}/engine", f"sim://{name}/node", f"sim://{name}", "simulated")
