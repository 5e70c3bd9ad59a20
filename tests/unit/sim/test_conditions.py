"""Links that break and engines that die, in a small simulated deployment."""

from __future__ import annotations

import itertools
import statistics

import pytest

from prfaas.core.control.lifecycle import TransferTerms
from prfaas.core.control.router import RoutePolicy
from prfaas.core.model.curve import polynomial
from prfaas.core.topology import Cluster, Duty, Instance, Link, Role, Topology, complete_links
from prfaas.sim.arrivals import Arrival
from prfaas.sim.conditions import (
    Condition,
    EnginesDie,
    EnginesReturn,
    EnginesSlow,
    LinkBecomes,
    LinkDrifts,
    LinkVaries,
    _by_chance,
)
from prfaas.sim.deployment import SimulatedDeployment
from prfaas.sim.engine import EngineProfile
from prfaas.sim.runs import Run, open_loop

PAIR = ("west", "pd")


def deployment() -> SimulatedDeployment:
    """One instance that prefills 1,000 tokens a second far away, one that does both; a thousand bytes a token, and a
    link that carries a million a second."""
    clusters = (Cluster("west", Role.PRFAAS), Cluster("pd", Role.PD))
    members = (
        Instance("west-0", "west", Duty.PREFILL, "sim://w", "sim://wn", "w"),
        Instance("pd-0", "pd", Duty.BOTH, "sim://p", "sim://pn", "p"),
    )
    topology = Topology(clusters, members, complete_links(clusters, [Link(*PAIR, 1e6, 0.02)]))
    profile = EngineProfile(polynomial(0.0, 1e-3), 8, 0.01)
    policy = RoutePolicy(offload=True, threshold_tokens=100)
    return SimulatedDeployment(
        topology, {"west-0": profile, "pd-0": profile}, polynomial(0.0, 1e3), policy, TransferTerms(60.0, 30.0)
    )


def ran(*conditions: tuple[float, Condition], at_s: tuple[float, ...] = (0.0,), num_tokens: int = 2_000) -> Run:
    arrivals = [Arrival(at, num_tokens, 100) for at in at_s]
    run = open_loop(deployment(), arrivals, conditions=conditions, checks=True)
    assert not run.simulation.lives
    assert not run.simulation.scheduler.requests
    return run


def test_a_slower_link_takes_longer() -> None:
    """Two seconds of prefill, two million bytes: at a quarter of the rate from the first second on, seven seconds."""
    (whole,) = ran().ended
    (slower,) = ran((1.0, LinkBecomes(*PAIR, 0.25e6))).ended
    assert whole.began_s == pytest.approx(2.0, abs=0.1)
    assert slower.began_s == pytest.approx(1.0 + 1e6 / 0.25e6, abs=0.1)
    assert not slower.fallback


def test_what_a_cut_link_carried_is_computed_locally() -> None:
    """When both ends have given it up, six seconds later; meanwhile nothing new is sent there."""
    run = ran((1.0, LinkBecomes(*PAIR, 0.0)), at_s=(0.0, 5.0))
    first, second = sorted(run.ended, key=lambda life: life.number)
    assert (first.fallback, first.outcome) == ("landing_aborted", "ok")
    assert first.began_s == pytest.approx(7.0 + 2.0, abs=0.5)
    assert (second.route, second.fallback, second.outcome) == ("local", "", "ok")


def test_a_short_cut_costs_its_time() -> None:
    """Lanes live through a second without a word."""
    (only,) = ran((1.0, LinkBecomes(*PAIR, 0.0)), (2.0, LinkBecomes(*PAIR, 1e6))).ended
    assert (only.route, only.fallback) == ("remote", "")
    assert only.began_s == pytest.approx(3.0, abs=0.1)


def test_a_link_that_is_whole_again_is_used_again() -> None:
    """When its lanes are up."""
    run = ran((1.0, LinkBecomes(*PAIR, 0.0)), (20.0, LinkBecomes(*PAIR, 1e6)), at_s=(5.0, 30.0))
    assert [life.route for life in sorted(run.ended, key=lambda life: life.number)] == ["local", "remote"]


