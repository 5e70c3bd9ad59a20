"""The best bands and splits for several PD clusters, or several kinds of PrfaaS clusters, with a link per pair.

For given bands every stage has a capacity in requests per second, so the best rates are a linear programme, and the
whole numbers of prefill instances N_p,j make it a mixed-integer one:

    maximise Λ over flows x_ij ≥ 0 (prefilled in i, decoded in j), z_j ≥ 0 (prefilled and decoded in j), 0 ≤ n_j < N_j
    Σ x_ij over the clusters i of tier m and all j = p_m Λ          every request of a band goes somewhere
    Σ z_j = p_0 Λ
    Σ_j x_ij ≤ N_i / T_i(l_m)                                       PrfaaS compute
    x_ij ≤ B_ij / S(l_m)                                            link
    z_j ≤ n_j / T_j(l_0)                                            PD-P
    z_j + Σ_i x_ij ≤ (N_j − n_j) · decode_rps_j                     PD-D

The thresholds between bands are searched outside: by the relaxation without whole numbers, which bounds the rest and
takes a millisecond, then by the programme itself around its best.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, permutations
from typing import Final

import numpy as np

from prfaas.core.planning.scenario import (
    PdCluster,
    PlanningError,
    PolicyKind,
    PrfaasCluster,
    Scenario,
    WanLink,
)
from prfaas.core.planning.search import GOLDEN, NUM_THRESHOLDS, thresholds_of
from prfaas.core.planning.solution import Route, Solution, TierBand
from prfaas.core.planning.workload import Band, band

#: Rates that the first scan aims at, from all that decode could do downwards.
_NUM_AIMS: Final = 24
_AIM_RATIO: Final = 0.88

#: Halvings of an interval of lengths, down to a token.
_HALVINGS: Final = 18

#: Then each threshold moves within this factor, to this relative resolution.
_STEP: Final = 1.3
_NEAR: Final = 1.08
_RESOLUTION: Final = 1e-3

#: Factors of thresholds beside which whole instances may fit better than at the relaxation's optimum.
_NUDGES: Final = (0.7, 0.8, 0.88, 0.93, 0.96, 0.98, 1.02, 1.04, 1.07, 1.13, 1.25, 1.4)

#: Passes over the thresholds, and turns of whole numbers after thresholds; both settle sooner.
_PASSES: Final = 3
_ROUNDS: Final = 3

#: Whole-number programmes are solved to this relative gap, below what a plan is read at.
_MIP_GAP: Final = 1e-4

Tier = tuple[PrfaasCluster, ...]


@dataclass(frozen=True)
class _Ladder:
    """Tiers in the order of their bands, shortest lengths first, and the thresholds under each of them."""

    tiers: tuple[Tier, ...]
    edges: tuple[float, ...]


@dataclass(frozen=True)
class _Flows:
    """Rates of one programme's optimum, in requests per second. `score` is what was maximised."""

    score: float
    system_rps: float
    counts: dict[str, float]
    remote: dict[tuple[str, str], float]
    local: dict[str, float]


def solve_many(scenario: Scenario, near: Solution | None = None, request_price: float | None = None) -> Solution:
    """The best (t_1 … t_m, N_p,1 … N_p,J). With `near`, a solution of a similar scenario, only its neighbourhood is
    searched: for what one more of a resource would bring. `request_price` as for `solve_one_pd`."""
    if near is not None:
        flows, ladder = _in_whole_instances(scenario, _nearby_ladder(scenario, near), request_price, quick=True)
        return _solution(scenario, ladder, flows)
    best: tuple[_Flows, _Ladder] | None = None
    for relaxed, ladder in _climbed(scenario, request_price):
        # Whole instances cannot do better than divisible ones.
        if best is None or relaxed > best[0].score:
            found = _in_whole_instances(scenario, ladder, request_price, quick=False)
            if best is None or found[0].score > best[0].score:
                best = found
    assert best is not None
    return _solution(scenario, best[1], best[0])


def relaxed_rps(scenario: Scenario) -> float:
    """The best Λ found if instances were divisible: what whole instances cost a plan is the distance to it."""
    return _climbed(scenario, None)[0][0]


