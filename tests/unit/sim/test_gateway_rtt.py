"""A simulated gateway that is not beside its clusters: what its clients see comes later, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from prfaas.core.control.lifecycle import TransferTerms
from prfaas.core.control.router import RoutePolicy
from prfaas.core.model.curve import polynomial
from prfaas.core.topology import Cluster, Duty, Instance, Link, Role, Topology, complete_links
from prfaas.sim.arrivals import Arrival
from prfaas.sim.conditions import Condition, EnginesDie, EnginesFail
from prfaas.sim.deployment import SimulatedDeployment
from prfaas.sim.engine import EngineProfile
from prfaas.sim.runs import open_loop
from prfaas.sim.simulation import Life


def deployment(west_s: float = 0.0, pd_s: float = 0.0, *, threshold_tokens: int = 10**6) -> SimulatedDeployment:
    """A thousand tokens a second everywhere, a thousand bytes a token, and a link that carries a million a second."""
    clusters = (Cluster("west", Role.PRFAAS, rtt_s=west_s), Cluster("pd", Role.PD, rtt_s=pd_s))
    members = (
        Instance("west-0", "west", Duty.PREFILL, "sim://w", "sim://wn", "w"),
        Instance("pd-0", "pd", Duty.BOTH, "sim://p", "sim://pn", "p"),
        Instance("pd-1", "pd", Duty.BOTH, "sim://q", "sim://qn", "q"),
    )
    topology = Topology(clusters, members, complete_links(clusters, [Link("west", "pd", 1e6, 0.02)]))
    profile = EngineProfile(polynomial(0.0, 1e-3), 8, 0.01)
    return SimulatedDeployment(
        topology, {member.name: profile for member in members}, polynomial(0.0, 1e3),
        RoutePolicy(True, threshold_tokens), TransferTerms(60.0, 30.0),
    )  # fmt: skip


def ran(made: SimulatedDeployment, *conditions: tuple[float, Condition]) -> list[Life]:
    arrivals = [Arrival(at_s, 2_000, 50) for at_s in (0.0, 3.0, 3.5, 9.0)]
    run = open_loop(made, arrivals, conditions=conditions, checks=True)
    assert not run.simulation.scheduler.requests
    return sorted(run.ended, key=lambda life: life.number)


def later_s(far: list[Life], here: list[Life]) -> list[tuple[float, float]]:
    """First and last token, by request."""
    assert [life.outcome for life in far] == [life.outcome for life in here]
    return [((f.began_s or 0) - (h.began_s or 0), (f.ended_s or 0) - (h.ended_s or 0))
            for f, h in zip(far, here, strict=True)]  # fmt: skip


def test_tokens_come_one_round_trip_later() -> None:
    """The first one and the last one, of every request that its decode instance computes."""
    for first_s, last_s in later_s(ran(deployment(pd_s=0.4)), ran(deployment())):
        assert first_s == pytest.approx(0.4)
        assert last_s == pytest.approx(0.4)


def test_a_prefill_call_takes_half_a_round_trip_of_its_cluster() -> None:
    """Its answer is not waited for: what is landed is decoded."""
    far, here = ran(deployment(0.3, threshold_tokens=100)), ran(deployment(threshold_tokens=100))
    assert {life.route for life in far} == {"remote"}
    assert later_s(far, here)[0] == pytest.approx((0.15, 0.15))
    both = ran(deployment(0.3, 0.4, threshold_tokens=100))
    assert later_s(both, here)[0] == pytest.approx((0.55, 0.55))


def test_a_failure_is_heard_of_a_round_trip_later() -> None:
    """Then the other instance answers, another round trip away."""
    failing = (0.0, EnginesFail(("pd-0",)))
    far, here = (ran(deployment(pd_s=rtt_s), failing)[1] for rtt_s in (0.4, 0.0))
    assert (far.decode, here.decode) == ("pd-1", "pd-1")
    assert (far.began_s or 0) - (here.began_s or 0) == pytest.approx(0.8)


def test_who_is_on_its_way_to_an_engine_that_dies_goes_elsewhere() -> None:
    """And nothing of it comes back from the dead."""
    (first, *_) = ran(deployment(pd_s=0.4), (0.1, EnginesDie(("pd-0",))))
    assert (first.decode, first.outcome) == ("pd-1", "ok")
    assert first.began_s == pytest.approx(0.1 + 0.4 + 2.0, abs=0.05)


def test_where_nothing_is_said_the_gateway_is_beside_all() -> None:
    """The default changes no time at all."""
    made = deployment()
    unsaid = tuple(Cluster(cluster.name, cluster.role) for cluster in made.topology.clusters)
    again = ran(replace(made, topology=replace(made.topology, clusters=unsaid)))
    assert [(life.began_s, life.ended_s) for life in again] == [(life.began_s, life.ended_s) for life in ran(made)]