def test_what_a_prefill_engine_had_is_computed_locally_at_once() -> None:
    """And when it is back it is used again."""
    run = ran((1.0, EnginesDie(("west-0",))), (10.0, EnginesReturn(("west-0",))), at_s=(0.0, 4.0, 15.0))
    first, second, third = sorted(run.ended, key=lambda life: life.number)
    assert first.fallback == "prefill_unreachable"
    assert first.began_s == pytest.approx(1.0 + 2.0, abs=0.1)
    assert (second.route, third.route) == ("local", "remote")


def test_an_answer_that_breaks_off_has_failed_and_one_that_had_not_begun_is_tried_again() -> None:
    """The only decode engine dies while the first answers and the second is prefilled elsewhere; one whose own prompt it
    computes is refused, since there is no other."""
    dies, returns = EnginesDie(("pd-0",)), EnginesReturn(("pd-0",))
    run = ran((2.5, dies), (3.5, returns), at_s=(0.0, 1.8, 9.0))
    assert [life.outcome for life in sorted(run.ended, key=lambda life: life.number)] == ["error", "ok", "ok"]
    (alone,) = ran((0.05, dies), num_tokens=90).ended
    assert (alone.outcome, alone.began_s) == ("unavailable", None)


def test_what_lands_at_a_dead_engine_is_not_answered_there() -> None:
    """It refuses; nobody else decodes here, so the client hears of it. Without death the same prompt is answered."""
    assert ran().ended[0].outcome == "ok"
    (life,) = ran((1.0, EnginesDie(("pd-0",)))).ended
    assert life.outcome == "unavailable"
    assert life.fallback == "decode_unreachable"


def rates_of(*conditions: tuple[float, Condition], until_s: int = 40) -> list[float]:
    """What the link can carry, every second, while somebody comes each second."""
    run = Run(deployment())
    run.expect(conditions)
    run.simulation.follow(iter(Arrival(float(second), 10, 1) for second in range(until_s + 1)))
    found = []
    for second in range(1, until_s):
        run.simulation.run(float(second))
        found.append(run.simulation.links[PAIR].bytes_per_s)
    return found


def test_a_link_drifts_in_a_straight_line() -> None:
    """And stays where it has arrived."""
    rates = rates_of((10.0, LinkDrifts(*PAIR, 0.2e6, 10.0)))
    assert rates[8] == 1e6
    assert rates[14] == pytest.approx(0.6e6, rel=0.05)
    assert rates[21:] == [pytest.approx(0.2e6)] * len(rates[21:])


def test_a_link_varies_around_its_rate_until_something_else_is_said() -> None:
    """By chance that is the same each time."""
    varies = (0.0, LinkVaries(*PAIR, 0.3))
    rates = rates_of(varies, until_s=4_000)
    assert rates == rates_of(varies, until_s=4_000)
    seen = rates[::5]
    assert statistics.fmean(seen) == pytest.approx(1e6, rel=0.1)
    assert statistics.stdev(seen) == pytest.approx(0.3e6, rel=0.25)
    neighbours = statistics.correlation(seen[:-1], seen[1:])
    assert 0.6 < neighbours < 0.95, "a rate is near the one before"
    assert rates_of(varies, (20.0, LinkBecomes(*PAIR, 2e6)))[25:] == [2e6] * 14


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_a_link_that_varies_keeps_its_mean_and_has_that_deviation(share: float) -> None:
    """Both as they are told."""
    drawn = list(itertools.islice(_by_chance(PAIR, 1e6, share), 200_000))
    assert statistics.fmean(drawn) == pytest.approx(1e6, rel=0.05)
    assert statistics.stdev(drawn) == pytest.approx(share * 1e6, rel=0.1)
    assert statistics.median(drawn) == pytest.approx(1e6 / (1 + share**2) ** 0.5, rel=0.05)


def test_a_slow_engine_that_dies_comes_back_slow() -> None:
    """What made it slow is not mended by that."""
    slow = (0.0, EnginesSlow(("west-0",), 3.0)), (1.0, EnginesDie(("west-0",))), (2.0, EnginesReturn(("west-0",)))
    (usual,) = ran(at_s=(5.0,)).ended
    (slower,) = ran(*slow, at_s=(5.0,)).ended
    assert usual.began_s == pytest.approx(7.0, abs=0.1)
    assert slower.began_s == pytest.approx(11.0, abs=0.1)
