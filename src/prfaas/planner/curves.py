"""What the pictures draw: throughputs over threshold and split, KV throughput over length. Numbers only."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from prfaas.core.planning.plan import Plan
from prfaas.core.planning.scenario import PdCluster, PolicyKind, Scenario
from prfaas.core.planning.search_one import Rates, prefill_counts, rates_at
from prfaas.core.planning.solve import is_simple as simple
from prfaas.core.planning.solve import solve
from prfaas.core.planning.usage import GBPS

_POINTS = 240

#: With many clusters each point is a search of its own.
_FEW_POINTS = 24


@dataclass(frozen=True, slots=True)
class Line:
    """One curve: y over x, same length. Infinite or missing y are None."""

    label: str
    x: list[float]
    y: list[float | None]


@dataclass(frozen=True, slots=True)
class ThresholdSearch:
    """One PD cluster: everything over the routing threshold."""

    stages: list[Line]
    by_count: dict[int, Line]


def is_simple(plan: Plan) -> bool:
    """One PD cluster and one kind of PrfaaS cluster: the searches of the paper's Fig. 5 can be drawn whole."""
    return simple(plan.scenario)


def may_offload(plan: Plan) -> bool:
    """Whether there is a threshold to draw anything over."""
    return bool(plan.scenario.tiers)


def threshold_search(plan: Plan) -> ThresholdSearch:
    """Fig. 5's first search: system throughput over t for each N_p, and the stages' limits at the best N_p."""
    scenario = plan.scenario
    (pd,) = scenario.pd
    best = plan.solution.num_pd_prefill[pd.name]
    rates = [rates_at(scenario, pd, t) for t in _thresholds(scenario, _POINTS)]
    x = [found.threshold_tokens for found in rates]
    stages = [
        Line("PrfaaS: Θ_prfaas / p", x, [_finite(found.long_rps) for found in rates]),
        Line("PD prefill: Θ_pd-p / (1 − p)", x, [_finite(_local_rps(found, best)) for found in rates]),
        Line("PD decode: Θ_pd-d", x, [(pd.num_instances - best) * pd.decode_rps] * len(x)),
    ]
    counts = [
        count for count in prefill_counts(scenario, pd) if count == best or (count > 0 and abs(count - best) <= 2)
    ]
    by_count = {count: Line(f"N_p = {count}", x, [_system(pd, found, count) for found in rates]) for count in counts}
    return ThresholdSearch(stages, by_count)


def count_search(plan: Plan) -> list[Line]:
    """Fig. 5's second search: over N_p, each at its best t: what prefill can do, what decode can do, the least."""
    scenario = plan.scenario
    (pd,) = scenario.pd
    x, prefill, decode, system = [], [], [], []
    for count in range(pd.num_instances):
        fixed = replace(scenario, pd=(replace(pd, num_prefill=count),))
        if scenario.policy is PolicyKind.NAIVE and count:
            break
        # Decode without limit, so that the best t of the prefill alone is found.
        free = replace(fixed, pd=(replace(pd, num_prefill=count, decode_rps=1e12),))
        x.append(float(count))
        prefill.append(_finite(solve(free).system_rps))
        decode.append((pd.num_instances - count) * pd.decode_rps)
        system.append(solve(fixed).system_rps)
    return [Line("prefill, at its best t", x, prefill), Line("decode", x, [*decode]), Line("system", x, [*system])]


def system_over_threshold(plan: Plan) -> Line:
    """Λ_max over the lowest threshold with everything else searched anew, for any number of clusters."""
    x = _thresholds(plan.scenario, _FEW_POINTS)
    fixed = [replace(plan.scenario, policy=PolicyKind.FIXED, threshold_tokens=t) for t in x]
    return Line("system", x, [solve(scenario, near=plan.solution).system_rps for scenario in fixed])


def kv_throughput(plan: Plan) -> tuple[list[Line], list[tuple[str, float]]]:
    """Eq. 2: Gbps that a whole cluster would send if it prefilled prompts of one length only; and what its links carry
    together."""
    scenario = plan.scenario
    lines, limits = [], []
    lengths = _lengths(scenario)
    for name, cluster in list(scenario.prfaas_by_name.items())[:6]:
        rate = [cluster.num_instances * scenario.kv_bytes.at(x) / cluster.prefill_s.at(x) / GBPS for x in lengths]
        lines.append(
            Line(f"{name}, {cluster.num_instances} instance{'s' * (cluster.num_instances > 1)}", lengths, [*rate])
        )
        links = sum(link.bytes_per_s for link in scenario.links if link.source == name) / GBPS
        limits.append((f"links of {name}", links))
    return lines, limits


def _thresholds(scenario: Scenario, num: int) -> list[float]:
    low, high = max(64.0, scenario.workload.min_tokens), scenario.workload.max_tokens
    if high <= low:
        return [low]
    return [low * (high / low) ** (step / num) for step in range(num + 1)]


def _lengths(scenario: Scenario) -> list[float]:
    low, high = max(128.0, scenario.workload.min_tokens), max(scenario.workload.max_tokens, 1024.0)
    return [low * (high / low) ** (step / 120) for step in range(121)]


def _local_rps(found: Rates, count: int) -> float:
    return found.short_rps * count if found.short.fraction else math.inf


def _system(pd: PdCluster, found: Rates, count: int) -> float | None:
    return min(found.prefill_rps(count), (pd.num_instances - count) * pd.decode_rps)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) and value < 1e9 else None
