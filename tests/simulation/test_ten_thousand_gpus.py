"""10,000 GPUs in 10 PrfaaS and 40 PD clusters: planned, simulated, and how much a decision looks at, counted."""

from __future__ import annotations

import random
from itertools import islice
from typing import Any

import pytest

from benchmarks.scale.fleets import EAST_10K, GPUS_PER_INSTANCE, WEST_10K, like_case_study, written
from prfaas.core.control.dispatch import Dispatch
from prfaas.core.control.fleet import Way
from prfaas.core.control.placer import Placer
from prfaas.core.control.route import MAX_TOLD, Option, Prompt, RouteKind
from prfaas.core.planning.scenario import Scenario
from prfaas.core.planning.solution import Solution
from prfaas.core.planning.solve import solve
from prfaas.core.planning.usage import egress_of
from prfaas.scenario.build import build_scenario
from prfaas.sim.arrivals import lengths_of, poisson
from prfaas.sim.deployment import planned_deployment
from prfaas.sim.runs import Run, open_loop

NUM_REQUESTS = 500

Planned = tuple[Scenario, Solution]


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Planned:
    """The whole deployment."""
    file = written(like_case_study(WEST_10K, EAST_10K, 25.0), tmp_path_factory.mktemp("scale") / "deployment.yaml")
    scenario = build_scenario(file)
    return scenario, solve(scenario)


def begun(planned: Planned, load: float, *, is_fixed: bool = False, num_requests: int = NUM_REQUESTS) -> Run:
    """Requests come at this share of what is planned."""
    scenario, solution = planned
    run = Run(planned_deployment(scenario, solution, tpot_slo_s=0.025, is_fixed=is_fixed))
    arrivals = poisson(random.Random(3), load * solution.system_rps, lengths_of(scenario.workload), 1024)
    run.simulation.follow(islice(arrivals, num_requests))
    return run


def test_what_is_planned_crosses(planned: Planned) -> None:
    """1,250 instances and 400 links. At the planned threshold everybody is answered, and what crosses is what is
    planned for as many requests, within 15%: of so few, the mean prompt that leaves is known to 6%."""
    scenario, solution = planned
    num_gpus = GPUS_PER_INSTANCE * (sum(WEST_10K) + sum(EAST_10K))
    assert (num_gpus, len(scenario.links)) == (10_000, 400)
    deployment = planned_deployment(scenario, solution, tpot_slo_s=0.025, is_fixed=True)
    arrivals = poisson(random.Random(3), 0.8 * solution.system_rps, lengths_of(scenario.workload), 1024)
    run = open_loop(deployment, islice(arrivals, NUM_REQUESTS))
    assert [life.outcome for life in run.ended] == ["ok"] * NUM_REQUESTS
    crossed_bytes = sum(link.sent_bytes for link in run.simulation.links.values())
    assert crossed_bytes == pytest.approx(sum(life.kv_bytes for life in run.ended if life.route == "remote"), rel=1e-6)
    a_request_bytes = sum(egress_of(scenario, route) for route in solution.routes) / solution.system_rps
    assert crossed_bytes == pytest.approx(NUM_REQUESTS * a_request_bytes, rel=0.15)


@pytest.fixture
def reckoned(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Source and target of every way that is reckoned."""
    found = []
    reckon = Placer._elsewhere

    def counted(placer: Placer, way: Way, *facts: Any) -> Option | None:
        found.append(way.pair)
        return reckon(placer, way, *facts)

    monkeypatch.setattr(Placer, "_elsewhere", counted)
    return found


def test_a_decision_looks_at_each_way_once(planned: Planned, reckoned: list[tuple[str, str]]) -> None:
    """A prompt has 400 ways over links, and 40 at home. Looking again at what waits adds less than a quarter; and a
    request keeps the cheapest of them."""
    run = begun(planned, 1.0)
    run.simulation.keeps_options = True
    while run.simulation.kernel.steps(10_000):
        pass
    assert len(run.ended) == NUM_REQUESTS
    most_ways = len(WEST_10K) * len(EAST_10K) + len(EAST_10K)
    assert 0.5 * most_ways * NUM_REQUESTS < len(reckoned) <= 1.25 * most_ways * NUM_REQUESTS
    assert {len(life.options) for life in run.ended} == {MAX_TOLD}


def test_whoever_is_idle_looks_at_its_own_ways(planned: Planned, reckoned: list[tuple[str, str]]) -> None:
    """What waits elsewhere is asked for the ways by one cluster: only these are reckoned, 40 by a PrfaaS cluster and one
    by a PD cluster, and they cost the same as among all, bit for bit; with a lane that is down too."""
    run = begun(planned, 1.2)
    run.simulation.run(1.0)
    scheduler, now_s = run.simulation.scheduler, run.simulation.kernel.now_s
    dispatch = scheduler.dispatch
    assert isinstance(dispatch, Dispatch)
    cut_off = scheduler.fleet.working_prefillers("west-3")[0]
    cut_off.cut_off_from = frozenset(i.name for i in scheduler.fleet.working_decoders("east-0"))
    for num_tokens in (300, 20_000, 120_000):
        prompt = Prompt(num_tokens, {})
        whole = dispatch._ways(prompt, now_s)
        for cluster in ("west-0", "west-3", "east-0", "east-39"):
            reckoned.clear()
            ways = [o for o in whole if o.prefill_cluster == cluster and o.kind is not RouteKind.LOCAL]
            assert dispatch._ways_by(cluster, prompt, now_s) == ways
            assert {source for source, _ in reckoned} <= {cluster}
            assert len(reckoned) == (len(EAST_10K) if cluster.startswith("west") else len(ways))


def test_a_fixed_threshold_keeps_few_of_the_instances(planned: Planned) -> None:
    """Of 455 that decode and 420 that prefill a route tells of the least loaded, and of the ones that it took."""
    run = begun(planned, 0.8, is_fixed=True, num_requests=50)
    run.simulation.run(0.2)
    routes = [r.route for r in run.simulation.scheduler.requests.values() if r.route is not None and r.route.prefill]
    assert routes
    for route in routes:
        assert len(route.considered) <= 2 * MAX_TOLD
        assert {c.instance for c in route.considered if c.ruled_out is None} == {route.decode, route.prefill}