def divisible_gains(scenario: Scenario, near: Solution, larger: Iterable[Scenario]) -> list[float]:
    """How much higher Λ is in each larger scenario, near a solution of `scenario` and as if instances were divisible:
    with whole ones, a fleet's next instance often waits for another before it brings anything."""
    ladder = _nearby_ladder(scenario, near)
    choices = _Choices.of(scenario)
    relaxed = _Programme(scenario, None, None)
    ladder = _walk(ladder, choices, partial(relaxed.score, ladder.tiers))
    base = relaxed.solve(ladder).system_rps
    found = []
    for scaled in larger:
        programme = _Programme(scaled, None, None)
        # Scenarios keep the order of their tiers, but a tier is named by its clusters: the ladder's are replaced.
        tiers = _nearby_ladder(scaled, near).tiers
        score = partial(programme.score, tiers)
        edges = max([ladder.edges, _refilled(scaled, tiers, choices, base, score)], key=score)
        moved = _walk(_Ladder(tiers, edges), choices, score, reach=_NEAR)
        found.append(programme.solve(moved).system_rps - base)
    return found


def _refilled(
    scenario: Scenario, tiers: Sequence[Tier], choices: _Choices, near_rps: float, score: Score
) -> tuple[float, ...]:
    """The thresholds at which every tier is full at some rate near one."""

    def filled(factor: float) -> tuple[float, ...]:
        return _filled(scenario, tiers, choices, near_rps * factor)

    return filled(_golden(lambda factor: score(filled(factor)), _NEAR))


def _climbed(scenario: Scenario, request_price: float | None) -> list[tuple[float, _Ladder]]:
    """The relaxation's best ladder of each order of tiers with its score, the best first."""
    choices = _Choices.of(scenario)
    relaxed = _Programme(scenario, None, request_price)
    found = [_climb(scenario, one, choices, partial(relaxed.score, one.tiers)) for one in _ladders(scenario)]
    scored = [(relaxed.solve(ladder).score, ladder) for ladder in found]
    return sorted(scored, key=lambda pair: pair[0], reverse=True)


def _in_whole_instances(
    scenario: Scenario, ladder: _Ladder, request_price: float | None, *, quick: bool
) -> tuple[_Flows, _Ladder]:
    """The best of the ladders around one, with whole numbers of instances. `quick` only walks."""
    choices = _Choices.of(scenario)
    relaxed = _Programme(scenario, None, request_price)
    programme = _Programme(scenario, None, request_price, whole=True)
    best = programme.solve(ladder)
    for _ in range(1 if quick else _ROUNDS):
        before = best.score
        for beside in () if quick else _beside(ladder, choices):
            # The relaxation bounds the programme from above at the cost of a thirtieth.
            if relaxed.solve(beside).score > best.score * (1 + _MIP_GAP):
                found = programme.solve(beside)
                if found.score > best.score:
                    best, ladder = found, beside
        fixed = _Programme(scenario, {name: round(count) for name, count in best.counts.items()}, request_price)
        moved = _walk(ladder, choices, partial(fixed.score, ladder.tiers), reach=_NEAR if quick else _STEP)
        again = programme.solve(moved)
        if again.score > best.score:
            best, ladder = again, moved
        if best.score <= before * (1 + _MIP_GAP):
            break
    return best, ladder


@dataclass(frozen=True)
class _Choices:
    """Thresholds worth trying: for the lowest, which the policy may fix, and for those between tiers."""

    first: Sequence[float]
    inner: Sequence[float]

    @classmethod
    def of(cls, scenario: Scenario) -> _Choices:
        return cls(thresholds_of(scenario), scenario.workload.thresholds(NUM_THRESHOLDS))


def _ladders(scenario: Scenario) -> Iterable[_Ladder]:
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
        yield _Ladder(tiers, (first,) * len(tiers))


def _nearby_ladder(scenario: Scenario, near: Solution) -> _Ladder:
    order = {tier.clusters: index for index, tier in enumerate(near.remote)}
    tiers = sorted(scenario.tiers, key=lambda tier: order.get(tuple(c.name for c in tier), len(order)))
    edges = tuple(tier.band.low_tokens for tier in near.remote)
    if scenario.threshold_tokens is not None:
        first = scenario.threshold_tokens
        edges = (first, *(max(first, edge) for edge in edges[1:]))
    return _Ladder(tuple(tiers), edges + (scenario.workload.max_tokens,) * (len(tiers) - len(edges)))


