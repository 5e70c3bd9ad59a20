"""Deployments whose rates and waits have closed forms, and loads that drive them there."""

from __future__ import annotations

import random
from typing import Final

from prfaas.core.control.lifecycle import TransferTerms
from prfaas.core.control.router import RoutePolicy
from prfaas.core.model.curve import polynomial
from prfaas.core.model.decode import DecodePoint
from prfaas.core.planning.scenario import PdCluster, PrfaasCluster, Scenario, ServiceTime, WanLink
from prfaas.core.planning.solve import solve
from prfaas.core.planning.workload import TruncatedLogNormal
from prfaas.core.topology import Cluster, Duty, Instance, Role, Topology
from prfaas.sim.arrivals import lengths_of
from prfaas.sim.deployment import SimulatedDeployment, planned_deployment
from prfaas.sim.engine import EngineProfile
from prfaas.sim.runs import ClosedLoop

#: A queue that never empties would let every transfer miss its deadline.
FOR_EVER: Final = TransferTerms(deadline_s=1e9, lease_s=1e9)


def saturated_rps(scenario: Scenario, seed: int, run_s: float, num_clients: int) -> tuple[float, float]:
    """(Eq. 6's Λ_max, what a closed loop of many clients gets at the planned threshold)."""
    solution = solve(scenario)
    deployment = planned_deployment(scenario, solution, terms=FOR_EVER, is_fixed=True)
    load = ClosedLoop(
        deployment, random.Random(seed), lengths_of(scenario.workload), num_clients=num_clients,
        num_output_tokens=round(scenario.mean_output_tokens),
    )  # fmt: skip
    warm_s = run_s / 5
    load.run(warm_s + run_s)
    assert {life.outcome for life in load.ended} == {"ok"}
    return solution.system_rps, load.throughput_rps(warm_s, warm_s + run_s)


def random_scenario(rng: random.Random) -> Scenario:
    """Up to eight remote instances and two to twelve local ones, links of 1 to 100 Gbps."""
    remote = PrfaasCluster(
        "west", rng.randint(1, 8), 8, polynomial(rng.uniform(0.05, 0.5), rng.uniform(1e-5, 1e-4), 1e-10)
    )
    step = DecodePoint(rng.randint(4, 32), rng.uniform(0.01, 0.05))
    output = rng.choice([64, 256, 1024])
    local = PdCluster(
        "east", rng.randint(2, 12), 8, polynomial(rng.uniform(0.05, 0.5), rng.uniform(5e-5, 3e-4), 3e-10),
        step.rps(output), decode=step,
    )  # fmt: skip
    link = WanLink("west", "east", rng.choice([1, 5, 20, 100]) * 125e6)
    workload = TruncatedLogNormal(rng.uniform(7, 10), rng.uniform(0.3, 1.2), 128, 131_072)
    return Scenario(
        workload, output, polynomial(1e8, 2e4), (remote,), (local,), (link,), service_time=ServiceTime.EXPECTED
    )


def lone_prefill(service_s: float) -> SimulatedDeployment:
    """One prefill instance of constant service time; decoding takes no time."""
    names = {"pd-p": Duty.PREFILL, "pd-d": Duty.DECODE}
    instances = tuple(
        Instance(name, "pd", duty, f"sim://{name}", f"sim://{name}/node", name) for name, duty in names.items()
    )
    topology = Topology((Cluster("pd", Role.PD),), instances, ())
    profile = EngineProfile(polynomial(service_s), max_batch=10_000, step_s=1e-9)
    return SimulatedDeployment(
        topology,
        dict.fromkeys(names, profile),
        polynomial(0.0),
        RoutePolicy(offload=False, threshold_tokens=0),
        FOR_EVER,
    )
