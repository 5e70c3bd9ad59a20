"""What one more of each resource would bring: the plan made anew with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from prfaas.core.planning.scenario import PolicyKind, Scenario
from prfaas.core.planning.solution import Solution
from prfaas.core.planning.solve import is_simple, solve
from prfaas.core.planning.usage import GBPS, Stage, Usage

#: Gains under this share of the throughput are rounding of the search.
_NOISE: Final = 2e-4

#: With many clusters the search is rougher, and a link that brings less is none to buy.
_ROUGH: Final = 2e-3

#: Below this nobody would buy more of it.
_NEARLY_FULL: Final = 0.97


@dataclass(frozen=True, slots=True)
class Gain:
    """`extra_rps` more requests per second with one more instance of a cluster, or 1 Gbps more on a link."""

    stage: Stage
    name: str
    extra_rps: float


def gains(scenario: Scenario, solution: Solution, found: list[Usage]) -> list[Gain]:
    """One entry per cluster and link that the policy may use. Where something is offloaded, a PrfaaS cluster or link
    that is not full brings nothing and is not tried. With many clusters, instances are taken as divisible."""
    # A PD instance may do either; it is listed once, under decode.
    listed = [usage for usage in found if usage.stage is not Stage.PD_PREFILL]
    tried = [(usage, larger) for usage in listed if _may_bring(solution, usage) for larger in _larger(scenario, usage)]
    best: dict[tuple[Stage, str], float] = {}
    for (usage, _), extra in zip(tried, _extra_rps(scenario, solution, [larger for _, larger in tried]), strict=True):
        key = usage.stage, usage.name
        best[key] = max(best.get(key, 0.0), extra)
    noise = (_NOISE if is_simple(scenario) else _ROUGH) * solution.system_rps
    extras = (best.get((usage.stage, usage.name), 0.0) for usage in listed)
    return [Gain(u.stage, u.name, extra if extra > noise else 0.0) for u, extra in zip(listed, extras, strict=True)]


def _may_bring(solution: Solution, usage: Usage) -> bool:
    # A thin link or a small cluster may be why nothing is offloaded at all; otherwise slack says enough.
    if usage.stage is Stage.PD_DECODE or not solution.offload_fraction:
        return True
    # With several clusters, whole instances leave a little slack in some that are limits all the same.
    return usage.utilization >= _NEARLY_FULL


def _extra_rps(scenario: Scenario, solution: Solution, larger: list[Scenario]) -> list[float]:
    if is_simple(scenario):
        return [solve(one).system_rps - solution.system_rps for one in larger]
    from prfaas.core.planning.search_many import divisible_gains  # NumPy and HiGHS

    return divisible_gains(scenario, solution, larger)


def _larger(scenario: Scenario, usage: Usage) -> Iterator[Scenario]:
    if usage.stage is Stage.LINK:
        links = tuple(
            replace(link, bytes_per_s=link.bytes_per_s + GBPS) if f"{link.source}>{link.target}" == usage.name else link
            for link in scenario.links
        )
        yield replace(scenario, links=links)
    elif usage.stage is Stage.PRFAAS:
        clusters = tuple(
            replace(cluster, num_instances=cluster.num_instances + 1) if cluster.name == usage.name else cluster
            for cluster in scenario.prfaas
        )
        yield replace(scenario, prfaas=clusters)
    else:
        for more_prefill in (0, 1):
            pd = tuple(
                replace(
                    cluster,
                    num_instances=cluster.num_instances + 1,
                    num_prefill=None if cluster.num_prefill is None else cluster.num_prefill + more_prefill,
                )
                if cluster.name == usage.name
                else cluster
                for cluster in scenario.pd
            )
            yield replace(scenario, pd=pd)
            if scenario.pd_by_name[usage.name].num_prefill is None or scenario.policy is PolicyKind.NAIVE:
                return
