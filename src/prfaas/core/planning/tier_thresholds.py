"""Where the thresholds between tiers may lie, and searches over them.

A *ladder* is an order of tiers and the thresholds under each of them. The searches know nothing of programmes: they
climb a score, which is the best rate of the system at a set of thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations_with_replacement, permutations
from typing import Final

from prfaas.core.planning.flows import Ladder, Tier, tier_rps
from prfaas.core.planning.golden_section import golden
from prfaas.core.planning.scenario import Scenario
from prfaas.core.planning.search_one import NUM_THRESHOLDS, thresholds_of
from prfaas.core.planning.solution import Solution
from prfaas.core.planning.workload import band

#: Rates that the first scan aims at, up to all that decode could do, are this far apart. So many reach a factor of
#: 2,000 over what one stage could do alone; no mix is that much better.
_AIM_RATIO: Final = 0.88
_MAX_AIMS: Final = 60
_LEAST_AIM: Final = math.prod([_AIM_RATIO] * _MAX_AIMS)

#: So many ladders of a grid are scored, fewer where there are many links and scoring takes longer.
_MAX_GRID: Final = 250
_MAX_GRID_LINKS: Final = 6600

#: Halvings of an interval of lengths, down to a token.
_HALVINGS: Final = 18

#: Then each threshold moves within this factor, to this relative resolution.
STEP: Final = 1.3
NEAR: Final = 1.08
RESOLUTION: Final = 1e-3

#: Factors of thresholds beside which whole instances may fit better than at the relaxation's optimum.
_NUDGES: Final = (0.7, 0.8, 0.88, 0.93, 0.96, 0.98, 1.02, 1.04, 1.07, 1.13, 1.25, 1.4)

#: Passes over the thresholds; they settle sooner.
_PASSES: Final = 3

Score = Callable[[tuple[float, ...]], float]


@dataclass(frozen=True)
class Choices:
    """Thresholds worth trying: for the lowest, which the policy may fix, and for those between tiers."""

    first: Sequence[float]
    inner: Sequence[float]

    @classmethod
    def of(cls, scenario: Scenario) -> Choices:
        """Of a scenario's workload and policy."""
        return cls(thresholds_of(scenario), scenario.workload.thresholds(NUM_THRESHOLDS))


def orders(scenario: Scenario) -> Iterable[Ladder]:
    """Orders of tiers worth trying, with thresholds to start from. The tier whose prefill grows least with length is
    best at the long end; with two tiers a thin link may say otherwise, so that both orders are tried."""
    workload = scenario.workload
    low, high = max(1.0, workload.min_tokens), workload.max_tokens

    def growth(tier: Tier) -> float:
        curve = tier[0].prefill_s
        return curve.at(high) / max(curve.at(low), 1e-9)

    ordered = tuple(sorted(scenario.tiers, key=growth, reverse=True))
    first = thresholds_of(scenario)[0]
    for tiers in permutations(ordered) if len(ordered) == 2 else [ordered]:
        yield Ladder(tiers, (first,) * len(tiers))


def nearby(scenario: Scenario, near: Solution) -> Ladder:
    """The ladder of a similar scenario's solution."""
    order = {tier.clusters: index for index, tier in enumerate(near.remote)}
    tiers = sorted(scenario.tiers, key=lambda tier: order.get(tuple(c.name for c in tier), len(order)))
    edges = tuple(tier.band.low_tokens for tier in near.remote)
    if scenario.threshold_tokens is not None:
        first = scenario.threshold_tokens
        edges = (first, *(max(first, edge) for edge in edges[1:]))
    return Ladder(tuple(tiers), edges + (scenario.workload.max_tokens,) * (len(tiers) - len(edges)))


def scan(scenario: Scenario, ladder: Ladder, choices: Choices, score: Score) -> list[tuple[float, Ladder]]:
    """Ladders that would just carry some rate, over all rates, and a coarse grid, which is for links and splits that
    leave tiers unfilled; with their scores, the best first."""
    if not ladder.edges:
        return [(score(()), ladder)]

    def filled(aim_rps: float) -> tuple[float, ...]:
        return filled_edges(scenario, ladder.tiers, choices, aim_rps)

    ceiling = math.fsum(pd.num_instances * pd.decode_rps for pd in scenario.pd)
    alone = max(_by_one(len(ladder.edges), choices), key=score)
    # The best is at least as good as whoever does everything alone.
    floor = max(score(alone), ceiling * _LEAST_AIM)
    aims = [floor]
    while aims[-1] < ceiling and len(aims) < _MAX_AIMS:
        aims.append(aims[-1] / _AIM_RATIO)
    grid = _grid(scenario, len(ladder.edges), choices)
    scores = {edges: score(edges) for edges in [*_by_one(len(ladder.edges), choices), *map(filled, aims), *grid]}
    best = max(aims, key=lambda aim: scores[filled(aim)])
    factor = golden(lambda factor: score(filled(best * factor)), _AIM_RATIO, 1 / _AIM_RATIO, RESOLUTION)
    scores[filled(best * factor)] = score(filled(best * factor))
    found = [(reached, Ladder(ladder.tiers, edges)) for edges, reached in scores.items()]
    return sorted(found, key=lambda pair: pair[0], reverse=True)


