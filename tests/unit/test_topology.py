"""What a topology says of who sends to whom, and of what changed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from prfaas.core.topology import (
    Cluster,
    Duty,
    Instance,
    Link,
    Role,
    Topology,
    complete_links,
    topology_change,
)

WEST, EAST, SOUTH = Cluster("west", Role.PRFAAS), Cluster("east", Role.PD), Cluster("south", Role.PD)


def instance(name: str, cluster: str, duty: Duty) -> Instance:
    return Instance(name, cluster, duty, f"http://{name}:1", f"http://{name}:2", f"{name}:3")


REMOTE = instance("west-0", "west", Duty.PREFILL)
LOCAL = instance("east-p", "east", Duty.PREFILL)
FIRST, SECOND = instance("east-0", "east", Duty.DECODE), instance("east-1", "east", Duty.BOTH)
ELSEWHERE = instance("south-0", "south", Duty.BOTH)
MEMBERS = (REMOTE, LOCAL, FIRST, SECOND, ELSEWHERE)
CLUSTERS = (WEST, EAST, SOUTH)


def topology(*links: Link, members: tuple[Instance, ...] = MEMBERS) -> Topology:
    return Topology(CLUSTERS, members, complete_links(CLUSTERS, links))


def test_without_links_every_prfaas_cluster_reaches_every_pd_cluster() -> None:
    """In both directions, and with nothing known of the network."""
    found = topology()
    assert {(link.source, link.target) for link in found.links} == {
        ("west", "east"), ("west", "south"), ("east", "west"), ("south", "west"),
    }  # fmt: skip
    assert found.link_between("west", "south") == Link("west", "south", None, None)
    assert found.sends_to(REMOTE) == (FIRST, SECOND, ELSEWHERE)


def test_with_links_only_those_it_names() -> None:
    """The way back has the same round trip; its bandwidth is not known."""
    found = topology(Link("west", "east", 1e9, 0.02))
    assert found.link_between("east", "west") == Link("east", "west", None, 0.02)
    assert found.link_between("west", "south") is None
    assert found.sends_to(REMOTE) == (FIRST, SECOND)
    assert found.prefillers_for("south") == ()


def test_a_way_back_that_is_given_is_kept() -> None:
    """It may be narrower."""
    found = topology(Link("west", "east", 1e9, 0.02), Link("east", "west", 1e6, 0.03))
    assert found.link_between("east", "west") == Link("east", "west", 1e6, 0.03)
    assert len(found.links) == 2


def test_a_clusters_own_prefill_instance_sends_inside_it_only() -> None:
    """Over the cluster's own network, which is no link."""
    found = topology(Link("west", "east"))
    assert found.sends_to(LOCAL) == (FIRST, SECOND)
    assert found.link_between("east", "east") is None
    assert found.links_used_by(LOCAL) == found.links_used_by(REMOTE)[:0]
    assert found.prefillers_for("east") == (REMOTE, LOCAL)


def test_what_decodes_sends_nothing() -> None:
    """And receives from all that send to it."""
    found = topology()
    assert found.decoders == (FIRST, SECOND, ELSEWHERE)
    for receiver in found.decoders:
        assert found.sends_to(receiver) == ()
        assert found.receives_from(receiver) == tuple(s for s in found.senders if receiver in found.sends_to(s))
    assert found.receives_from(REMOTE) == ()


def test_in_a_convertible_cluster_all_are_joined() -> None:
    """Whatever their duties are now; so an instance that gets another one need not wait for lanes."""
    clusters = (WEST, replace(EAST, is_convertible=True), SOUTH)
    east = (LOCAL, replace(FIRST, duty=Duty.DECODE), replace(SECOND, duty=Duty.DECODE))
    found = Topology(clusters, (REMOTE, *east, ELSEWHERE), complete_links(clusters, ()))
    for sender in east:
        assert found.sends_to(sender) == tuple(other for other in east if other != sender)
        converted = found.with_duty(sender.name, Duty.DECODE if sender is LOCAL else Duty.PREFILL)
        for other in (REMOTE, *east, ELSEWHERE):
            assert len(converted.sends_to(converted.instance(other.name))) == len(found.sends_to(other))
    assert found.sends_to(REMOTE) == (*east, ELSEWHERE)
    for receiver in found.instances:
        assert found.receives_from(receiver) == tuple(s for s in found.senders if receiver in found.sends_to(s))
    assert found.prefillers_for("east") == (REMOTE, LOCAL), "only what prefills now"


def test_the_last_that_decodes_stays() -> None:
    """No duty is given that would leave a cluster without."""
    with pytest.raises(AssertionError, match="nothing decodes"):
        topology(members=(REMOTE, LOCAL, FIRST)).with_duty("east-0", Duty.PREFILL)


@pytest.mark.parametrize(
    ("clusters", "members", "links", "why"),
    [
        ((replace(WEST, is_convertible=True),), (), (), "west can only prefill"),
        ((WEST, WEST), (), (), "two clusters have one name"),
        (CLUSTERS, (FIRST, replace(SECOND, name="east-0")), (), "two instances have one name"),
        (CLUSTERS, (replace(FIRST, cluster="north"),), (), "no cluster north"),
        (CLUSTERS, (replace(REMOTE, duty=Duty.BOTH),), (), "both in a PrfaaS cluster"),
        (CLUSTERS, (LOCAL,), (), "east: nothing decodes"),
        (CLUSTERS, (), (Link("west", "east"), Link("west", "east", 1.0)), "one direction has two links"),
        (CLUSTERS, (), (Link("east", "south"),), "a link from east to south"),
    ],
)
def test_what_breaks_a_law_is_no_topology(
    clusters: tuple[Cluster, ...], members: tuple[Instance, ...], links: tuple[Link, ...], why: str
) -> None:
    """Each law by itself."""
    with pytest.raises(AssertionError, match=why):
        Topology(clusters, members, links)


def test_another_url_under_a_name_is_another_instance() -> None:
    """It is removed and added; another duty alone is a conversion."""
    before = topology()
    moved, converted = replace(FIRST, engine_url="http://new:1"), replace(SECOND, duty=Duty.DECODE)
    new = instance("east-9", "east", Duty.DECODE)
    after = topology(members=(REMOTE, LOCAL, moved, converted, new))
    change = topology_change(before, after)
    assert change.removed == (FIRST, ELSEWHERE)
    assert change.added == (moved, new)
    assert change.converted == (converted,)
    assert not topology_change(before, before)
