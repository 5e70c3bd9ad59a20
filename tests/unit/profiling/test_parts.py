"""The pure parts of a measurement."""

from __future__ import annotations

import random

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from prfaas.profiles.format import HardwareProfile
from prfaas.profiling.fit import fit_quadratic
from prfaas.profiling.measure import Measured
from prfaas.profiling.profile_file import profile_text
from prfaas.profiling.samples import Sample, Timed, TooFewTokens, log_grid, random_tokens, step_s


@given(st.integers(1, 10**6), st.integers(0, 10**6), st.integers(2, 64))
def test_the_grid_holds_both_ends(low: int, more: int, num: int) -> None:
    """Rising, distinct, no more than asked for."""
    grid = log_grid(low, low + more, num)
    assert (grid[0], grid[-1]) == (low, low + more)
    assert grid == sorted(set(grid))
    assert len(grid) <= num


def test_prompts_share_no_prefix() -> None:
    """Eight random ids of 240 do not meet again in a thousand prompts; the same seed gives the same prompt."""
    rng = random.Random(1)
    assert len({tuple(random_tokens(rng, 8)) for _ in range(1000)}) == 1000
    assert random_tokens(random.Random(5), 20) == random_tokens(random.Random(5), 20)


@given(st.floats(0, 1), st.floats(0, 1e-3), st.floats(1e-12, 1e-8))
def test_the_fit_finds_an_exact_quadratic(c0: float, c1: float, c2: float) -> None:
    """To its relative error."""
    points = [(x, c0 + c1 * x + c2 * x * x) for x in (128.0, 512.0, 2048.0, 8192.0, 32768.0)]
    assert fit_quadratic(points).max_relative_error < 1e-6


@given(st.lists(st.floats(1e-4, 100), min_size=1, max_size=8))
def test_a_fit_never_falls_with_length(seconds: list[float]) -> None:
    """No negative coefficient, whatever was measured."""
    fit = fit_quadratic([(128.0 * 2**index, value) for index, value in enumerate(seconds)])
    assert min(fit[:3]) >= 0
    assert fit.max_relative_error >= 0


def sample(sent_s: float, chunks: list[float], completion_tokens: int | None = None) -> Sample:
    return Sample(sent_s, tuple(chunks), 10, completion_tokens, None)


def test_a_step_is_counted_while_all_decode() -> None:
    """The slow start of one and the quick end of the other are left out."""
    early = sample(0.0, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.61, 0.62, 0.63, 0.64])
    late = sample(0.15, [0.15, 0.25, 0.35, 0.45])
    assert step_s([early, late]) == pytest.approx(0.1)


def test_chunks_of_several_tokens_take_several_steps() -> None:
    """By the server's own count of tokens."""
    assert step_s([sample(0.0, [0.1, 0.3, 0.5, 0.7], completion_tokens=8)]) == pytest.approx(0.1)


def test_streams_that_never_decode_together_are_refused() -> None:
    """A server that queues them would otherwise look as fast as with one."""
    with pytest.raises(TooFewTokens, match="raise --decode-tokens"):
        step_s([sample(0.0, [0.1, 0.2]), sample(0.0, [0.3, 0.4])])


def test_the_file_is_read_back() -> None:
    """By the planner's own reader, names quoted whatever is in them."""
    measured = Measured((Timed(128, (0.2, 0.1, 0.3)), Timed(4096, (1.0,))), (Timed(1, (0.01,)),), 64, 0, False)
    text = profile_text(measured, 'a "model": #1', "h200", 4, "here: {today}")
    profile = HardwareProfile.model_validate(yaml.safe_load(text))
    assert (profile.model, profile.gpus_per_instance, profile.source) == ('a "model": #1', 4, "here: {today}")
    assert [(row.tokens, row.seconds) for row in profile.prefill.table] == [(128, 0.2), (4096, 1.0)]
    assert [(step.batch, step.step_s) for step in profile.decode] == [(1, 0.01)]
