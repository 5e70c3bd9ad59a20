"""The pure parts of a measurement."""

from __future__ import annotations

import contextlib
import random
from itertools import accumulate

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from prfaas.profiles.format import HardwareProfile
from prfaas.profiles.measure.fit import fit_quadratic
from prfaas.profiles.measure.measurement import Measured
from prfaas.profiles.measure.profile_file import profile_text
from prfaas.profiles.measure.prompts import PROBE_WORDS, WORDS, random_text, random_tokens, word_size
from prfaas.profiles.measure.samples import Sample, Timed, TooFewTokens, log_grid, prefill_times, step_s
from prfaas.profiles.measure.stream import Usage


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


@given(st.floats(1e-3, 1), st.floats(1e-6, 1e-3), st.floats(1e-11, 1e-8))
def test_the_fit_finds_the_coefficients(c0: float, c1: float, c2: float) -> None:
    """Of a curve on the grid that is measured."""
    points = [(float(x), c0 + c1 * x + c2 * x * x) for x in log_grid(128, 131072, 8)]
    assert fit_quadratic(points)[:3] == pytest.approx((c0, c1, c2), rel=1e-6)


def test_the_fit_weighs_relative_errors() -> None:
    """A tenth of a short time counts as much as a tenth of a long one: the best constant of 1 and 2 is 1.2, not 1.5."""
    fit = fit_quadratic([(1.0, 2.0), (2.0, 1.0)])
    assert fit[:3] == pytest.approx((1.2, 0, 0))
    assert fit.max_relative_error == pytest.approx(0.4)


@given(st.lists(st.floats(1e-4, 100), min_size=1, max_size=8))
def test_a_fit_never_falls_with_length(seconds: list[float]) -> None:
    """No negative coefficient, whatever was measured."""
    fit = fit_quadratic([(128.0 * 2**index, value) for index, value in enumerate(seconds)])
    assert min(fit[:3]) >= 0
    assert fit.max_relative_error >= 0


def test_texts_of_as_many_words_have_as_many_tokens() -> None:
    """But for the words of the last round; and they differ from their start."""
    rng = random.Random(1)
    texts = [random_text(rng, 30).split() for _ in range(50)]
    for words in texts:
        assert len(words) == 30
        assert sorted(words[:12]) == sorted(words[12:24]) == sorted(WORDS)
    assert len({tuple(words[:8]) for words in texts}) == 50


@given(st.integers(1, 9), st.integers(-8, 50), st.integers(1, 10**6))
def test_the_size_of_words_is_found_from_two_texts(per_word: int, others: int, wanted: int) -> None:
    """Also where there are tokens besides: a BOS token, a template. No text is longer than wanted, if it can be."""
    size = word_size(per_word * PROBE_WORDS + others, per_word * 2 * PROBE_WORDS + others)
    assert size == (per_word, others)
    num_tokens = per_word * size.num_words(wanted) + others
    assert num_tokens <= wanted or size.num_words(wanted) == 1
    assert wanted - num_tokens <= per_word + 8


def test_what_does_not_grow_is_no_count() -> None:
    """Neither zeros nor one number for all."""
    assert word_size(0, 0) is word_size(7, 7) is word_size(0, 9) is None


def test_lengths_by_the_servers_count_rise_and_meet() -> None:
    """Two lengths that came out the same are one row with all their times."""
    counted = {
        16: [Sample(0.0, (0.3,), Usage(12)), Sample(0.0, (0.4,), Usage(14)), Sample(0.0, (0.2,), Usage(13))],
        15: [Sample(0.0, (0.1,), Usage(13))],
        99: [Sample(0.0, (0.9,), Usage(90))],
    }
    assert prefill_times(counted, by_own_count=True) == [Timed(13, (0.3, 0.4, 0.2, 0.1)), Timed(90, (0.9,))]
    assert [row.at for row in prefill_times(counted, by_own_count=False)] == [15, 16, 99]


def sample(sent_s: float, chunks: list[float], completion_tokens: int | None = None) -> Sample:
    return Sample(sent_s, tuple(chunks), Usage(10, completion_tokens, None))


def test_a_step_is_counted_while_all_decode() -> None:
    """The slow start of one and the quick end of the other are left out."""
    early = sample(0.0, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.61, 0.62, 0.63, 0.64])
    late = sample(0.15, [0.15, 0.25, 0.35, 0.45])
    assert step_s([early, late]) == pytest.approx(0.1)


def test_chunks_of_several_tokens_take_several_steps() -> None:
    """By the server's own count of tokens."""
    assert step_s([sample(0.0, [0.1, 0.3, 0.5, 0.7], completion_tokens=8)]) == pytest.approx(0.1)


@pytest.mark.parametrize("burst", [1, 2, 3, 5])
def test_bursts_share_what_they_waited_for(burst: int) -> None:
    """A proxy that passes tokens on in heaps does not make steps shorter or longer."""
    times = [0.1 * (number // burst * burst + burst) + 1e-5 * (number % burst) for number in range(60)]
    assert step_s([sample(0.0, times)]) == pytest.approx(0.1, rel=1e-3)


def test_tokens_that_all_come_at_once_show_no_step() -> None:
    """Neither 0 seconds nor a guess from one wait, however many tokens it brought."""
    for times in ([0.5] * 20, [0.4] + [0.5] * 20):
        with pytest.raises(TooFewTokens, match=r"came in . bursts, so a step cannot be seen"):
            step_s([sample(0.0, times)])


@given(st.lists(st.lists(st.floats(0, 1e-3), min_size=1, max_size=40), min_size=1, max_size=4), st.integers(1, 99))
def test_a_step_takes_time(gaps: list[list[float]], num_tokens: int) -> None:
    """Whatever arrived when: a positive step, no longer than all gaps together, or too few tokens."""
    samples = [sample(0.0, [0.1 + total for total in accumulate(part)], num_tokens) for part in gaps]
    with contextlib.suppress(TooFewTokens):
        assert 0 < step_s(samples) <= max(sum(part) for part in gaps)


def test_a_stall_does_not_count() -> None:
    """One pause of twenty steps leaves the median alone."""
    times = [0.1 * number + (2.0 if number > 30 else 0.0) for number in range(60)]
    assert step_s([sample(0.0, times)]) == pytest.approx(0.1)


def test_a_last_chunk_without_a_token_changes_nothing() -> None:
    """Some servers send one to say why they stopped."""
    assert step_s([sample(0.0, [0.1, 0.2, 0.3, 0.4, 0.4], completion_tokens=4)]) == pytest.approx(0.1)


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
