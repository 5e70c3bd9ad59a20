"""Lengths and rates as they are remembered."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas.core.control.lengths import HALF_LIFE, RATE_HALF_LIFE_S, Lengths


@given(st.lists(st.integers(1, 2_000_000), min_size=1, max_size=60))
def test_every_length_is_in_a_bin_of_its_own_size(lengths: list[int]) -> None:
    """Bins do not overlap, go from long to short, hold their means, and their shares sum to one."""
    seen = Lengths()
    for length in lengths:
        seen.saw(length, 0.0)
    bins = seen.bins()
    assert sum(entry.share for entry in bins) == pytest.approx(1.0)
    assert all(later.high_tokens <= before.low_tokens for before, later in itertools.pairwise(bins))
    assert all(entry.low_tokens <= entry.mean_tokens * (1 + 1e-9) for entry in bins)
    assert all(entry.mean_tokens <= entry.high_tokens for entry in bins)
    for length in lengths:
        assert any(entry.low_tokens <= length < entry.high_tokens for entry in bins), length


def test_a_bin_is_at_most_an_eighth_wide() -> None:
    """So a threshold inside one is known that well."""
    seen = Lengths()
    for length in range(8, 5_000, 7):
        seen.saw(length, 0.0)
    assert all(entry.high_tokens <= entry.low_tokens * 1.126 for entry in seen.bins() if entry.low_tokens)


def test_old_lengths_are_forgotten_by_half() -> None:
    """After as many others as a half-life, what was before counts as much as what came since."""
    seen = Lengths()
    for length in (100, 100_000):
        for _ in range(20 * HALF_LIFE if length == 100 else HALF_LIFE):
            seen.saw(length, 0.0)
    by_length = {entry.low_tokens > 1_000: entry.share for entry in seen.bins()}
    assert by_length[True] == pytest.approx(0.5, abs=0.01)


def test_a_million_lengths_stay_finite() -> None:
    """Weights grow without end, and are brought back."""
    seen = Lengths()
    for index in range(250_000):
        seen.saw(1 + index % 50_000, index * 0.01)
    assert sum(entry.share for entry in seen.bins()) == pytest.approx(1.0)
    assert seen.rate_rps(2_500.0) == pytest.approx(100.0, rel=0.01)


def test_the_rate_follows_a_burst_and_forgets_it() -> None:
    """Half of a change shows within a half-life."""
    rng, seen, now_s = random.Random(1), Lengths(), 0.0
    while now_s < 300.0:
        now_s += rng.expovariate(10.0)
        seen.saw(100, now_s)
    assert seen.rate_rps(now_s) == pytest.approx(10.0, rel=0.3)
    burst_s = now_s + RATE_HALF_LIFE_S
    while now_s < burst_s:
        now_s += rng.expovariate(100.0)
        seen.saw(100, now_s)
    assert seen.rate_rps(now_s) == pytest.approx(55.0, rel=0.2)
    assert seen.rate_rps(now_s + RATE_HALF_LIFE_S) == pytest.approx(27.5, rel=0.2)


@pytest.mark.parametrize("quiet_s", [0.0, 3_600.0])
def test_after_a_quiet_hour_the_rate_is_soon_known_again(quiet_s: float) -> None:
    """Half of it within a half-life, whatever was before; and looking at it changes nothing."""
    seen, now_s = Lengths(), quiet_s
    seen.saw(100, 0.0)
    looked_at = Lengths()
    looked_at.saw(100, 0.0)
    for _ in range(round(10 * RATE_HALF_LIFE_S)):
        now_s += 0.1
        seen.saw(100, now_s)
        looked_at.saw(100, now_s)
        for part in range(5):
            looked_at.rate_rps(now_s + part * 0.01)
    assert seen.rate_rps(now_s) == pytest.approx(5.0 if quiet_s else 10.0, rel=0.1)
    assert looked_at.rate_rps(now_s + 1) == pytest.approx(seen.rate_rps(now_s + 1))


def test_a_few_at_once_are_no_high_rate() -> None:
    """A second is too short to say more."""
    seen = Lengths()
    for _ in range(64):
        seen.saw(100, 0.001)
    assert seen.rate_rps(0.006) == pytest.approx(64.0, rel=0.05)


def test_before_anything_has_come_the_rate_is_nothing() -> None:
    """And there are no bins."""
    assert Lengths().rate_rps(5.0) == 0.0
    assert Lengths().bins() == []
