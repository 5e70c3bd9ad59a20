"""GORGO's three sites in the simulator, in short. `python -m benchmarks.simulator.gorgo` does the same at length."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from functools import cache

import pytest

from benchmarks.simulator.gorgo import APR2, BLIND, OURS, THEIRS, TRAP, Cell, Seen, answered, seen
from benchmarks.simulator.gorgo_load import APR5, APR6, APR7, PUBLISHED, Window, asked, statistics_of

#: An eighth of Apr 6, and a half of Apr 2, at their rates.
SHORT = replace(APR6, name="short", num_requests=954, num_users=76, time_scale=0.25)
TRAPPED = replace(APR2, name="trapped", num_requests=1_536, num_users=121, time_scale=0.5)


@cache
def found(policy: str, window: Window = SHORT, speed: float = 1.0) -> Seen:
    return seen(Cell(policy, window, 1, window.time_scale, speed))


@pytest.mark.parametrize("window", [APR5, APR6, APR7], ids=lambda window: window.name)
def test_windows_are_like_the_published_ones(window: Window) -> None:
    """Lengths within an eighth, reuse within four points; requests and users as many."""
    here, published = statistics_of(asked(window, 1)), PUBLISHED[window]
    assert here.num_requests == published.num_requests
    assert here.requests_per_user == pytest.approx(published.requests_per_user, rel=0.04)
    assert here.multi_turn == pytest.approx(published.multi_turn, abs=0.02)
    assert here.reuse == pytest.approx(published.reuse, abs=0.04)
    for name in ("median_tokens", "mean_tokens", "p95_tokens"):
        assert getattr(here, name) == pytest.approx(getattr(published, name), rel=0.125), name


def test_a_window_is_its_seeds() -> None:
    """And a slower replay asks the same, later."""
    first, again, slower = asked(SHORT, 1), asked(SHORT, 1), asked(SHORT, 1, 2 * SHORT.time_scale)
    assert first == again
    assert first != asked(SHORT, 2)
    assert [one.arrival.at_s * 2 for one in first] == pytest.approx([one.arrival.at_s for one in slower])
    assert [one.arrival.blocks for one in first] == [one.arrival.blocks for one in slower]


def test_a_tuner_of_the_first_token_alone_ruins_the_last() -> None:
    """The trap: with no weight on the queue all go to the nearest, and the 95th percentile to the last token is twice
    that of any other."""
    trap = found(TRAP, TRAPPED)
    assert trap.shares == (1.0, 0.0, 0.0)
    assert trap.e2e_p95_s > 2 * max(found(policy, TRAPPED).e2e_p95_s for policy in THEIRS)


def test_replicas_that_are_fast_enough_hide_it_from_who_looks_at_the_first_token() -> None:
    """Twice as fast as the fitted ones: by the first token it is the best, by the last one still the worst."""
    trap = found(TRAP, TRAPPED, 2.0)
    for policy in ("session affinity", "least-request"):
        other = found(policy, TRAPPED, 2.0)
        assert trap.ttft_p50_s < 0.7 * other.ttft_p50_s
        assert trap.ttft_p95_s < other.ttft_p95_s
        assert trap.e2e_p95_s > 1.3 * other.e2e_p95_s


def test_our_rule_does_not_find_the_trap() -> None:
    """It sends most to the nearest where that is best, and not where it is not; the last token comes in time."""
    ours, trap = found(OURS, TRAPPED), found(TRAP, TRAPPED)
    assert 0.4 < ours.shares[0] < 0.8
    assert ours.ttft_p50_s < trap.ttft_p50_s
    assert ours.e2e_p95_s < trap.e2e_p95_s / 2


def test_round_trips_count_at_the_median() -> None:
    """Without them our rule spreads requests evenly, and half of them wait longer."""
    ours, blind = found(OURS), found(BLIND)
    assert max(blind.shares) < 0.4 < ours.shares[0]
    assert ours.ttft_p50_s < 0.9 * blind.ttft_p50_s
    assert ours.e2e_p95_s < 1.05 * blind.e2e_p95_s


def test_who_weighs_cache_and_queue_beats_who_weighs_one() -> None:
    """GORGO against session affinity, whose replicas are full unevenly, and least-request, which computes more."""
    gorgo, affinity, fewest = found("GORGO"), found("session affinity"), found("least-request")
    assert gorgo.e2e_p95_s < affinity.e2e_p95_s
    assert gorgo.ttft_p95_s < fewest.ttft_p95_s
    assert affinity.computed < gorgo.computed < fewest.computed


def test_our_rule_is_no_worse_than_theirs() -> None:
    """At the load of the held-out window, at the median and at the 95th percentile."""
    ours = found(OURS)
    for policy in THEIRS:
        theirs = found(policy)
        assert ours.ttft_p50_s < theirs.ttft_p50_s
        assert ours.ttft_p95_s < 1.05 * theirs.ttft_p95_s
        assert ours.e2e_p95_s < 1.05 * theirs.e2e_p95_s


def test_affinity_keeps_a_user_where_it_was() -> None:
    """All of its requests."""
    places = defaultdict(set)
    for life in answered(Cell("session affinity", SHORT, 1, SHORT.time_scale)):
        places[life.arrival.tenant].add(life.decode)
    assert {len(names) for names in places.values()} == {1}
