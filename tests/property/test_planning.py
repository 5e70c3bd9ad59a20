"""The search against brute force, for one PD cluster: nobody finds a better plan, and Eq. 7 and 8 hold at its optimum."""

from __future__ import annotations

import itertools
import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prfaas.core.model.curve import Curve, polynomial, through
from prfaas.core.planning.plan import make_plan
from prfaas.core.planning.scenario import PdCluster, PlanningError, PolicyKind, PrfaasCluster, Scenario, WanLink
from prfaas.core.planning.search_one import rates_at
from prfaas.core.planning.solve import solve
from prfaas.core.planning.workload import Empirical, TruncatedLogNormal, Workload, constant

SETTINGS = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])

#: Steps of a factor of 1.003 in length: six times finer than the search's scan.
FINE = 1.003

#: Requests drawn per example for TTFT.
NUM_SAMPLES = 200_000


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
    local = PdCluster("east", draw(st.integers(1, 12)), 8, draw(prefill()), draw(st.floats(0.05, 20)))
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
        below, at, above = (rates_at(scenario, pd, solution.threshold_tokens + step) for step in (-2, 0, 2))
        assert below.long_rps <= below.short_rps * count * 1.001
        assert above.long_rps >= above.short_rps * count * 0.999
        if above.long_rps < below.long_rps * 1.002 and below.short_rps < above.short_rps * 1.002:
            assert at.long_rps == pytest.approx(at.short_rps * count, rel=0.005)
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
    """No threshold of a grid, at its best split, costs less by more than 0.1%."""
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
    assert cost.cheapest.per_request <= cheapest * 1.001
    assert cost.cheapest.per_request <= cost.per_request * (1 + 1e-9)


def lengths_of(workload: Workload, rng: np.random.Generator) -> np.ndarray:
    """200,000 requests: from a table of the distribution function, or with replacement."""
    if isinstance(workload, Empirical):
        thresholds = workload.thresholds(0)
        shares = [workload.fraction(a, b) for a, b in itertools.pairwise(thresholds)]
        return rng.choice(thresholds[1:], NUM_SAMPLES, p=np.array(shares) / sum(shares))
    assert isinstance(workload, TruncatedLogNormal)
    logs = np.linspace(math.log(workload.min_tokens), math.log(workload.max_tokens), 40_000)
    under = np.array([0.5 * math.erfc(-(x - workload.mu) / workload.sigma / math.sqrt(2)) for x in logs])
    return np.exp(np.interp(rng.uniform(under[0], under[-1], NUM_SAMPLES), under, logs))


@settings(SETTINGS, max_examples=30)
@given(scenarios(), st.integers(0, 1 << 32))
def test_ttft_is_that_of_sampled_requests(scenario: Scenario, seed: int) -> None:
    """200,000 requests, each routed by the plan's threshold, take the plan's mean and 90th percentile."""
    print(f"seed {seed}")
    plan = make_plan(scenario)
    (pd,), (remote,), (link,) = scenario.pd, scenario.prfaas, scenario.links
    lengths = lengths_of(scenario.workload, np.random.default_rng(seed))
    offloaded = lengths > plan.solution.threshold_tokens
    grid = np.unique(lengths) if scenario.workload.is_discrete else np.geomspace(lengths.min(), lengths.max(), 20_000)
    local_s = np.interp(lengths, grid, [pd.prefill_s.at(x) for x in grid])
    remote_s = np.interp(
        lengths, grid, [remote.prefill_s.at(x) + scenario.kv_bytes.at(x) / link.bytes_per_s for x in grid]
    )
    seconds = np.where(offloaded, remote_s, local_s)
    assert abs(plan.ttft_s_mean - seconds.mean()) <= 5 * seconds.std() / math.sqrt(NUM_SAMPLES) + 1e-5 * seconds.mean()
    spread = 5 * math.sqrt(0.9 * 0.1 / NUM_SAMPLES)
    assert (seconds <= plan.ttft_s_p90 * (1 + 1e-4)).mean() >= 0.9 - spread
    assert (seconds < plan.ttft_s_p90 * (1 - 1e-4)).mean() <= 0.9 + spread


