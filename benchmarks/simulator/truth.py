"""The simulator against closed forms, at length.

`python -m benchmarks.simulator.truth [--deployments N]`. Saturation: the case study's three files and N random
deployments, driven by a closed loop, against Eq. 6 with mean service times over each band. Waiting: one prefill
instance of constant service time under Poisson arrivals against the M/D/1 queue.
Speed: requests simulated in a second.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import time
from pathlib import Path

from prfaas.core.planning.scenario import ServiceTime
from prfaas.core.planning.solve import solve
from prfaas.scenario.build import build_scenario
from prfaas.sim.arrivals import lengths_of, poisson
from prfaas.sim.deployment import planned_deployment
from prfaas.sim.runs import open_loop
from prfaas.testing.saturation import lone_prefill, random_scenario, saturated_rps

CASE_STUDY = Path(__file__).parents[2] / "examples" / "case-study"
CASES = ("prfaas", "homogeneous", "naive")


def saturation(num_deployments: int) -> None:
    """Λ_max: planned and simulated."""
    print("| deployment | planned, requests/s | simulated | ratio |\n|---|---|---|---|")
    for name in CASES:
        scenario = build_scenario(CASE_STUDY / f"{name}.yaml", ServiceTime.EXPECTED)
        planned, simulated = saturated_rps(scenario, seed=1, run_s=10_000, num_clients=400)
        print(f"| {name} | {planned:.4f} | {simulated:.4f} | {simulated / planned:.4f} |", flush=True)
    errors = []
    for seed in range(num_deployments):
        scenario = random_scenario(random.Random(seed))
        run_s = 6_000 / solve(scenario).system_rps
        planned, simulated = saturated_rps(scenario, seed, run_s=run_s, num_clients=600)
        errors.append(abs(simulated / planned - 1))
        if errors[-1] > 0.02:
            print(f"| seed {seed} | {planned:.4f} | {simulated:.4f} | **{simulated / planned:.4f}** |", flush=True)
    if errors:
        within = sum(error <= 0.02 for error in errors)
        print(f"{len(errors)} random deployments: {within} within 2%, median error {statistics.median(errors):.3%}, "
              f"worst {max(errors):.2%}")  # fmt: skip


def waiting() -> None:
    """M/D/1."""
    print("\n| utilization | mean wait, s | M/D/1 | ratio |\n|---|---|---|---|")
    service_s = 2.0
    for utilization in (0.3, 0.5, 0.7, 0.8):
        requests = poisson(random.Random(1), utilization / service_s, lambda rng: 100, 1)
        run = open_loop(lone_prefill(service_s), itertools.islice(requests, 300_000))
        mean_s = statistics.fmean((life.began_s or 0.0) - life.arrival.at_s - service_s for life in run.ended)
        expected_s = utilization * service_s / (2 * (1 - utilization))
        print(f"| {utilization} | {mean_s:.4f} | {expected_s:.4f} | {mean_s / expected_s:.4f} |", flush=True)


def speed() -> None:
    """The case study at 0.8 of its rate."""
    scenario = build_scenario(CASE_STUDY / "prfaas.yaml")
    solution = solve(scenario)
    deployment = planned_deployment(scenario, solution)
    requests = poisson(random.Random(1), 0.8 * solution.system_rps, lengths_of(scenario.workload), 1024)
    listed = list(itertools.islice(requests, 20_000))
    began_s = time.perf_counter()
    run = open_loop(deployment, listed)
    took_s = time.perf_counter() - began_s
    print(f"\n{len(listed)} requests in {took_s:.2f} s, {run.simulation.kernel.num_events} events: "
          f"{len(listed) / took_s:.0f} requests a second")  # fmt: skip


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--deployments", type=int, default=200)
    options = parser.parse_args()
    saturation(options.deployments)
    waiting()
    speed()


if __name__ == "__main__":
    main()