def _by_one(num_tiers: int, choices: Choices) -> Iterable[tuple[float, ...]]:
    """Everything local, and everything in one tier each, as far as the lowest threshold may be chosen."""
    lowest, highest = choices.first[0], choices.inner[-1]
    for below in range(0 if len(choices.first) > 1 else 1, num_tiers + 1):
        yield (lowest,) * below + (highest,) * (num_tiers - below)


def _grid(scenario: Scenario, num_tiers: int, choices: Choices) -> Iterable[tuple[float, ...]]:
    """Combinations of thresholds that cut the workload in equal shares."""
    num_levels = 2
    most = min(_MAX_GRID, _MAX_GRID_LINKS // max(1, len(scenario.links)))
    while math.comb(num_levels + num_tiers, num_tiers) <= most:
        num_levels += 1
    levels: list[float] = []
    for threshold in choices.inner:
        if scenario.workload.fraction(-math.inf, threshold) * (num_levels - 1) >= len(levels) - 1e-9:
            levels.append(threshold)
    for edges in combinations_with_replacement(levels, num_tiers):
        if len(choices.first) > 1:
            yield edges
        else:
            yield choices.first[0], *(max(choices.first[0], edge) for edge in edges[1:])


def filled_edges(scenario: Scenario, tiers: Sequence[Tier], choices: Choices, aim_rps: float) -> tuple[float, ...]:
    """Thresholds with which each tier, from the longest lengths down, takes all that it can at a rate of the system."""
    edges: list[float] = []
    high = choices.inner[-1]
    for tier in reversed(tiers):
        low, top = choices.first[0], high
        for _ in range(_HALVINGS):
            middle = (low + top) / 2
            taken = band(scenario.workload, middle, high)
            if tier_rps(scenario, tier, taken) < aim_rps * taken.fraction:
                low = middle
            else:
                top = middle
        # What is left above the lowest threshold goes to whoever can have it: nothing is gained by a sliver.
        high = choices.first[0] if top - choices.first[0] < 1 else top
        edges.insert(0, high)
    if edges and len(choices.first) == 1:
        edges[0] = choices.first[0]
    return tuple(edges)


def walk(ladder: Ladder, choices: Choices, score: Score, *, reach: float = STEP) -> Ladder:
    """Ascent from where the ladder is: each threshold in turn, then all of them together (the optimum often lies on a
    ridge between two limits, where one alone cannot move), until it brings nothing."""
    edges = ladder.edges
    best = score(edges) if edges else 0.0
    lowest, highest = choices.first[0], choices.inner[-1]
    fixed = 1 if len(choices.first) == 1 else 0
    for _ in range(_PASSES if reach > NEAR else 1):
        before = best
        for index in (*range(fixed, len(edges)), None):
            if index is None and len(edges) - fixed < 2:
                continue
            direction = partial(_moved, edges, index, fixed, (lowest, highest))
            moved = direction(_best_factor(direction, score, reach))
            if score(moved) > best:
                edges, best = moved, score(moved)
        if len(edges) < 2 or best <= before * (1 + 1e-5):
            break
    return Ladder(ladder.tiers, edges)


def _best_factor(direction: Callable[[float], tuple[float, ...]], score: Score, reach: float) -> float:
    return golden(lambda factor: score(direction(factor)), 1 / reach, reach, RESOLUTION)


def _moved(
    edges: tuple[float, ...], index: int | None, fixed: int, limits: tuple[float, float], factor: float
) -> tuple[float, ...]:
    """The thresholds with one of them, or (None) all that are not fixed, times a factor, still in order."""
    lowest, highest = limits
    if index is None:
        scaled = (min(max(max(edge, 1.0) * factor, lowest), highest) for edge in edges[fixed:])
        return (*edges[:fixed], *scaled)
    low, high = _neighbours(edges, index)
    value = min(max(max(edges[index], 1.0) * factor, low, lowest), high, highest)
    return (*edges[:index], value, *edges[index + 1 :])


def _neighbours(edges: tuple[float, ...], index: int) -> tuple[float, float]:
    return edges[index - 1] if index else -math.inf, edges[index + 1] if index + 1 < len(edges) else math.inf


def beside(ladder: Ladder, choices: Choices) -> Iterable[Ladder]:
    """Ladders with one threshold, or all of them, a little lower or higher: whole instances move the optimum there."""
    edges = ladder.edges
    limits = choices.first[0], choices.inner[-1]
    fixed = 1 if len(choices.first) == 1 else 0
    moved = [
        _moved(edges, index, fixed, limits, factor)
        for factor in (_NUDGES if len(edges) > fixed else ())
        for index in (None, *range(fixed, len(edges)))
    ]
    if edges and not fixed:
        moved.append((limits[0], *edges[1:]))
    # At the limits, several are the same.
    return [Ladder(ladder.tiers, one) for one in dict.fromkeys(moved) if one != edges]
