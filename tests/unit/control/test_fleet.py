"""Instances as events have told of them."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from prfaas.core.control import events as e
from prfaas.core.control.fleet import Fleet
from prfaas.core.control.instance import MAX_SILENT_PROBES, Instance
from prfaas.core.control.route import RouteKind
from prfaas.core.control.scheduler import Scheduler
from prfaas.core.topology import Duty
from tests.unit.control.driving import BLOCK, ONE_OF_EACH, POLICY, TERMS, Drive, chain, failure, member, topology_of


def one(duty: str = "both") -> Instance:
    return Instance(member(f"pd-0 {duty}"))


# One instance


def test_an_instance_is_down_until_it_has_been_seen() -> None:
    """Engine and node each for itself."""
    fleet = Fleet(topology_of(*ONE_OF_EACH))
    assert not fleet.healthy
    fleet.instances["pd-0"].engine_seen(healthy=True, num_requests=None)
    assert fleet.healthy
    assert not fleet.instances["pd-0"].candidate().node_ready


def test_only_several_silences_in_a_row_mean_that_an_engine_is_gone() -> None:
    """A busy engine answers late."""
    instance = one()
    instance.engine_seen(healthy=True, num_requests=0)
    for _ in range(MAX_SILENT_PROBES - 1):
        instance.engine_silent(refused=False)
    instance.engine_seen(healthy=True, num_requests=0)
    for _ in range(MAX_SILENT_PROBES - 1):
        instance.engine_silent(refused=False)
    assert instance.engine_healthy
    instance.engine_silent(refused=False)
    assert not instance.engine_healthy


def test_a_refused_connection_means_at_once_that_an_engine_is_gone() -> None:
    """And then nobody knows its load."""
    instance = one()
    instance.engine_seen(healthy=True, num_requests=5)
    instance.engine_silent(refused=True)
    assert (instance.engine_healthy, instance.num_requests) == (False, None)


@pytest.mark.parametrize(
    ("reported", "at_report", "now", "expected"),
    [(None, 2, 3, None), (0, 0, 3, 3), (9, 2, 5, 12), (9, 5, 2, 6), (2, 5, 1, 1)],
)
def test_a_load_is_what_was_reported_and_what_was_sent_since(
    reported: int | None, at_report: int, now: int, expected: int | None
) -> None:
    """Never less than what we have there ourselves; unknown if the engine has not said."""
    instance = one()
    instance.num_inflight = at_report
    instance.engine_seen(healthy=True, num_requests=reported)
    instance.num_inflight = now
    assert instance.num_requests == expected


@pytest.mark.parametrize(
    ("block_tokens", "boot_id", "kinds", "restarted", "held"),
    [
        (BLOCK, "life-1", ("full_attention",), False, 48),
        (BLOCK, "life-2", ("full_attention",), True, 0),
        (BLOCK * 2, "life-1", ("full_attention",), True, 0),
        (BLOCK, "life-1", ("full_attention", "linear_state"), False, 0),
        (BLOCK, "life-1", None, False, 48),
    ],
)
def test_another_life_or_layout_of_an_engine_holds_nothing_of_before(
    block_tokens: int, boot_id: str, kinds: tuple[str, ...] | None, restarted: bool, held: int
) -> None:
    """The same one holds what it held."""
    instance = one()
    instance.engine_registered(BLOCK, "life-1", ("full_attention",))
    instance.cache.ran_locally(chain(50)[BLOCK])
    assert instance.engine_registered(block_tokens, boot_id, kinds) == restarted
    assert instance.match(chain(50)).reusable_prefix_tokens == held


# Topologies


def test_a_converted_instance_keeps_what_is_known_of_it() -> None:
    """It is the same process."""
    drive = Drive("pd-0 both", "pd-1 both")
    drive.feed(e.TopologyChanged(topology_of("pd-0 both", "pd-1 prefill")))
    fleet = drive.scheduler.fleet
    assert fleet.instances["pd-1"].engine_healthy
    assert [i.name for i in fleet.decoders] == ["pd-0"]
    assert [i.name for i in fleet.prefillers] == ["pd-1"]


def test_an_instance_that_has_moved_is_another_one() -> None:
    """It has not been seen, and what is in flight there still counts."""
    drive = Drive()
    drive.arrives(50)
    drive.feed(e.TopologyChanged(topology_of("west-0 prefill", member("pd-0 both", url="http://elsewhere"))))
    moved = drive.scheduler.fleet.instances["pd-0"]
    assert not moved.engine_healthy
    assert moved.num_inflight == 1


def test_an_instance_that_has_left_finishes_what_it_has_and_is_forgotten_then() -> None:
    """It gets nothing new meanwhile."""
    drive = Drive("pd-0 both", "pd-1 both")
    drive.arrives(50)
    drive.feed(e.TopologyChanged(topology_of("pd-1 both")))
    left = drive.scheduler.fleet.instances["pd-0"]
    assert (left.is_draining, left.candidate().engine_healthy) == (True, False)
    drive.arrives(50, request_id="second")
    assert drive.at("pd-1") == (1, 0)
    drive.feed(e.AnswerBegan("r", 1))
    drive.feed(e.AnswerEnded("r", "error"))
    assert "pd-0" not in drive.scheduler.fleet.instances


def test_an_instance_that_comes_back_before_it_is_forgotten_works_on() -> None:
    """Nothing of it had stopped."""
    drive = Drive("pd-0 both", "pd-1 both")
    drive.arrives(50)
    drive.feed(e.TopologyChanged(topology_of("pd-1 both")))
    drive.feed(e.TopologyChanged(topology_of("pd-0 both", "pd-1 both")))
    back = drive.scheduler.fleet.instances["pd-0"]
    assert (back.is_draining, back.candidate().engine_healthy, back.num_inflight) == (False, True, 1)


@pytest.mark.parametrize(
    ("members", "kind", "decode", "expected"),
    [
        (("west-0 prefill", "pd-0 both"), RouteKind.REMOTE, "pd-0", ["west-0"]),
        (("west-0 prefill", "pd-0 both"), RouteKind.PD_PREFILL, "pd-0", []),
        (("west-0 prefill", "pd-0 decode", "pd-p prefill"), RouteKind.REMOTE, "pd-0", ["west-0"]),
        (("west-0 prefill", "pd-0 decode", "pd-p prefill"), RouteKind.PD_PREFILL, "pd-0", ["pd-p"]),
        (("pd-0 decode", "pd-1 both"), RouteKind.PD_PREFILL, "pd-0", []),
    ],
)
def test_prefill_instances_reach_their_own_cluster_and_those_that_a_link_leads_to(
    members: tuple[str, ...], kind: RouteKind, decode: str, expected: list[str]
) -> None:
    """Each kind of route has its own."""
    assert [c.name for c in Fleet(topology_of(*members)).reach(kind, decode)] == expected


def test_prompts_are_prefilled_in_the_pd_cluster_if_an_instance_only_decodes() -> None:
    """One that does both needs nobody."""
    assert Fleet(topology_of("pd-0 decode", "pd-1 both")).prefills_in_pd
    assert not Fleet(topology_of("pd-0 both", "pd-1 prefill")).prefills_in_pd


def test_prompts_are_cut_into_blocks_of_every_size_that_decode_engines_have() -> None:
    """Prefill engines' sizes do not matter."""
    fleet = Fleet(topology_of("west-0 prefill", "pd-0 both", "pd-1 both", "pd-2 both"))
    for name, size in (("west-0", 128), ("pd-0", 32), ("pd-1", 16), ("pd-2", 32)):
        fleet.instances[name].engine_registered(size, "life-1")
    assert fleet.block_sizes == (16, 32)


