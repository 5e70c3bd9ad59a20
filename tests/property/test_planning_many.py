"""The search over several clusters against brute force on small ones."""

from __future__ import annotations

import itertools
import math
import random

import highspy
import pytest

from prfaas.core.model.curve import polynomial
from prfaas.core.planning.many import relaxed_rps, solve_many
from prfaas.core.planning.plan import make_plan
from prfaas.core.planning.scenario import PdCluster, PolicyKind, PrfaasCluster, Scenario, WanLink
from prfaas.core.planning.solve import solve
from prfaas.core.planning.workload import Band, TruncatedLogNormal, band

H200 = polynomial(0.38912, 4.20550e-5, 9.93650e-11)
FASTER = polynomial(0.30, 3.2e-5, 7.0e-11)
H20 = polynomial(0.46702, 1.30238e-4, 2.89626e-10)
KV_BYTES = polynomial(1.9e8, 1.73e4)
WORKLOAD = TruncatedLogNormal(9.9, 1.0, 128, 131072)

#: The best of a search over whole instances and a grid that is coarser than its thresholds may be this much better.
TOLERANCE = 0.001


def small(seed: int, num_prfaas: int, num_pd: int, *, mixed: bool) -> Scenario:
    """Random clusters of one to four instances; some pairs have no link."""
    rng = random.Random(seed)
    prfaas = tuple(
        PrfaasCluster(f"west-{i}", rng.randint(1, 4), 8, FASTER if mixed and i else H200) for i in range(num_prfaas)
    )
    pd = tuple(PdCluster(f"east-{j}", rng.randint(1, 4), 8, H20, rng.choice([0.6, 0.8, 1.5])) for j in range(num_pd))
    links = tuple(
        WanLink(a.name, b.name, rng.choice([2, 5, 40]) * 125e6)
        for a in prfaas
        for b in pd
        if rng.random() < 0.8 or b is pd[0]
    )
    return Scenario(WORKLOAD, 1024.0, KV_BYTES, prfaas, pd, links)


def best_rate(scenario: Scenario, bands: dict[str, Band], local: Band, counts: tuple[int, ...]) -> float:
    """Λ for given bands (by PrfaaS cluster) and splits: a linear programme, written again."""
    model = highspy.Highs()
    model.silent()
    rate = model.addVariable(lb=0, ub=1e6)
    into = {pd.name: [] for pd in scenario.pd}
    of_band: dict[Band, list[object]] = {}
    for cluster in scenario.prfaas:
        chosen = bands[cluster.name]
        of_band.setdefault(chosen, [])
        if not chosen.fraction:
            continue
        flows = []
        for link in scenario.links:
            if link.source == cluster.name:
                flow = model.addVariable(lb=0, ub=link.bytes_per_s / KV_BYTES.at(chosen.mean_tokens))
                flows.append(flow)
                into[link.target].append(flow)
        model.addConstr(sum(flows) <= cluster.num_instances / cluster.prefill_s.at(chosen.mean_tokens))
        of_band[chosen] += flows
    for chosen, flows in of_band.items():
        if chosen.fraction:
            model.addConstr(sum(flows) == chosen.fraction * rate)
    shorts = []
    for pd, count in zip(scenario.pd, counts, strict=True):
        limit = count / pd.prefill_s.at(local.mean_tokens) if local.fraction else 0.0
        short = model.addVariable(lb=0, ub=limit)
        shorts.append(short)
        model.addConstr(sum(into[pd.name]) + short <= (pd.num_instances - count) * pd.decode_rps)
    model.addConstr(sum(shorts) == local.fraction * rate)
    model.maximize(rate)
    return float(model.val(rate))


def brute_force(scenario: Scenario, num_edges: int) -> float:
    """Every split, a grid of thresholds, and with two kinds of hardware both orders of them."""
    grid = [0.0, *(4000 * 1.17**step for step in range(22)), WORKLOAD.max_tokens]
    splits = [*itertools.product(*(range(pd.num_instances) for pd in scenario.pd))]
    kinds = list({cluster.prefill_s: None for cluster in scenario.prfaas})
    best = 0.0
    for order in itertools.permutations(kinds):
        for edges in itertools.combinations_with_replacement(grid if num_edges == 1 else grid[::2], len(order)):
            limits = [*edges, WORKLOAD.max_tokens]
            of_kind = {kind: band(WORKLOAD, limits[k], limits[k + 1]) for k, kind in enumerate(order)}
            bands = {cluster.name: of_kind[cluster.prefill_s] for cluster in scenario.prfaas}
            local = band(WORKLOAD, -math.inf, limits[0])
            best = max([best, *(best_rate(scenario, bands, local, split) for split in splits)])
    return best


@pytest.mark.parametrize("seed", range(6))
def test_one_kind_of_hardware(seed: int) -> None:
    """Two PrfaaS and two PD clusters: no split and threshold does better."""
    scenario = small(seed, 2, 2, mixed=False)
    assert solve_many(scenario).system_rps >= brute_force(scenario, 1) * (1 - TOLERANCE)


@pytest.mark.parametrize("seed", range(6, 10))
def test_two_kinds_of_hardware(seed: int) -> None:
    """Each has its own band of lengths."""
    scenario = small(seed, 2, 2, mixed=True)
    assert solve_many(scenario).system_rps >= brute_force(scenario, 2) * (1 - TOLERANCE)


@pytest.mark.parametrize("seed", range(20, 28))
def test_whole_instances_never_beat_divisible_ones(seed: int) -> None:
    """And a plan over several clusters keeps within every resource."""
    scenario = small(seed, 3, 3, mixed=seed % 2 == 0)
    plan = make_plan(scenario)
    assert plan.solution.system_rps <= relaxed_rps(scenario) * 1.002
    assert all(usage.utilization <= 1 + 1e-6 for usage in plan.usages)
    assert sum(route.rps for route in plan.solution.routes) == pytest.approx(plan.solution.system_rps, rel=1e-5)
    assert plan.bottlenecks


@pytest.mark.parametrize("seed", range(5))
def test_one_cluster_of_each_is_the_papers_case(seed: int) -> None:
    """Both searches agree."""
    scenario = small(seed, 1, 1, mixed=False)
    if scenario.pd[0].num_instances > 1:
        assert solve_many(scenario).system_rps == pytest.approx(solve(scenario).system_rps, rel=1e-3)


@pytest.mark.parametrize("policy", list(PolicyKind))
def test_every_policy_works_with_several_clusters(policy: PolicyKind) -> None:
    """And none beats the one that may choose freely."""
    base = small(3, 2, 2, mixed=True)
    threshold = 20_000.0 if policy is PolicyKind.FIXED else None
    scenario = Scenario(
        WORKLOAD, 1024.0, KV_BYTES, base.prfaas, base.pd, base.links, policy=policy, threshold_tokens=threshold
    )
    answer = make_plan(scenario).to_json()
    rps = answer["system_rps"]
    assert isinstance(rps, float)
    assert 0 < rps <= solve(base).system_rps * 1.001
    if policy is PolicyKind.NAIVE:
        assert answer["num_pd_prefill"] is None
        assert answer["offload_fraction"] == pytest.approx(1.0)
