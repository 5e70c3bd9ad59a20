"""The simulator against closed forms. `python -m benchmarks.simulator.truth` does the same at length."""

from __future__ import annotations

import itertools
import random
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from prfaas.core.control.lifecycle import TransferTerms
from prfaas.core.planning.scenario import PolicyKind, ServiceTime
from prfaas.core.planning.solve import solve
from prfaas.core.planning.ttft import mean_s, quantile_s, timed_routes
from prfaas.core.planning.workload import Workload
from prfaas.scenario.build import build_scenario
from prfaas.sim.arrivals import Arrival, lengths_of, poisson
from prfaas.sim.deployment import planned_deployment
from prfaas.sim.runs import open_loop
from prfaas.testing.saturation import lone_prefill, random_scenario, saturated_rps

CASE_STUDY = Path(__file__).parents[2] / "examples" / "case-study"


@pytest.mark.parametrize("name", ["prfaas", "homogeneous", "naive"])
def test_the_case_study_saturates_at_the_planned_rate(name: str) -> None:
    """Within 2%: mean service times as they are over each band, since a queue knows nothing of a mean length."""
    scenario = build_scenario(CASE_STUDY / f"{name}.yaml", ServiceTime.EXPECTED)
    planned, simulated = saturated_rps(scenario, seed=1, run_s=4_000, num_clients=400)
    print(f"{name}: planned {planned:.4f}, simulated {simulated:.4f}")
    assert simulated == pytest.approx(planned, rel=0.02)


@pytest.mark.parametrize("seed", range(6))
def test_random_deployments_saturate_at_the_planned_rate(seed: int) -> None:
    """Within 2%, whatever binds."""
    scenario = random_scenario(random.Random(seed))
    planned = solve(scenario).system_rps
    planned, simulated = saturated_rps(scenario, seed, run_s=6_000 / planned, num_clients=600)
    print(f"seed {seed}: planned {planned:.4f}, simulated {simulated:.4f}")
    assert simulated == pytest.approx(planned, rel=0.02)


def quantiles_of(workload: Workload, num: int) -> list[int]:
    """Lengths that stand for equal shares of the workload."""
    found = []
    for index in range(num):
        low, high = workload.min_tokens, workload.max_tokens
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if workload.fraction(0, middle) < (index + 0.5) / num else (low, middle)
        found.append(round(high))
    return found


@pytest.mark.parametrize("name", ["prfaas", "homogeneous", "naive"])
def test_without_queueing_the_time_to_first_token_is_the_papers(name: str) -> None:
    """Within 1% in mean and at the 90th percentile: requests one by one, KVCache sent after prefill as the paper
    reckons, and a decode step that takes no time."""
    scenario = build_scenario(CASE_STUDY / f"{name}.yaml")
    solution = solve(scenario)
    deployment = planned_deployment(scenario, solution, is_layer_wise=False, is_fixed=True)
    instant = {k: replace(profile, step_s=1e-9) for k, profile in deployment.profiles.items()}
    lengths = quantiles_of(scenario.workload, 1000)
    arrivals = [Arrival(1000.0 * index, length, 1) for index, length in enumerate(lengths)]
    run = open_loop(replace(deployment, profiles=instant), arrivals)
    ttfts_s = sorted((life.began_s or 0.0) - life.arrival.at_s for life in run.ended)
    routes = timed_routes(scenario, solution)
    assert statistics.mean(ttfts_s) == pytest.approx(mean_s(scenario, routes), rel=0.01)
    assert ttfts_s[900] == pytest.approx(quantile_s(scenario, routes, 0.9), rel=0.01)


