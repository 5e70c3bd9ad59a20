"""Time to first token of a plan, as the paper reports it: prefill plus transfer at the link's full rate, no queueing.

Within a route, time rises with length, so a route's share under x seconds is the share of lengths under the length that
takes x; the mixture over routes needs no sampling either.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from prfaas.core.model.curve import Curve
from prfaas.core.planning.scenario import Scenario
from prfaas.core.planning.solution import Solution

#: Halvings of an interval: enough for a float.
_BISECTIONS: Final = 60


class TimedRoute(NamedTuple):
    """Requests with low < L ≤ high, of which `share` take `time_s(L)`."""

    low_tokens: float
    high_tokens: float
    share: float
    time_s: Curve


def timed_routes(scenario: Scenario, solution: Solution) -> list[TimedRoute]:
    """How long each route takes, over length. Shares within a band follow the routes' rates."""
    bandwidth = {(link.source, link.target): link.bytes_per_s for link in scenario.links}
    of_band: dict[float, float] = {}
    for route in solution.routes:
        of_band[route.band.low_tokens] = of_band.get(route.band.low_tokens, 0.0) + route.rps
    timed = []
    for route in solution.routes:
        if route.prfaas is None:
            time_s = scenario.pd_by_name[route.pd].prefill_s
        else:
            rate = bandwidth[route.prfaas, route.pd]
            time_s = scenario.prfaas_by_name[route.prfaas].prefill_s + scenario.kv_bytes.scaled(1 / rate)
        share = route.rps / of_band[route.band.low_tokens]
        timed.append(TimedRoute(route.band.low_tokens, route.band.high_tokens, share, time_s))
    return timed


def mean_s(scenario: Scenario, routes: Iterable[TimedRoute]) -> float:
    """E[TTFT] in seconds: exact."""
    workload = scenario.workload
    return sum(r.share * workload.expected(r.time_s, r.low_tokens, r.high_tokens) for r in routes)


def quantile_s(scenario: Scenario, routes: list[TimedRoute], quantile: float) -> float:
    """The smallest x with P(TTFT ≤ x) ≥ quantile, in seconds."""
    low, high = 0.0, max(r.time_s.at(min(r.high_tokens, scenario.workload.max_tokens)) for r in routes)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if sum(_share_within(scenario, route, middle) for route in routes) >= quantile:
            high = middle
        else:
            low = middle
    return high


def _share_within(scenario: Scenario, route: TimedRoute, seconds: float) -> float:
    """Share of all requests that are on this route and take at most that long."""
    workload = scenario.workload
    low, high = max(route.low_tokens, workload.min_tokens - 1), min(route.high_tokens, workload.max_tokens)
    if route.time_s.at(high) <= seconds:
        return route.share * workload.fraction(route.low_tokens, high)
    start = low
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if route.time_s.at(middle) <= seconds:
            low = middle
        else:
            high = middle
    return route.share * workload.fraction(route.low_tokens, low) if low > start else 0.0