# All of it in any order


class Changes(RuleBasedStateMachine):
    """Topologies change while requests come and go. The model is a set of members and the requests on each."""

    NAMES = ("pd-0", "pd-1", "pd-2")

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(topology_of("pd-0 both"), POLICY, TERMS)
        self.members = {"pd-0"}
        self.seen: set[str] = set()
        self.on: dict[str, str] = {}
        self.number = 0

    def feed(self, event: e.Event) -> list[object]:
        return list(self.scheduler.handle(event, 0.0))

    def change(self, names: set[str], **urls: str) -> None:
        ordered = [member(f"{name} both", urls.get(name.replace("-", "_"), "")) for name in self.NAMES if name in names]
        self.feed(e.TopologyChanged(topology_of(*ordered)))
        busy = set(self.on.values())
        self.seen -= {name for name in self.members | self.seen if name not in names and name not in busy}
        self.members = names

    @rule(names=st.sets(st.sampled_from(NAMES), min_size=1))
    def members_change(self, names: set[str]) -> None:
        self.change(names)

    @rule(data=st.data())
    def one_is_seen(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.members)))
        self.feed(e.EngineSeen(name, True, 0))
        self.seen.add(name)

    @rule()
    def a_request_comes(self) -> None:
        self.number += 1
        request_id = f"r{self.number}"
        (action,) = self.feed(e.RequestArrived(request_id, "t", 10, obstacle="echo"))
        chosen = getattr(action, "instance", "")
        assert bool(chosen) == bool(self.members & self.seen), "served iff a member is known to work"
        assert chosen in {"", *(self.members & self.seen)}
        if chosen:
            self.on[request_id] = chosen
        else:
            self.feed(e.AnswerEnded(request_id, "unavailable"))

    @precondition(lambda self: self.on)
    @rule(data=st.data(), leaves=st.booleans())
    def a_request_goes(self, data: st.DataObject, leaves: bool) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.on)))
        if not leaves:
            self.feed(e.AnswerBegan(request_id, 1))
        self.feed(e.RequestAbandoned(request_id, "cancelled") if leaves else e.AnswerEnded(request_id, "error"))
        name = self.on.pop(request_id)
        if name not in self.members and name not in self.on.values():
            self.seen.discard(name)

    @invariant()
    def counts_are_those_of_the_model(self) -> None:
        fleet = self.scheduler.fleet.instances
        on = list(self.on.values())
        assert {name: i.num_inflight for name, i in fleet.items()} == {name: on.count(name) for name in fleet}
        assert set(fleet) == self.members | set(on)
        assert {name for name, i in fleet.items() if i.is_draining} == set(on) - self.members
        self.scheduler.check()


