"""Requests that are tried on every way that they had: what the best choice would have been."""

from __future__ import annotations

import statistics

import pytest

from prfaas.sim.hindsight import Hindsight, Judged, way_of
from prfaas.sim.runs import Run, to_end
from prfaas.sim.simulation import Life
from prfaas.testing.scheduling import Choice, deployment, steady


def judged(choice: Choice, *, every: int, load: float = 0.9) -> tuple[list[Life], dict[int, Judged]]:
    """Three minutes of the case study, of which every so-and-so-manieth request is tried."""
    run = Run(deployment(choice))
    run.simulation.keeps_options = True
    run.simulation.follow(steady(load, 180.0).arrivals(2))
    hindsight = Hindsight(lambda number: every > 0 and number > 100 and number % every == 0)
    hindsight.follow(run.simulation)
    try:
        to_end(run)
    finally:
        hindsight.leave()
    return sorted(run.ended, key=lambda life: life.number), hindsight.found


def test_copies_change_nothing_and_foresee_what_comes() -> None:
    """Every request of the run is served as without them; and the copy that went as decided saw the very first token
    that came later."""
    lives, found = judged("prfaas", every=20)
    again, nothing = judged("prfaas", every=0)
    assert len(found) > 15
    assert not nothing
    assert [(life.began_s, life.prefill, life.decode) for life in lives] == [
        (life.began_s, life.prefill, life.decode) for life in again
    ]
    for number, one in found.items():
        life = lives[number - 1]
        assert life.began_s is not None
        assert one.tried[0].ttft_s == pytest.approx(min(60.0, life.began_s - life.arrival.at_s), abs=1e-9)


def test_every_way_is_tried_once_and_the_best_of_them_is_what_is_regretted() -> None:
    """Those that the scheduler listed; a regret is never negative."""
    lives, found = judged("prfaas", every=30)
    for number, one in found.items():
        ways = {way_of(option) for option in lives[number - 1].options}
        assert {tried.way for tried in one.tried} == ways
        assert len(one.tried) == len(ways) >= 2
        assert one.regret_s >= 0.0
        assert (one.regret_s == 0.0) == (one.tried[0].waiting_s == min(tried.waiting_s for tried in one.tried))


def test_chance_is_regretted_more_than_the_rule() -> None:
    """By far, where queues are long: the negative control of what is measured."""
    means = {
        choice: statistics.fmean(one.regret_s for one in judged(choice, every=15)[1].values())
        for choice in ("prfaas", "random")
    }
    print(means)
    assert means["random"] > 2 * means["prfaas"]


def test_where_a_threshold_is_fixed_there_is_nothing_to_try() -> None:
    """The scheduler lists no ways."""
    assert not judged(19_400, every=20)[1]


def test_a_copy_that_breaks_is_not_counted(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """The run goes on, and what broke is told."""

    def breaks(self: object) -> None:
        raise RuntimeError("the copy broke")

    monkeypatch.setattr("prfaas.sim.hindsight._Copy._tell", breaks)
    lives, found = judged("prfaas", every=100)
    assert len(lives) > 300
    assert not found
    assert "the copy broke" in capfd.readouterr().err


def test_who_is_refused_is_not_tried_and_waits_to_the_end() -> None:
    """No way is in time for it; and a way that gets others refused is no better for that."""
    run = Run(deployment("prfaas", max_ttft_s=3.0))
    run.simulation.follow(steady(1.5, 120.0).arrivals(2))
    hindsight = Hindsight(lambda number: number > 100 and number % 10 == 0)
    hindsight.follow(run.simulation)
    try:
        to_end(run)
    finally:
        hindsight.leave()
    outcomes = {life.number: life.outcome for life in run.ended}
    assert sum(1 for outcome in outcomes.values() if outcome == "unavailable") > 50
    assert hindsight.found
    assert all(outcomes[number] == "ok" for number in hindsight.found)
    # About 150 come within the horizon, and half of them are refused early in it.
    assert statistics.fmean(one.tried[0].waiting_s for one in hindsight.found.values()) > 500
