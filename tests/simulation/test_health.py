"""Engines that answer their probes and fail, or are slow: how much harm they do, and how soon they are used again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from prfaas.core.control.health import MAX_FAILURES, MAX_OUT_S, Health
from prfaas.core.control.router import RoutePolicy
from prfaas.sim.conditions import Condition, EnginesFail, EnginesMend, EnginesSlow
from prfaas.sim.runs import Run, open_loop
from prfaas.testing.scheduling import deployment, outcome_of, steady

BAD = "prfaas-west-1"
#: It is bad from here to there.
FROM_S, TO_S, UNTIL_S = 100.0, 220.0, 340.0


def run(bad: Condition | None, *, mends_s: float = TO_S, policy: RoutePolicy | None = None, load: float = 0.6) -> Run:
    made = deployment()
    made = made if policy is None else replace(made, policy=policy)
    conditions = () if bad is None else ((FROM_S, bad), (mends_s, EnginesMend(bad.instances)))  # type: ignore[union-attr]
    return open_loop(made, steady(load, UNTIL_S).arrivals(1), conditions=conditions, checks=False)


def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's work is judged."""
    monkeypatch.setattr(Health, "failed", lambda *facts: None)
    monkeypatch.setattr(Health, "took", lambda *facts: None)


@pytest.mark.parametrize("policy", [None, RoutePolicy(True, 19_400)], ids=["moves", "fixed"])
def test_one_that_fails_fast_is_no_magnet(policy: RoutePolicy | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who fails at once has nothing to do, and is the least busy of all. It gets five prompts and then one in eight
    seconds; without health most prompts, which all fall back."""
    found = run(EnginesFail((BAD,)), policy=policy)
    fell_back = [life for life in found.ended if life.fallback]
    num_trials = 4 + (TO_S - FROM_S) / MAX_OUT_S
    assert MAX_FAILURES <= len(fell_back) <= MAX_FAILURES + num_trials
    assert {life.outcome for life in found.ended} == {"ok"}
    blind(monkeypatch)
    without = [life for life in run(EnginesFail((BAD,)), policy=policy).ended if life.fallback]
    print(f"fell back: {len(fell_back)}, without health {len(without)}")
    assert len(without) > 3 * len(fell_back)


def test_it_is_used_again_within_ten_seconds_of_healing() -> None:
    """Wherever between two trials that falls."""
    for mends_s in (TO_S, TO_S + 2.5, TO_S + 5.1, TO_S + 7.7):
        found = run(EnginesFail((BAD,)), mends_s=mends_s)
        good = [
            life for life in found.ended if life.prefill == BAD and not life.fallback and life.arrival.at_s > FROM_S
        ]
        first_s = min(life.arrival.at_s for life in good)
        assert first_s < mends_s + 10.0
        used = [life for life in good if first_s < life.arrival.at_s < first_s + 60.0]
        assert len(used) > 20, "and then like the others"


def test_it_does_not_flap() -> None:
    """What fails for ten minutes is tried every eight seconds, and comes back once."""
    found = run(EnginesFail((BAD,)), mends_s=FROM_S + 600.0)
    num = sum(1 for life in found.ended if life.fallback)
    assert num <= MAX_FAILURES + 4 + (UNTIL_S - FROM_S) / MAX_OUT_S


def test_a_decode_engine_that_fails_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request has one second chance, and few need it."""
    bad = EnginesFail(("pd-east-7",))
    found = run(bad)
    assert {life.outcome for life in found.ended} == {"ok"}
    with_it = sum(1 for life in found.ended if life.attempt > 1)
    blind(monkeypatch)
    without = sum(1 for life in run(bad).ended if life.attempt > 1)
    print(f"second attempts: {with_it}, without health {without}")
    assert with_it < without / 3


def test_one_that_is_five_times_as_slow_gets_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest waits are shorter than if it were used like the others."""
    slow = EnginesSlow((BAD,), 5.0)
    with_it = outcome_of(run(slow, load=0.5))
    blind(monkeypatch)
    without = outcome_of(run(slow, load=0.5))
    print(f"p99 {with_it.ttft_s_p99:.1f} s, without health {without.ttft_s_p99:.1f} s")
    assert with_it.ttft_s_p99 < 0.9 * without.ttft_s_p99


def test_all_that_decode_are_never_out() -> None:
    """When every engine fails, requests get the engines' error, and are served again when these mend."""
    bad = EnginesFail(tuple(f"pd-east-{n}" for n in range(8)) + tuple(f"prfaas-west-{n}" for n in range(4)))
    found = run(bad, mends_s=FROM_S + 20.0)
    later = [life for life in found.ended if life.arrival.at_s > FROM_S + 20.0 + MAX_OUT_S + 2.0]
    assert {life.outcome for life in later} == {"ok"}
    assert not any(life.fallback for life in later[len(later) // 4 :])
