"""The solved threshold: balanced sides, the planner's figures, several clusters, links that bind."""

from __future__ import annotations

import math
import random
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas.core.control.lengths import LengthBin, Lengths
from prfaas.core.control.threshold import Split, Stage, solve
from prfaas.core.model.curve import polynomial
from prfaas.core.planning.scenario import ServiceTime
from prfaas.core.planning.solve import solve as plan
from prfaas.scenario.build import build_scenario
from prfaas.sim.arrivals import lengths_of

CASE_STUDY = Path(__file__).parents[3] / "examples" / "case-study" / "prfaas.yaml"
GBPS = 1e9 / 8


def bins_of(lengths: list[int]) -> list[LengthBin]:
    seen = Lengths()
    for length in lengths:
        seen.saw(length, 0.0)
    return seen.bins()


def stage(name: str, num: int, per_token_s: float, bytes_per_s: float = math.inf) -> Stage:
    return Stage(name, num, polynomial(0.1, per_token_s).at, bytes_per_s)


def test_the_case_study_is_solved_as_planned() -> None:
    """Threshold and rate of the planner's exact search, from ten thousand lengths that were seen."""
    scenario = build_scenario(CASE_STUDY, ServiceTime.EXPECTED)
    planned = plan(scenario)
    draw, rng = lengths_of(scenario.workload), random.Random(1)
    lengths = Lengths()
    for index in range(10_000):
        lengths.saw(draw(rng), float(index))
    west, east = scenario.prfaas_by_name["prfaas-west"], scenario.pd[0]
    split = solve(
        lengths.bins(),
        [Stage("west", west.num_instances, west.prefill_s.at, 100 * GBPS)],
        [Stage("east", planned.num_pd_prefill["pd-east"], east.prefill_s.at)],
        scenario.kv_bytes.at,
    )
    assert split.threshold_tokens == pytest.approx(planned.threshold_tokens, rel=0.1)
    assert split.offload_fraction == pytest.approx(planned.offload_fraction, abs=0.04)
    assert split.max_rps == pytest.approx(planned.system_rps, rel=0.05)


@given(
    st.lists(st.integers(1, 200_000), min_size=1, max_size=80),
    st.integers(1, 8), st.integers(1, 8),
    st.sampled_from([math.inf, 1e9, 1e7, 1e5]),
)  # fmt: skip
def test_both_sides_are_equally_full(lengths: list[int], num_away: int, num_home: int, bytes_per_s: float) -> None:
    """Eq. 7, for whatever came: 1 / rate of the whole is what either side needs for a request."""
    away, home = stage("west", num_away, 4e-5, bytes_per_s), stage("east", num_home, 1e-4)
    split = solve(bins_of(lengths), [away], [home], partial(float.__mul__, 1e3))
    shares = split.shares
    assert sum(share.share for share in shares.values()) == pytest.approx(1.0)
    fullness = {name: share.share / share.max_rps for name, share in shares.items()}
    assert max(fullness.values()) == pytest.approx(1 / split.max_rps)
    if len(fullness) == 2:
        assert fullness["west"] == pytest.approx(fullness["east"], rel=1e-3)
    assert 0 <= split.threshold_tokens <= max(lengths) * 1.2 + 8


def rate_at(bins: list[LengthBin], num_away: int, away: Stage, home: Stage) -> float:
    """Requests a second if the first `num_away` bins leave."""
    long, short = bins[:num_away], bins[num_away:]
    busy = (
        sum(entry.share * away.prefill_s(entry.mean_tokens) for entry in long) / away.num_instances,
        sum(entry.share * home.prefill_s(entry.mean_tokens) for entry in short) / home.num_instances,
    )
    return 1 / max(busy)


@given(st.lists(st.integers(1, 200_000), min_size=2, max_size=60), st.integers(1, 6), st.integers(1, 6))
def test_no_threshold_serves_more(lengths: list[int], num_away: int, num_home: int) -> None:
    """Tried at every border between two bins."""
    away, home = stage("west", num_away, 4e-5), stage("east", num_home, 1e-4)
    bins = bins_of(lengths)
    split = solve(bins, [away], [home], lambda num_tokens: 0.0)
    best = max(rate_at(bins, num, away, home) for num in range(len(bins) + 1))
    assert split.max_rps >= best * (1 - 1e-6)


def both(bytes_per_s: float) -> Split:
    lengths = [1_000 * (1 + index % 100) for index in range(400)]
    away, home = stage("west", 2, 4e-5, bytes_per_s), stage("east", 2, 1e-4)
    return solve(bins_of(lengths), [away], [home], lambda num_tokens: 2e4 * num_tokens)


def test_a_thinner_link_raises_the_threshold() -> None:
    """Without end as it is cut."""
    thresholds = [both(rate).threshold_tokens for rate in (math.inf, 1e9, 3e8, 1e8, 0.0)]
    assert thresholds == sorted(thresholds)
    assert thresholds[1] < thresholds[2] < thresholds[3]
    assert thresholds[-1] == math.inf
    assert set(both(0.0).shares) == {"east"}


def test_clusters_share_as_they_can() -> None:
    """Two PrfaaS clusters, one twice as large: both equally full."""
    bins = bins_of([1_000 * (1 + index % 100) for index in range(400)])
    prfaas = [stage("west", 4, 4e-5), stage("north", 2, 4e-5)]
    split = solve(bins, prfaas, [stage("east", 2, 1e-4)], lambda num_tokens: 0.0)
    assert split.shares["west"].share == pytest.approx(2 * split.shares["north"].share)


def test_with_nobody_at_home_everything_leaves() -> None:
    """There is no other way."""
    split = solve(bins_of([10, 100]), [stage("west", 1, 1e-4)], [], lambda num_tokens: 1.0)
    assert (split.threshold_tokens, split.offload_fraction) == (0.0, pytest.approx(1.0))
