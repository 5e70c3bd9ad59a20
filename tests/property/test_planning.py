"""The search against brute force, for one PD cluster: nobody finds a better plan, and Eq. 7 and 8 hold at its optimum."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prfaas.core.model.curve import Curve, polynomial, through
from prfaas.core.planning.plan import make_plan
from prfaas.core.planning.scenario import PdCluster, PlanningError, PrfaasCluster, Scenario, WanLink
from prfaas.core.planning.search import rates_at
from prfaas.core.planning.solve import solve
from prfaas.core.planning.workload import Empirical, TruncatedLogNormal, Workload, constant

SETTINGS = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])

#: Steps of a factor of 1.003 in length: six times finer than the search's scan.
FINE = 1.003


@st.composite
def prefill(draw: st.DrawFn) -> Curve:
    """Seconds: a quadratic, or a rising table."""
    if draw(st.booleans()):
        return polynomial(draw(st.floats(0.01, 1)), draw(st.floats(1e-6, 1e-3)), draw(st.floats(0, 1e-9)))
    steps = draw(st.lists(st.floats(0.01, 5), min_size=2, max_size=5))
    return through([(500.0 * 4**index, sum(steps[: index + 1])) for index in range(len(steps))])


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    """Continuous ones mostly."""
    kind = draw(st.integers(0, 5))
    if kind == 0:
        return constant(draw(st.integers(1, 100_000)))
    if kind == 1:
        return Empirical(draw(st.lists(st.integers(1, 200_000), min_size=1, max_size=40)))
    low = draw(st.integers(1, 200))
    high = draw(st.integers(20_000, 400_000))
    return TruncatedLogNormal(draw(st.floats(6, 11)), draw(st.floats(0.2, 2)), low, high)


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    """One PD cluster, one PrfaaS cluster, a link from a trickle to plenty."""
    remote = PrfaasCluster("west", draw(st.integers(1, 12)), 8, draw(prefill()))
    local = PdCluster("east", draw(st.integers(2, 12)), 8, draw(prefill()), draw(st.floats(0.05, 20)))
    link = WanLink("west", "east", draw(st.floats(0.1, 200)) * 125e6)
    kv_bytes = polynomial(draw(st.floats(0, 3e8)), draw(st.floats(1e3, 3e5)))
    return Scenario(draw(workloads()), 500.0, kv_bytes, (remote,), (local,), (link,))


def brute_force(scenario: Scenario) -> float:
    """Eq. 3 to 6, written again, over every split and a fine grid of thresholds in whole tokens."""
    workload, (pd,), (remote,), (link,) = scenario.workload, scenario.pd, scenario.prfaas, scenario.links
    grid = [0.0]
    if workload.is_discrete:
        grid = workload.thresholds(0)
    else:
        while grid[-1] < workload.max_tokens:
            grid.append(float(math.ceil(max(workload.min_tokens, grid[-1] * FINE))))
    best = 0.0
    for t in grid:
        p = workload.moment(0, t, math.inf)
        q = workload.moment(0, -math.inf, t)
        long_rps = short_rps = math.inf
        if p > 1e-12:
            mean = workload.moment(1, t, math.inf) / p
            long_rps = (
                min(remote.num_instances / remote.prefill_s.at(mean), link.bytes_per_s / scenario.kv_bytes.at(mean)) / p
            )
        if q > 1e-12:
            short_rps = 1 / pd.prefill_s.at(workload.moment(1, -math.inf, t) / q) / q
        for count in range(pd.num_instances):
            local_rps = short_rps * count if q > 1e-12 else math.inf
            best = max(best, min(long_rps, local_rps, (pd.num_instances - count) * pd.decode_rps))
    return best


@SETTINGS
@given(scenarios())
def test_nobody_finds_a_better_plan(scenario: Scenario) -> None:
    """No (t, N_p) on a finer grid beats the search by more than 0.1%."""
    assert solve(scenario).system_rps >= brute_force(scenario) * 0.999


@SETTINGS
@given(scenarios())
def test_the_plan_keeps_its_promise(scenario: Scenario) -> None:
    """Its own threshold and split give its throughput by Eq. 6, no resource is over-used, and the routes add up."""
    plan = make_plan(scenario)
    solution = plan.solution
    (pd,) = scenario.pd
    count = solution.num_pd_prefill["east"]
    rates = rates_at(scenario, pd, solution.threshold_tokens if plan.offloads else scenario.workload.max_tokens)
    by_hand = min(rates.prefill_rps(count), (pd.num_instances - count) * pd.decode_rps)
    assert solution.system_rps == pytest.approx(by_hand, rel=1e-6)
    assert all(usage.utilization <= 1 + 1e-6 for usage in plan.usages)
    assert sum(route.rps for route in solution.routes) == pytest.approx(solution.system_rps)
    assert max(usage.utilization for usage in plan.usages) > 0.999
    assert plan.bottlenecks


@SETTINGS
@given(scenarios())
def test_eq_7_and_8_hold_at_an_interior_optimum(scenario: Scenario) -> None:
    """The two prefill stages are balanced by t, and no other split, with its own best t, is better."""
    solution = solve(scenario)
    (pd,) = scenario.pd
    count = solution.num_pd_prefill["east"]
    decode_rps = (pd.num_instances - count) * pd.decode_rps
    interior = 0.02 < solution.offload_fraction < 0.98 and not scenario.workload.is_discrete
    if interior and solution.system_rps < decode_rps * 0.999:
        # Thresholds are whole tokens: the two sides of Eq. 7 change places within two of the best.
        below, above = (rates_at(scenario, pd, solution.threshold_tokens + step) for step in (-2, 2))
        assert below.long_rps <= below.short_rps * count * 1.001
        assert above.long_rps >= above.short_rps * count * 0.999
    for other in {max(0, count - 1), min(pd.num_instances - 1, count + 1)}:
        fixed = replace(scenario, pd=(replace(pd, num_prefill=other),))
        assert solve(fixed).system_rps <= solution.system_rps * 1.001


@SETTINGS
@given(scenarios(), st.integers(0, 3))
def test_more_of_anything_never_hurts(scenario: Scenario, what: int) -> None:
    """An instance here or there, bandwidth, or a faster decode."""
    (pd,), (remote,), (link,) = scenario.pd, scenario.prfaas, scenario.links
    more = [
        replace(scenario, pd=(replace(pd, num_instances=pd.num_instances + 1),)),
        replace(scenario, prfaas=(replace(remote, num_instances=remote.num_instances + 1),)),
        replace(scenario, links=(replace(link, bytes_per_s=link.bytes_per_s * 1.3),)),
        replace(scenario, pd=(replace(pd, decode_rps=pd.decode_rps * 1.3),)),
    ][what]
    assert solve(more).system_rps >= solve(scenario).system_rps * 0.999


@SETTINGS
@given(scenarios(), st.floats(0, 5e-9))
def test_the_cheapest_plan_is_the_cheapest(scenario: Scenario, price_per_byte: float) -> None:
    """No threshold of a grid, at its best split, costs less by more than 0.2%."""
    (pd,), (remote,), (link,) = scenario.pd, scenario.prfaas, scenario.links
    priced = replace(
        scenario,
        pd=(replace(pd, price_per_gpu_hour=1.0),),
        prfaas=(replace(remote, price_per_gpu_hour=2.0),),
        links=(replace(link, price_per_byte=price_per_byte),),
    )
    try:
        cost = make_plan(priced).cost
    except PlanningError:
        return
    assert cost is not None
    per_hour = pd.num_instances * 8 * 1.0 + remote.num_instances * 8 * 2.0
    cheapest = math.inf
    for t in scenario.workload.thresholds(150):
        rates = rates_at(priced, pd, t)
        egress = rates.long.fraction * scenario.kv_bytes.at(rates.long.mean_tokens) * price_per_byte
        for count in range(pd.num_instances):
            rps = min(rates.prefill_rps(count), (pd.num_instances - count) * pd.decode_rps)
            if rps > 0:
                cheapest = min(cheapest, per_hour / (rps * 3600) + egress)
    assert cost.cheapest.per_request <= cheapest * 1.002
    assert cost.cheapest.per_request <= cost.per_request * (1 + 1e-9)