TestChanges = Changes.TestCase


def test_a_failed_prefill_of_one_who_refuses_marks_it_down() -> None:
    """So that the next request need not find that out again."""
    drive = Drive()
    drive.arrives()
    drive.feed(e.LandingReserved("r", 1000))
    drive.feed(e.PrefillEnded("r", failure("prefill_unreachable", refused=True)))
    assert not drive.scheduler.fleet.instances["west-0"].engine_healthy
    assert drive.scheduler.fleet.instances["west-0"].duty is Duty.PREFILL


def test_a_prefill_that_was_refused_says_nothing_of_who_has_the_name_now() -> None:
    """The file led the name to another engine meanwhile, and that one works."""
    drive = Drive()
    drive.arrives()
    drive.feed(e.LandingReserved("r", 1000))
    drive.feed(e.TopologyChanged(topology_of(member("west-0 prefill", url="http://elsewhere"), "pd-0 both")))
    drive.see("west-0")
    drive.feed(e.PrefillEnded("r", failure("prefill_unreachable", refused=True)))
    assert drive.scheduler.fleet.instances["west-0"].engine_healthy
    assert drive.at("west-0") == (0, 0)


def test_requests_that_come_at_once_do_not_choose_the_same_prefill_instance() -> None:
    """Although no node has answered yet."""
    drive = Drive("west-0 prefill", "west-1 prefill", "pd-0 both", "pd-1 both")
    for number in range(4):
        drive.arrives(request_id=f"r{number}")
    assert [drive.scheduler.requests[f"r{number}"].prefill for number in range(4)] == ["west-0", "west-1"] * 2


def test_a_reservation_that_fails_leaves_nothing_at_the_prefill_instance() -> None:
    """Nor one whose client leaves."""
    drive = Drive()
    drive.arrives()
    assert drive.at("west-0") == (1, 0)
    drive.feed(e.ReserveFailed("r", failure("arena_full")))
    assert drive.at("west-0") == (0, 0)
    drive.arrives(request_id="second")
    drive.feed(e.RequestAbandoned("second", "cancelled"))
    assert drive.at("west-0") == (0, 0)