def fleet(num_instances: int, seed: int) -> Scenario:
    """The paper's hardware with many instances."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    fast, slow = polynomial(0.389, 4.2e-5, 1e-10), polynomial(0.467, 1.3e-4, 2.9e-10)
    remote = PrfaasCluster("west", max(1, int(num_instances * rng.uniform(0.1, 1))), 8, fast, 2.0)
    local = PdCluster("east", num_instances, 8, slow, rng.uniform(0.3, 4), None, 1.0)
    link = WanLink("west", "east", num_instances * rng.choice([1, 5, 50]) * 125e6)
    workload = TruncatedLogNormal(9.9, 1.0, 128, 131072)
    return Scenario(workload, 1024.0, polynomial(1.9e8, 1.7e4), (remote,), (local,), (link,))


@pytest.mark.parametrize("num_instances", [65, 100, 1000, 20_000, 100_000])
def test_large_fleets(num_instances: int) -> None:
    """Of very many splits not all are tried, and still no threshold, with the split that suits it, is 0.1% better."""
    for seed in range(3):
        scenario = fleet(num_instances, seed)
        (pd,) = scenario.pd
        best = 0.0
        for rates in (rates_at(scenario, pd, 128 * 1024 ** (step / 2000)) for step in range(2000)):
            balanced = math.floor(num_instances * pd.decode_rps / (rates.short_rps + pd.decode_rps))
            for count in {0, min(balanced, num_instances - 1), min(balanced + 1, num_instances - 1)}:
                best = max(best, min(rates.prefill_rps(count), (num_instances - count) * pd.decode_rps))
        assert solve(scenario).system_rps >= best * 0.999


@pytest.mark.parametrize("price_per_byte", [1e-12, 1e-11, 1e-9])
def test_the_cheapest_of_a_large_fleet(price_per_byte: float) -> None:
    """Dear egress asks for another split than the fastest one, however many there are."""
    scenario = fleet(400, 1)
    scenario = replace(scenario, links=(replace(scenario.links[0], price_per_byte=price_per_byte),))
    cost = make_plan(scenario).cost
    assert cost is not None
    (pd,) = scenario.pd
    cheapest = math.inf
    for rates in (rates_at(scenario, pd, t) for t in scenario.workload.thresholds(100)):
        egress = rates.long.fraction * scenario.kv_bytes.at(rates.long.mean_tokens) * price_per_byte
        rps = max(min(rates.prefill_rps(n), (400 - n) * pd.decode_rps) for n in range(400))
        cheapest = min(cheapest, cost.gpu_per_hour / 3600 / rps + egress)
    assert cost.cheapest.per_request <= cheapest * 1.001


PAPER = fleet(8, 0)

#: What changes, and what the error says if there is one.
EXTREMES: dict[str, tuple[dict[str, object], str | None]] = {
    "one instance": ({"pd": (replace(PAPER.pd[0], num_instances=1),)}, None),
    "a trickle": ({"links": (replace(PAPER.links[0], bytes_per_s=125.0),)}, None),
    "a trickle for everything": ({"links": (replace(PAPER.links[0], bytes_per_s=125.0),), "policy": PolicyKind.NAIVE}, None),
    "one length": ({"workload": constant(20_000)}, None),
    "one token": ({"workload": constant(1)}, None),
    "short prompts": ({"workload": TruncatedLogNormal(3.0, 1.0, 1, 100)}, None),
    "threshold 0": ({"policy": PolicyKind.FIXED, "threshold_tokens": 0.0}, None),
    "threshold beyond all": ({"policy": PolicyKind.FIXED, "threshold_tokens": 1e7}, None),
    "nobody prefills": ({"policy": PolicyKind.HOMOGENEOUS, "pd": (replace(PAPER.pd[0], num_prefill=0),)}, "no request can be served"),
    "nobody decodes": ({"pd": (replace(PAPER.pd[0], num_prefill=8),)}, "no request can be served"),
    "free GPUs, dear egress": (
        {
            "pd": (replace(PAPER.pd[0], price_per_gpu_hour=0.0),), "prfaas": (replace(PAPER.prfaas[0], price_per_gpu_hour=0.0),),
            "links": (replace(PAPER.links[0], price_per_byte=1.0),),
        },
        None,
    ),
    "a fortune for egress": ({"links": (replace(PAPER.links[0], price_per_byte=1.0),)}, None),
}  # fmt: skip


@pytest.mark.parametrize("name", EXTREMES)
def test_extremes_give_numbers_or_a_sentence(name: str) -> None:
    """Never a traceback, NaN or infinity."""
    changes, message = EXTREMES[name]
    scenario = replace(PAPER, **changes)  # type: ignore[arg-type]
    if message is not None:
        with pytest.raises(PlanningError, match=message):
            make_plan(scenario)
        return
    plan = make_plan(scenario)
    json.dumps(plan.to_json(), allow_nan=False)
    assert plan.solution.system_rps > 0
    assert all(usage.utilization <= 1 + 1e-6 for usage in plan.usages)


@pytest.mark.parametrize("policy", [PolicyKind.NAIVE, PolicyKind.FIXED])
def test_a_policy_that_offloads_needs_a_link(policy: PolicyKind) -> None:
    """Without one it is refused before anything is searched."""
    with pytest.raises(PlanningError, match="link to a PD cluster"):
        replace(PAPER, links=(), policy=policy, threshold_tokens=1e4 if policy is PolicyKind.FIXED else None)
