"""The one door: what it lets in, what it refuses, when it wants to be woken, and what it checks."""

from __future__ import annotations

import pytest

from prfaas.core.control import events as e
from prfaas.core.control.request import TRANSITIONS, RequestState
from prfaas.core.control.timers import TimerKind, Timers
from tests.unit.control.driving import PD_PREFILL, Drive, failure, told

S = RequestState

#: One event of every kind, for request `r`.
EVENTS: dict[type, e.RequestEvent] = {
    type(event): event
    for event in (
        e.PromptCounted("r", 500), e.PromptUncountable("r", "echo"), e.LandingReserved("r", 1000),
        e.ReserveFailed("r", failure()), e.PrefillEnded("r"), e.LandingEnded("r", 1000), e.LeaseRenewed("r", True),
        e.AnswerBegan("r", 1), e.DecodeFailed("r", 1, failure()), e.AnswerEnded("r", "ok"),
        e.RequestAbandoned("r", "cancelled"), e.LandingSettled("r", None), e.LandingDropped("r"),
        e.DeadlinePassed("r", 1.0),
    )
}  # fmt: skip
REACHED = (S.RESERVING, S.PREFILLING, S.LOADING, S.ANSWERING)


@pytest.mark.parametrize(
    ("state", "event"), [(s, event) for s in REACHED for kind, event in EVENTS.items() if kind not in TRANSITIONS[s]]
)
def test_an_event_that_a_state_does_not_list_is_a_defect_of_the_driver(
    state: RequestState, event: e.RequestEvent
) -> None:
    """The message names the request, the event and the state."""
    drive = Drive()
    drive.to(state)
    with pytest.raises(AssertionError, match=f"r: {type(event).__name__} cannot happen while {state}"):
        drive.feed(event)


@pytest.mark.parametrize("event", EVENTS.values(), ids=lambda event: type(event).__name__)
def test_what_is_told_of_a_request_that_is_closed_changes_nothing(event: e.RequestEvent) -> None:
    """It is the echo of work that was stopped."""
    drive = Drive()
    assert drive.feed(event) == []
    assert drive.is_closed


def test_a_request_arrives_once() -> None:
    """Two requests of one name could not be told apart."""
    drive = Drive()
    drive.arrives()
    with pytest.raises(AssertionError, match="request r has arrived already"):
        drive.feed(e.RequestArrived("r", "t", 10))


def test_a_closed_requests_name_may_come_again() -> None:
    """Its stale timers mean nothing to the new one."""
    drive = Drive()
    drive.to(S.RESERVING)
    drive.feed(e.RequestAbandoned("r", "cancelled"))
    drive.feed(e.ReserveFailed("r", failure("arena_full")))
    drive.feed(e.LandingDropped("r"))
    assert drive.is_closed
    drive.now_s += 5.0
    drive.to(S.RESERVING)
    assert drive.feed(e.Tick(), 6.0) == []
    assert told(drive.feed(e.Tick(), 5.0)) == ["Decode pd-0"]


def test_the_next_tick_is_due_when_the_first_timer_is() -> None:
    """None while no transfer is under way."""
    drive = Drive()
    assert drive.scheduler.next_due_s is None
    drive.to(S.RESERVING)
    assert drive.scheduler.next_due_s == drive.now_s + 10.0
    drive.feed(e.LandingReserved("r", 1000))
    assert drive.scheduler.next_due_s == drive.now_s + 3.0


def test_a_late_tick_does_everything_that_was_due() -> None:
    """For every request, in the order of the times."""
    drive = Drive()
    drive.arrives(request_id="first")
    drive.now_s += 1.0
    drive.arrives(request_id="second")
    actions = drive.feed(e.Tick(), 60.0)
    assert [action.request_id for action in actions] == ["first", "second"]


def test_timers_come_in_the_order_of_their_times_and_then_of_their_setting() -> None:
    """And not before they are due."""
    timers = Timers()
    for due_s, name in ((2.0, "b"), (1.0, "a"), (2.0, "c")):
        timers.set(due_s, name, TimerKind.RENEW)
    assert timers.take_due(0.5) is None
    assert [timer.request_id for _ in range(3) if (timer := timers.take_due(2.0)) is not None] == ["a", "b", "c"]
    assert timers.next_due_s is None


def test_what_is_said_of_an_instance_that_nobody_knows_is_ignored() -> None:
    """A probe may end after its instance has left."""
    drive = Drive()
    for event in (
        e.EngineSeen("gone", True),
        e.EngineSilent("gone", True),
        e.NodeSeen("gone", True),
        e.NodeSilent("gone"),
    ):
        assert drive.feed(event) == []


def test_links_are_known_until_their_sender_says_no_more_of_them() -> None:
    """Those of other senders stay."""
    drive = Drive()
    drive.feed(e.LinkSeen("west-0", "pd-0", "clear"))
    drive.feed(e.LinkSeen("west-0", "pd-0", "congested"))
    drive.feed(e.LinkSeen("west-1", "pd-0", "clear"))
    assert drive.scheduler.links["west-0", "pd-0"].verdict == "congested"
    drive.feed(e.LinksLost("west-0"))
    assert list(drive.scheduler.links) == [("west-1", "pd-0")]


@pytest.mark.parametrize("name", ["pd-0", "west-0"])
def test_a_count_that_is_wrong_is_found(name: str) -> None:
    """`check` compares each instance with the requests that say that they are there."""
    drive = Drive()
    drive.to(S.PREFILLING)
    drive.scheduler.fleet.instances[name].num_inflight += 1
    with pytest.raises(AssertionError, match=name):
        drive.scheduler.check()


@pytest.mark.parametrize(
    ("field", "value"), [("landing", "dropping"), ("deadline_s", None), ("state", S.COMPUTING), ("state", S.ENDED)]
)
def test_a_record_that_contradicts_itself_is_found(field: str, value: object) -> None:
    """State, landing and deadline belong together."""
    drive = Drive()
    drive.to(S.PREFILLING)
    setattr(drive.request, field, value)
    with pytest.raises(AssertionError):
        drive.scheduler.check()


def test_a_prompt_is_prefilled_beside_a_decode_instance_that_does_not_prefill() -> None:
    """The landing is in the same cluster; everything else is as for a remote one."""
    drive = Drive(*PD_PREFILL)
    assert told(drive.arrives(50)) == ["Reserve"]
    assert told(drive.feed(e.LandingReserved("r", 1000))) == ["Prefill pd-p", "AwaitLanding pd-0"]
    assert (drive.at("pd-0"), drive.at("pd-p")) == ((1, 1), (1, 0))


def test_nothing_is_due_for_a_transfer_that_is_over() -> None:
    """Neither its deadline nor a renewal: they would be ticks for nothing."""
    drive = Drive()
    drive.to(S.LOADING)
    assert drive.scheduler.next_due_s is not None, "the landing is still to be renewed"
    drive.feed(e.AnswerBegan("r", 1))
    assert drive.scheduler.next_due_s is None
