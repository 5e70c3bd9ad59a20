"""Which faults are done when: as people write them, and by a seed."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas.chaos.draw import MAX_FAULTS, MIN_LASTS_S, drawn_faults
from prfaas.chaos.faults import AWAY_S, BadFault, Fault, Kind, Menu, read_faults

MENU = Menu(
    engines={"engines-west": ("west-0", "west-1"), "engine-p": ("p",), "engine-d": ("d",)},
    nodes=("kvnode-west-0", "kvnode-west-1", "kvnode-p", "kvnode-d"),
    has_gateway=True,
    clusters={"west": ("west-0", "west-1"), "east": ("p", "d")},
    decoders=("d",),
    links=(("west", "east"),),
)


@given(seed=st.integers(0, 10**9), from_s=st.floats(0, 100), span_s=st.floats(1, 100))
def test_a_seed_is_one_plan_within_its_bounds(seed: int, from_s: float, span_s: float) -> None:
    """The same each time; one to three faults of the menu, within the time for them, none of which undoes another."""
    faults = drawn_faults(MENU, seed, from_s, span_s)
    assert faults == drawn_faults(MENU, seed, from_s, span_s)
    assert 1 <= len(faults) <= MAX_FAULTS
    assert [fault.at_s for fault in faults] == sorted(fault.at_s for fault in faults)
    for fault in faults:
        assert from_s - 0.01 <= fault.at_s
        assert fault.ends_s <= from_s + span_s + 1e-6
        assert fault.kind is Kind.KILL or fault.lasts_s >= MIN_LASTS_S - 0.01
        assert fault.target == "west east" if fault.kind.is_of_link else fault.target in MENU.processes
    assert not any(one.clashes(other) for one, other in itertools.combinations(faults, 2))


def test_seeds_differ_and_every_kind_comes() -> None:
    """Among a hundred of them, to every process; without links none of a link."""
    plans = [drawn_faults(MENU, seed, 2.5, 5.0) for seed in range(100)]
    assert len(set(plans)) > 90
    faults = [fault for plan in plans for fault in plan]
    assert {fault.kind for fault in faults} == set(Kind)
    assert {fault.target for fault in faults} == {*MENU.processes, "west east"}
    bare = Menu(MENU.engines, MENU.nodes, False, MENU.clusters, MENU.decoders, ())
    harmed = {fault.target for seed in range(100) for fault in drawn_faults(bare, seed, 2.5, 5.0)}
    assert harmed == set(bare.processes)


@given(seed=st.integers(0, 10**6))
def test_what_is_told_of_a_plan_can_be_given_again(seed: int) -> None:
    """Times are whole hundredths, so nothing is lost."""
    faults = drawn_faults(MENU, seed, 2.5, 5.0)
    assert set(read_faults([fault.text for fault in faults], MENU, 0.0)) == set(faults)


def test_every_line_of_the_menu_can_be_given() -> None:
    """At the time that is told once for all."""
    for line in MENU.lines():
        assert [fault.at_s for fault in read_faults([line], MENU, 7.0)] == [7.0]


def test_a_cluster_means_its_engines() -> None:
    """One process of several instances, or several processes; an instance means its process."""
    assert read_faults(["kill west"], MENU, 1.0) == (Fault(Kind.KILL, "engines-west", 1.0),)
    assert [fault.target for fault in read_faults(["2s stop east 500ms"], MENU, 1.0)] == ["engine-p", "engine-d"]
    assert read_faults(["stop west-1 1s"], MENU, 1.0)[0].target == "engines-west"
    assert read_faults(["cut west east 2s"], MENU, 1.0) == (Fault(Kind.CUT, "west east", 1.0, 2.0, "silent"),)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no fault"),
        ("explode gateway", "is no fault"),
        ("kill moon", "there is no process 'moon'"),
        ("kill gateway 3s", r"write \[TIME\] kill PROCESS"),
        ("stop gateway", "PROCESS 3s"),
        ("soon kill gateway", "soon"),
        ("-1s kill gateway", "-1s"),
        ("cut east west 3s", "there are: west east"),
        ("cut west east softly 3s", "silent or reset"),
        ("slow west east 3s", "10Mbps 3s"),
        ("slow west east much 3s", "much"),
        ("flip west east 0 3s", "flipped bits"),
        ("stop gateway 2h", "2h"),
    ],
)
def test_mistakes_are_told(text: str, told: str) -> None:
    """With what was wrong, or how it is written."""
    with pytest.raises(BadFault, match=told):
        read_faults([text], MENU, 0.0)


def test_faults_that_would_undo_each_other_are_refused() -> None:
    """The same process, or the same setting of a link; other settings of it may change together."""
    with pytest.raises(BadFault, match="would do the same to gateway"):
        read_faults(["1s kill gateway", f"{AWAY_S:g}s stop gateway 1s"], MENU, 0.0)
    with pytest.raises(BadFault, match="would do the same to west east"):
        read_faults(["1s cut west east 3s", "2s cut west east reset 1s"], MENU, 0.0)
    assert len(read_faults(["1s cut west east 3s", "2s slow west east 1Mbps 1s"], MENU, 0.0)) == 2
    assert len(read_faults(["1s stop gateway 1s", "2.5s stop gateway 1s"], MENU, 0.0)) == 2
