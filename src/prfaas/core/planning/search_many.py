"""The best bands and splits for several PD clusters, or several kinds of PrfaaS clusters, with a link per pair.

For given thresholds the best rates are a programme (`flows`); the thresholds are searched around it (`ladders`): first
with divisible instances, which bounds the rest and takes a millisecond, then with whole ones around the best of that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Final

from prfaas.core.planning.flows import FlowProgramme, Flows, Ladder, Tier, solution_of
from prfaas.core.planning.golden_section import golden
from prfaas.core.planning.linear import MIP_GAP
from prfaas.core.planning.scenario import PolicyKind, Scenario
from prfaas.core.planning.solution import Solution
from prfaas.core.planning.tier_thresholds import (
    NEAR,
    RESOLUTION,
    STEP,
    Choices,
    Score,
    beside,
    filled_edges,
    nearby,
    orders,
    scan,
    walk,
)

#: Turns of whole numbers after thresholds; they settle sooner.
_ROUNDS: Final = 3

#: So many of the best splits, each with its own thresholds, are walked from; fewer where there are many links.
_STARTS: Final = 8
_STARTS_LINKS: Final = 100


def solve_many(scenario: Scenario, near: Solution | None = None, request_price: float | None = None) -> Solution:
    """The best (t_1 … t_m, N_p,1 … N_p,J). With `near`, a solution of a similar scenario, only its neighbourhood is
    searched: for what one more of a resource would bring. `request_price` as for `solve_one_pd`."""
    if near is not None:
        start = math.inf, nearby(scenario, near)
        flows, ladder = _in_whole_instances(scenario, [start], request_price, quick=True)
        return solution_of(scenario, ladder, flows)
    best: tuple[Flows, Ladder] | None = None
    for starts in _climbed(scenario, request_price):
        # Whole instances cannot do better than divisible ones.
        if best is None or starts[0][0] > best[0].score:
            found = _in_whole_instances(scenario, starts, request_price, quick=False)
            if best is None or found[0].score > best[0].score:
                best = found
    assert best is not None
    return solution_of(scenario, best[1], best[0])


def relaxed_rps(scenario: Scenario) -> float:
    """The best Λ found if instances were divisible: what whole instances cost a plan is the distance to it."""
    return _climbed(scenario, None)[0][0][0]


def divisible_gains(scenario: Scenario, near: Solution, larger: Iterable[Scenario]) -> list[float]:
    """How much higher Λ is in each larger scenario, near a solution of `scenario` and as if instances were divisible:
    with whole ones, a fleet's next instance often waits for another before it brings anything."""
    ladder = nearby(scenario, near)
    choices = Choices.of(scenario)
    relaxed = FlowProgramme(scenario, None, None)
    ladder = walk(ladder, choices, partial(relaxed.score, ladder.tiers))
    base = relaxed.solve(ladder).system_rps
    found = []
    for scaled in larger:
        programme = FlowProgramme(scaled, None, None)
        # Scenarios keep the order of their tiers, but a tier is named by its clusters: the ladder's are replaced.
        tiers = nearby(scaled, near).tiers
        score = partial(programme.score, tiers)
        edges = max([ladder.edges, _refilled(scaled, tiers, choices, base, score)], key=score)
        moved = walk(Ladder(tiers, edges), choices, score, reach=NEAR)
        found.append(programme.solve(moved).system_rps - base)
    return found


def _refilled(
    scenario: Scenario, tiers: Sequence[Tier], choices: Choices, near_rps: float, score: Score
) -> tuple[float, ...]:
    """The thresholds at which every tier is full at some rate near one."""

    def filled(factor: float) -> tuple[float, ...]:
        return filled_edges(scenario, tiers, choices, near_rps * factor)

    return filled(golden(lambda factor: score(filled(factor)), 1 / NEAR, NEAR, RESOLUTION))


def _climbed(scenario: Scenario, request_price: float | None) -> list[list[tuple[float, Ladder]]]:
    """For each order of tiers the relaxation's best ladder, and those of the scan behind it, with their scores; the
    best order first."""
    choices = Choices.of(scenario)
    relaxed = FlowProgramme(scenario, None, request_price)
    found = []
    for one in orders(scenario):
        score = partial(relaxed.score, one.tiers)
        scanned = scan(scenario, one, choices, score)
        best = walk(scanned[0][1], choices, score)
        found.append([(score(best.edges), best), *scanned])
    return sorted(found, key=lambda starts: starts[0][0], reverse=True)


def _in_whole_instances(
    scenario: Scenario, starts: list[tuple[float, Ladder]], request_price: float | None, *, quick: bool
) -> tuple[Flows, Ladder]:
    """The best of the ladders around some, with whole numbers of instances. Ladders come with what divisible ones
    reach there. `quick` only walks."""
    choices = Choices.of(scenario)
    relaxed = FlowProgramme(scenario, None, request_price)
    programme = FlowProgramme(scenario, None, request_price, whole=True)
    best, ladder = programme.solve(starts[0][1]), starts[0][1]
    of_split = {_split_key(best): (best, ladder)}
    for bound, start in starts[1:]:
        if bound > best.score * (1 + MIP_GAP):
            found = programme.solve(start)
            known = of_split.get(_split_key(found))
            if known is None or found.score > known[0].score:
                of_split[_split_key(found)] = found, start
            if found.score > best.score:
                best, ladder = found, start
    num_starts = max(1, min(_STARTS, _STARTS_LINKS // max(1, len(scenario.links))))
    for neighbours in () if quick else (False, True):
        if neighbours:
            splits = _beside_split(scenario, _split_of(best))
            found_there = [(FlowProgramme(scenario, split, request_price).solve(ladder), ladder) for split in splits]
            of_split = {_split_key(found): (found, start) for found, start in found_there}
        for found, start in sorted(of_split.values(), key=lambda pair: pair[0].score, reverse=True)[:num_starts]:
            fixed = FlowProgramme(scenario, _split_of(found), request_price)
            moved = walk(start, choices, partial(fixed.score, start.tiers))
            again = fixed.solve(moved)
            if again.score > best.score:
                best, ladder = again, moved
    for _ in range(1 if quick else _ROUNDS):
        before = best.score
        for nudged in () if quick else beside(ladder, choices):
            # The relaxation bounds the programme from above at the cost of a thirtieth.
            if relaxed.solve(nudged).score > best.score * (1 + MIP_GAP):
                found = programme.solve(nudged)
                if found.score > best.score:
                    best, ladder = found, nudged
        fixed = FlowProgramme(scenario, _split_of(best), request_price)
        moved = walk(ladder, choices, partial(fixed.score, ladder.tiers), reach=NEAR if quick else STEP)
        again = programme.solve(moved)
        if again.score > best.score:
            best, ladder = again, moved
        if best.score <= before * (1 + MIP_GAP):
            break
    # Whole numbers are whole but for the solver's tolerance.
    return FlowProgramme(scenario, _split_of(best), request_price).solve(ladder), ladder


def _beside_split(scenario: Scenario, split: dict[str, int]) -> Iterable[dict[str, int]]:
    """Splits with one instance of one cluster converted."""
    for pd in scenario.pd if scenario.policy is not PolicyKind.NAIVE else ():
        for count in (split[pd.name] - 1, split[pd.name] + 1):
            if pd.num_prefill is None and 0 <= count < pd.num_instances:
                yield {**split, pd.name: count}


def _split_of(flows: Flows) -> dict[str, int]:
    return {name: round(count) for name, count in flows.counts.items()}


def _split_key(flows: Flows) -> tuple[int, ...]:
    return tuple(_split_of(flows).values())