Score = Callable[[tuple[float, ...]], float]


def _climb(scenario: Scenario, ladder: _Ladder, choices: _Choices, score: Score) -> _Ladder:
    """The best of the ladders that would just carry some rate, over all rates, then uphill from there."""
    if not ladder.edges:
        return ladder

    def filled(aim_rps: float) -> tuple[float, ...]:
        return _filled(scenario, ladder.tiers, choices, aim_rps)

    ceiling = sum(pd.num_instances * pd.decode_rps for pd in scenario.pd)
    aims = [ceiling * _AIM_RATIO**step for step in range(_NUM_AIMS)]
    best = max(aims, key=lambda aim: score(filled(aim)))
    factor = _golden(lambda factor: score(filled(best * factor)), _AIM_RATIO)
    edges = max(filled(best), filled(best * factor), key=score)
    return _walk(_Ladder(ladder.tiers, edges), choices, score)


def _filled(scenario: Scenario, tiers: Sequence[Tier], choices: _Choices, aim_rps: float) -> tuple[float, ...]:
    """Thresholds with which each tier, from the longest lengths down, takes all that it can at a rate of the system."""
    edges: list[float] = []
    high = choices.inner[-1]
    for tier in reversed(tiers):
        low, top = choices.first[0], high
        for _ in range(_HALVINGS):
            middle = (low + top) / 2
            taken = band(scenario.workload, middle, high)
            if _tier_rps(scenario, tier, taken) < aim_rps * taken.fraction:
                low = middle
            else:
                top = middle
        # What is left above the lowest threshold goes to whoever can have it: nothing is gained by a sliver.
        high = choices.first[0] if top - choices.first[0] < 1 else top
        edges.insert(0, high)
    if edges and len(choices.first) == 1:
        edges[0] = choices.first[0]
    return tuple(edges)


def _tier_rps(scenario: Scenario, tier: Tier, taken: Band) -> float:
    """Eq. 3 for a tier, with all of its links."""
    if not taken.fraction:
        return math.inf
    kv_bytes = scenario.service(scenario.kv_bytes, taken)
    prefill_s = scenario.service(tier[0].prefill_s, taken)
    total = 0.0
    for cluster in tier:
        network = sum(link.bytes_per_s for link in links_from(scenario, cluster.name))
        total += min(cluster.num_instances / prefill_s, network / kv_bytes if kv_bytes else math.inf)
    return total


def _walk(ladder: _Ladder, choices: _Choices, score: Score, *, reach: float = _STEP) -> _Ladder:
    """Ascent from where the ladder is: each threshold in turn, then all of them together (the optimum often lies on a
    ridge between two limits, where one alone cannot move), until it brings nothing."""
    edges = ladder.edges
    best = score(edges) if edges else 0.0
    lowest, highest = choices.first[0], choices.inner[-1]
    fixed = 1 if len(choices.first) == 1 else 0
    for _ in range(_PASSES if reach > _NEAR else 1):
        before = best
        for index in (*range(fixed, len(edges)), None):
            if index is None and len(edges) - fixed < 2:
                continue
            direction = partial(_moved, edges, index, fixed, (lowest, highest))
            moved = direction(_golden(lambda factor, along=direction: score(along(factor)), reach))  # type: ignore[misc]
            if score(moved) > best:
                edges, best = moved, score(moved)
        if len(edges) < 2 or best <= before * (1 + 1e-5):
            break
    return _Ladder(ladder.tiers, edges)


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


