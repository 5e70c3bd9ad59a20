"""Which search answers a scenario."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from prfaas.core.planning.scenario import PolicyKind, Scenario
from prfaas.core.planning.search_one import solve_one_pd
from prfaas.core.planning.solution import Solution

#: Offloading that raises throughput by less than this is not worth doing.
_WORTH: Final = 5e-4


def solve(scenario: Scenario, *, near: Solution | None = None, request_price: float | None = None) -> Solution:
    """The best configuration. `near`, a solution of a similar scenario, restricts the search to what is like it where a
    whole one takes long; `request_price` makes egress count: see `solve_one_pd`."""
    best = _search(scenario, near, request_price)
    if scenario.policy is not PolicyKind.PRFAAS or not best.offload_fraction or near is not None:
        return best
    # A link and a remote cluster that bring nothing are better not depended on.
    alone = _search(replace(scenario, policy=PolicyKind.HOMOGENEOUS), None, request_price)
    if alone.system_rps < best.system_rps * (1 - _WORTH):
        return best
    nothing = replace(scenario, policy=PolicyKind.FIXED, threshold_tokens=scenario.workload.max_tokens)
    return _search(nothing, None, request_price)


def is_simple(scenario: Scenario) -> bool:
    """One PD cluster and one kind of PrfaaS cluster at most: the paper's case, which needs no linear programmes."""
    return len(scenario.pd) == 1 and len(scenario.tiers) <= 1


def _search(scenario: Scenario, near: Solution | None, request_price: float | None) -> Solution:
    if is_simple(scenario):
        return solve_one_pd(scenario, request_price)
    from prfaas.core.planning.search_many import solve_many  # NumPy and HiGHS, which the common case does not wait for

    return solve_many(scenario, near, request_price)