def test_a_lone_instance_is_an_m_d_1_queue() -> None:
    """Each wait is Lindley's, to the last digits that a float keeps; their mean is ρ·S / (2·(1 − ρ)), within 3%."""
    service_s, utilization = 2.0, 0.5
    requests = poisson(random.Random(4), utilization / service_s, lambda rng: 100, 1)
    run = open_loop(lone_prefill(service_s), itertools.islice(requests, 40_000))
    lives = sorted(run.ended, key=lambda life: life.number)
    waits_s = [(life.began_s or 0.0) - life.arrival.at_s - service_s for life in lives]
    expected_s = utilization * service_s / (2 * (1 - utilization))
    print(f"mean wait {statistics.mean(waits_s):.4f} s, expected {expected_s:.4f} s")
    assert statistics.mean(waits_s) == pytest.approx(expected_s, rel=0.03)
    wait_s = 0.0
    for (before, after), waited_s in zip(itertools.pairwise(lives), waits_s[1:], strict=True):
        wait_s = max(0.0, wait_s + service_s - (after.arrival.at_s - before.arrival.at_s))
        assert waited_s == pytest.approx(wait_s, abs=1e-6)


def test_a_seed_is_a_run() -> None:
    """The same requests at the same times, to the last digit, with the scheduler's invariants tested after each event."""
    scenario = build_scenario(CASE_STUDY / "prfaas.yaml")
    deployment = planned_deployment(scenario, solve(scenario), rtts_s={("prfaas-west", "pd-east"): 0.02})
    runs = []
    for seed in (5, 5, 6):
        requests = poisson(random.Random(seed), 2.5, lengths_of(scenario.workload), 1024)
        run = open_loop(deployment, itertools.islice(requests, 500), checks=True)
        assert run.num_going_on == 0
        assert not run.simulation.scheduler.requests
        runs.append(
            [(life.number, life.began_s, life.ended_s, life.route, life.prefill, life.decode) for life in run.ended]
        )
    assert runs[0] == runs[1] != runs[2]


def test_transfers_that_miss_their_deadline_are_computed_locally() -> None:
    """On a link that cannot carry them: everybody is answered, nothing is left, and the link carries nothing any more."""
    scenario = build_scenario(CASE_STUDY / "prfaas.yaml")
    thin = replace(scenario, links=tuple(replace(link, bytes_per_s=1e7) for link in scenario.links))
    deployment = planned_deployment(thin, solve(scenario), terms=TransferTerms(10.0, 5.0), is_fixed=True)
    requests = poisson(random.Random(2), 0.5, lengths_of(scenario.workload), 64)
    run = open_loop(deployment, itertools.islice(requests, 200), checks=True)
    fell_back = [life for life in run.ended if life.fallback]
    assert {life.fallback for life in fell_back} == {"deadline"}
    assert 50 < len(fell_back) < 150
    assert {life.outcome for life in run.ended} == {"ok"}
    assert {life.route for life in fell_back} == {"local"}
    assert not run.simulation.scheduler.requests
    assert [link.num_transfers for link in run.simulation.links.values()] == [0]
    assert all(engine.num_prompts == engine.num_sequences == 0 for engine in run.simulation.engines.values())


def test_policies_route_as_in_the_gateway() -> None:
    """Nothing leaves under `homogeneous`, everything under `naive`, what is longer under a fixed threshold."""
    remote = {}
    for name in ("prfaas", "homogeneous", "naive"):
        scenario = build_scenario(CASE_STUDY / f"{name}.yaml")
        assert scenario.policy is PolicyKind(name)
        deployment = planned_deployment(scenario, solve(scenario), is_fixed=True)
        requests = poisson(random.Random(1), 0.1, lengths_of(scenario.workload), 16)
        run = open_loop(deployment, itertools.islice(requests, 300))
        over = {life.number for life in run.ended if life.arrival.num_tokens > deployment.policy.threshold_tokens}
        remote[name] = ({life.number for life in run.ended if life.route == "remote"}, over)
    assert remote["homogeneous"][0] == set()
    assert len(remote["naive"][0]) == 300
    assert remote["prfaas"][0] == remote["prfaas"][1]
    assert 100 < len(remote["prfaas"][0]) < 200