def _golden(score: Callable[[float], float], reach: float) -> float:
    """Golden-section search for the best factor between 1/reach and reach."""
    low, high = sorted((1 / reach, reach))
    left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    at_left, at_right = score(left), score(right)
    while high - low > _RESOLUTION:
        if at_left >= at_right:
            high, right, at_right = right, left, at_left
            left = high - GOLDEN * (high - low)
            at_left = score(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + GOLDEN * (high - low)
            at_right = score(right)
    return (low + high) / 2


def _beside(ladder: _Ladder, choices: _Choices) -> Iterable[_Ladder]:
    """Ladders with one threshold, or all of them, a little lower or higher: whole instances move the optimum there."""
    edges = ladder.edges
    limits = choices.first[0], choices.inner[-1]
    fixed = 1 if len(choices.first) == 1 else 0
    for factor in _NUDGES if len(edges) > fixed else ():
        for index in (None, *range(fixed, len(edges))):
            yield _Ladder(ladder.tiers, _moved(edges, index, fixed, limits, factor))
    if edges and not fixed:
        yield _Ladder(ladder.tiers, (limits[0], *edges[1:]))


def _bands(scenario: Scenario, tiers: Sequence[Tier], edges: tuple[float, ...]) -> tuple[Band, list[Band]]:
    workload = scenario.workload
    limits = [*edges, workload.max_tokens]
    local = band(workload, -math.inf, limits[0])
    return local, [band(workload, low, high) for low, high in pairwise(limits)]


class _Programme:
    """The linear programme of this module's text. `counts` fixes every n_j; `whole` makes them whole numbers."""

    def __init__(
        self,
        scenario: Scenario,
        counts: dict[str, int] | None,
        request_price: float | None,
        *,
        whole: bool = False,
    ) -> None:
        self._scenario = scenario
        self._fixed = counts
        self._request_price = request_price
        self._whole = whole

    def score(self, tiers: tuple[Tier, ...], edges: tuple[float, ...]) -> float:
        """Λ at these thresholds, less egress as a share of what requests are worth."""
        return self.solve(_Ladder(tiers, edges)).score

    def solve(self, ladder: _Ladder) -> _Flows:
        """The best rates at a ladder's thresholds."""
        scenario = self._scenario
        local, remote = _bands(scenario, ladder.tiers, ladder.edges)
        rows = _Rows()
        lam = rows.column(0.0, math.inf, cost=1.0)
        counts = {pd.name: rows.column(*self._count_limits(pd), whole=self._whole) for pd in scenario.pd}
        flows: dict[tuple[str, str], int] = {}
        for tier, tier_band in zip(ladder.tiers, remote, strict=True):
            self._remote(rows, lam, tier, tier_band, flows)
        shorts = self._local(rows, lam, counts, local)
        for pd in scenario.pd:
            arrivals = [(flow, 1.0) for (_, target), flow in flows.items() if target == pd.name]
            own = [(shorts[pd.name], 1.0)] if pd.name in shorts else []
            capacity = pd.num_instances * pd.decode_rps
            rows.at_most(capacity, [*arrivals, *own, (counts[pd.name], pd.decode_rps)])
        score, value = rows.maximise()
        return _Flows(
            score,
            max(0.0, value[lam]),
            {name: value[column] for name, column in counts.items()},
            {pair: max(0.0, value[column]) for pair, column in flows.items()},
            {name: max(0.0, value[column]) for name, column in shorts.items()},
        )

    def _count_limits(self, pd: PdCluster) -> tuple[float, float]:
        if self._fixed is not None:
            return self._fixed[pd.name], self._fixed[pd.name]
        if self._scenario.policy is PolicyKind.NAIVE:
            return 0, 0
        if pd.num_prefill is not None:
            return pd.num_prefill, pd.num_prefill
        return 0, pd.num_instances - 1

    def _remote(self, rows: _Rows, lam: int, tier: Tier, tier_band: Band, flows: dict[tuple[str, str], int]) -> None:
        if not tier_band.fraction:
            return
        scenario = self._scenario
        kv_bytes = scenario.service(scenario.kv_bytes, tier_band)
        of_tier = []
        for cluster in tier:
            own = []
            for link in links_from(scenario, cluster.name):
                limit = link.bytes_per_s / kv_bytes if kv_bytes else math.inf
                # Without a price nothing but a tie is decided by this: among equal rates, those that send the least.
                cost = 1e-7
                if self._request_price is not None:
                    cost += kv_bytes * link.price_per_byte / self._request_price
                column = rows.column(0.0, limit, cost=-cost)
                flows[cluster.name, link.target] = column
                own.append((column, 1.0))
            rows.at_most(cluster.num_instances / scenario.service(cluster.prefill_s, tier_band), own)
            of_tier += own
        rows.equal(0.0, [*of_tier, (lam, -tier_band.fraction)])

    def _local(self, rows: _Rows, lam: int, counts: dict[str, int], local: Band) -> dict[str, int]:
        if not local.fraction:
            return {}
        shorts = {}
        for pd in self._scenario.pd:
            shorts[pd.name] = rows.column(0.0, math.inf)
            per_instance = 1 / self._scenario.service(pd.prefill_s, local)
            rows.at_most(0.0, [(shorts[pd.name], 1.0), (counts[pd.name], -per_instance)])
        rows.equal(0.0, [*((column, 1.0) for column in shorts.values()), (lam, -local.fraction)])
        return shorts


def links_from(scenario: Scenario, source: str) -> list[WanLink]:
    """Links that start at a PrfaaS cluster."""
    return [link for link in scenario.links if link.source == source]


class _Rows:
    """Columns and sparse rows of a linear programme, handed to HiGHS at the end."""

    def __init__(self) -> None:
        self._costs: list[float] = []
        self._limits: list[tuple[float, float]] = []
        self._whole: list[bool] = []
        self._starts = [0]
        self._indices: list[int] = []
        self._values: list[float] = []
        self._bounds: list[tuple[float, float]] = []

    def column(self, low: float, high: float, *, cost: float = 0.0, whole: bool = False) -> int:
        self._costs.append(cost)
        self._limits.append((low, high))
        self._whole.append(whole)
        return len(self._costs) - 1

    def at_most(self, limit: float, terms: Iterable[tuple[int, float]]) -> None:
        self._row(-math.inf, limit, terms)

    def equal(self, value: float, terms: Iterable[tuple[int, float]]) -> None:
        self._row(value, value, terms)

    def _row(self, low: float, high: float, terms: Iterable[tuple[int, float]]) -> None:
        for index, value in terms:
            self._indices.append(index)
            self._values.append(value)
        self._starts.append(len(self._indices))
        self._bounds.append((low, high))

    def maximise(self) -> tuple[float, list[float]]:
        """The optimum and the values of the columns there. Raises PlanningError if HiGHS finds none."""
        import highspy

        model = highspy.HighsLp()
        model.num_col_, model.num_row_ = len(self._costs), len(self._bounds)
        model.sense_ = highspy.ObjSense.kMaximize
        model.col_cost_ = np.array(self._costs)
        model.col_lower_, model.col_upper_ = (np.array(side, dtype=float) for side in zip(*self._limits, strict=True))
        model.row_lower_, model.row_upper_ = (np.array(side, dtype=float) for side in zip(*self._bounds, strict=True))
        model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        model.a_matrix_.start_ = np.array(self._starts)
        model.a_matrix_.index_ = np.array(self._indices)
        model.a_matrix_.value_ = np.array(self._values)
        if any(self._whole):
            kinds = (highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger)
            model.integrality_ = [kinds[whole] for whole in self._whole]
        solver = highspy.Highs()  # type: ignore[no-untyped-call]
        solver.setOptionValue("output_flag", False)
        solver.setOptionValue("threads", 1)
        solver.setOptionValue("random_seed", 0)
        solver.setOptionValue("mip_rel_gap", _MIP_GAP)
        solver.passModel(model)
        solver.run()
        if solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            # Nothing at all is always feasible, and every rate is bounded by some instance.
            raise PlanningError(f"the solver gave up: {solver.modelStatusToString(solver.getModelStatus())}")
        return solver.getObjectiveValue(), [float(value) for value in solver.getSolution().col_value]


def _solution(scenario: Scenario, ladder: _Ladder, flows: _Flows) -> Solution:
    local, remote = _bands(scenario, ladder.tiers, ladder.edges)
    tiers = tuple(
        TierBand(tuple(cluster.name for cluster in tier), tier_band)
        for tier, tier_band in zip(ladder.tiers, remote, strict=True)
    )
    band_of = {name: tier.band for tier in tiers for name in tier.clusters}
    routes = [Route(source, target, band_of[source], rps) for (source, target), rps in flows.remote.items() if rps > 0]
    routes += [Route(None, name, local, rps) for name, rps in flows.local.items() if rps > 0]
    counts = {name: round(count) for name, count in flows.counts.items()}
    return Solution(tiers, local, counts, flows.system_rps, tuple(routes))
