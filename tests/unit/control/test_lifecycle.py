"""What each event does to one request."""

from __future__ import annotations

import pytest

from prfaas.core.control import actions as a
from prfaas.core.control import events as e
from prfaas.core.control.lifecycle import was_loaded
from prfaas.core.control.request import LandingPhase, RequestState
from prfaas.core.control.router import RoutePolicy
from tests.unit.control.driving import BLOCK, PD_PREFILL, TWO_DECODERS, Drive, chain, failure, member, told, topology_of

S, P = RequestState, LandingPhase


# Arrival and counting


@pytest.mark.parametrize(
    ("num_tokens", "facts", "expected"),
    [
        (500, {}, ["CountPrompt"]),
        (500, {"obstacle": "echo"}, ["Decode pd-0"]),
        (100, {}, ["Decode pd-0"]),
        (100, {"fits": False}, ["CountPrompt"]),
        (101, {}, ["CountPrompt"]),
    ],
)
def test_a_prompt_is_counted_before_its_route_only_if_that_can_change_the_route(
    num_tokens: int, facts: dict[str, object], expected: list[str]
) -> None:
    """What surely stays below the threshold and in the context goes on at once."""
    actions = Drive().feed(e.RequestArrived("r", "t", num_tokens, **facts))  # type: ignore[arg-type]
    assert told(actions) == expected


def test_a_short_prompt_is_counted_first_where_decode_instances_do_not_prefill() -> None:
    """There it may be prefilled in the PD cluster."""
    assert told(Drive(*PD_PREFILL).feed(e.RequestArrived("r", "t", 50))) == ["CountPrompt"]


def test_a_prompt_that_cannot_be_counted_is_computed_where_it_is_decoded() -> None:
    """The route says why."""
    drive = Drive()
    drive.feed(e.RequestArrived("r", "t", 500))
    (decode,) = drive.feed(e.PromptUncountable("r", "chat_template"))
    assert isinstance(decode, a.Decode)
    assert (decode.route.kind, decode.is_landed) == ("local", False)


def test_what_was_not_counted_before_its_answer_is_counted_after_it() -> None:
    """So that the record of the cache knows of it; only then is the request closed."""
    drive = Drive()
    drive.arrives(64)
    drive.feed(e.AnswerBegan("r", 1))
    (count,) = drive.feed(e.AnswerEnded("r", "ok"))
    assert isinstance(count, a.CountPrompt)
    assert count.is_late
    assert told(drive.feed(e.PromptCounted("r", 64, chain(64)))) == ["NoteUncached", "Close"]
    assert drive.scheduler.fleet.instances["pd-0"].match(chain(64)).reusable_prefix_tokens == 48


def test_an_answer_that_failed_is_not_counted_late() -> None:
    """Nobody knows what the engine holds of it."""
    drive = Drive()
    drive.arrives(64)
    drive.feed(e.AnswerBegan("r", 1))
    assert told(drive.feed(e.AnswerEnded("r", "error"))) == ["Close"]


# A transfer that goes well


def test_a_long_prompt_is_reserved_prefilled_awaited_loaded_and_settled() -> None:
    """One action after the other, and decode only when it has landed."""
    drive = Drive()
    assert told(drive.arrives()) == ["Reserve"]
    assert told(drive.feed(e.LandingReserved("r", 1000, BLOCK, "life-1"))) == ["Prefill west-0", "AwaitLanding pd-0"]
    assert drive.feed(e.PrefillEnded("r")) == []
    (decode,) = drive.feed(e.LandingEnded("r", 1000))
    assert isinstance(decode, a.Decode)
    assert (decode.instance, decode.is_landed, decode.num_landed_bytes) == ("pd-0", True, 1000)
    assert told(drive.feed(e.AnswerBegan("r", 1))) == ["SettleLanding pd-0"]
    assert drive.feed(e.LandingSettled("r", e.FinalRecord("consumed", tokens_loaded=499))) == []
    assert told(drive.feed(e.AnswerEnded("r", "ok"))) == ["Close"]


def test_bytes_may_land_before_the_prefill_engine_has_answered() -> None:
    """The prefill counts as in flight until it has, and the request is kept for it."""
    drive = Drive()
    drive.to(S.PREFILLING)
    drive.feed(e.LandingEnded("r", 1000))
    drive.feed(e.AnswerBegan("r", 1))
    drive.feed(e.LandingSettled("r", e.FinalRecord("consumed", tokens_loaded=499)))
    assert drive.feed(e.AnswerEnded("r", "ok")) == []
    assert drive.at("west-0") == (1, 0)
    assert told(drive.feed(e.PrefillEnded("r"))) == ["Close"]
    assert drive.at("west-0") == (0, 0)


def test_a_landing_is_renewed_three_times_within_its_lease_until_its_answer_begins() -> None:
    """One renewal after the other, each after the answer to the last."""
    drive = Drive()
    drive.to(S.PREFILLING)
    assert drive.feed(e.Tick(), 2.9) == []
    (renew,) = drive.feed(e.Tick(), 0.2)
    assert renew == a.RenewLease("r", "pd-0", 9.0)
    assert drive.feed(e.Tick(), 3.0) == []
    drive.feed(e.LeaseRenewed("r", True))
    assert told(drive.feed(e.Tick(), 3.0)) == ["RenewLease pd-0"]
    drive.feed(e.LandingEnded("r", 1000))
    drive.feed(e.LeaseRenewed("r", True))
    drive.feed(e.AnswerBegan("r", 1))
    assert drive.feed(e.Tick(), 60.0) == []


def test_a_landing_that_is_not_held_any_more_is_not_renewed() -> None:
    """Its engine is loading it: a claim has no lease."""
    drive = Drive()
    drive.to(S.LOADING)
    drive.feed(e.Tick(), 3.0)
    drive.feed(e.LeaseRenewed("r", False))
    assert drive.feed(e.Tick(), 60.0) == []


# A transfer that fails

#: What fails, in which state, and what follows besides a fresh local request.
FALLBACKS = [
    (S.RESERVING, e.ReserveFailed("r", failure("node_unreachable")), ["DropLanding pd-0", "Decode pd-0"]),
    (S.RESERVING, e.LandingReserved("r", 0), ["DropLanding pd-0", "Decode pd-0"]),
    (S.PREFILLING, e.PrefillEnded("r", failure()), ["StopPrefill", "DropLanding pd-0", "Decode pd-0"]),
    (S.PREFILLING, e.LandingEnded("r", 0), ["StopPrefill", "DropLanding pd-0", "Decode pd-0"]),
    (S.PREFILLING, e.LandingEnded("r", failure=failure("landing_aborted")),
     ["StopPrefill", "DropLanding pd-0", "Decode pd-0"]),
    (S.LOADING, e.DecodeFailed("r", 1, failure("decode_error")), ["DropLanding pd-0", "Decode pd-0"]),
]  # fmt: skip


@pytest.mark.parametrize(("state", "event", "expected"), FALLBACKS)
def test_what_fails_before_the_first_byte_runs_locally_as_a_fresh_request(
    state: RequestState, event: e.RequestEvent, expected: list[str]
) -> None:
    """The prefill is stopped if it runs, the landing is dropped, and the reason goes with the new leg."""
    drive = Drive()
    drive.to(state)
    actions = drive.feed(event)
    assert told(actions) == expected
    decode = actions[-1]
    assert isinstance(decode, a.Decode)
    assert decode.fallback is not None
    assert not decode.is_landed
    assert decode.route.reason == f"fallback:{decode.fallback.reason}"
    assert drive.request.state is S.COMPUTING


def test_a_fallback_is_computed_where_it_was_to_be_decoded_if_nobody_is_less_busy() -> None:
    """The request itself does not count as load there: that engine may know the prompt's beginning."""
    drive = Drive(*TWO_DECODERS)
    drive.to(S.PREFILLING)
    assert told(drive.feed(e.PrefillEnded("r", failure())))[-1] == "Decode pd-0"


@pytest.mark.parametrize("state", [S.RESERVING, S.PREFILLING])
def test_a_transfer_that_has_not_landed_in_time_is_given_up(state: RequestState) -> None:
    """The deadline begins with the reservation."""
    drive = Drive()
    drive.to(state)
    assert [name for name in told(drive.feed(e.Tick(), 9.9)) if name != "RenewLease pd-0"] == []
    actions = drive.feed(e.Tick(), 0.1)
    decode = actions[-1]
    assert isinstance(decode, a.Decode)
    assert decode.fallback is not None
    assert decode.fallback.reason == "deadline"


@pytest.mark.parametrize("answer", [e.LandingReserved("r", 1000), e.ReserveFailed("r", failure("arena_full"))])
def test_a_landing_that_was_given_up_before_its_node_had_answered_is_dropped_after_it_has(
    answer: e.RequestEvent,
) -> None:
    """A drop that overtakes the reservation would drop nothing."""
    drive = Drive()
    drive.to(S.RESERVING)
    assert told(drive.feed(e.Tick(), 10.0)) == ["Decode pd-0"]
    assert drive.request.landing is P.ABANDONED
    assert told(drive.feed(answer)) == ["DropLanding pd-0"]
    assert drive.feed(e.LandingDropped("r")) == []
    assert drive.request.landing is P.GONE


def test_a_failed_transfer_does_not_use_up_the_second_chance_in_decode() -> None:
    """Two legs may break after it, not three."""
    drive = Drive(*TWO_DECODERS)
    drive.to(S.PREFILLING)
    drive.feed(e.PrefillEnded("r", failure()))
    assert told(drive.feed(e.DecodeFailed("r", 1, failure("decode_unreachable")))) == ["Decode pd-1"]
    assert told(drive.feed(e.DecodeFailed("r", 2, failure("decode_unreachable")))) == ["Refuse"]


def test_an_image_without_a_prefix_that_went_with_the_engines_former_life_is_useless() -> None:
    """Another boot id in the node's answer means that what was to be skipped is gone."""
    drive = Drive()
    drive.scheduler.fleet.instances["pd-0"].cache.ran_locally(chain(160)[BLOCK])
    (reserve,) = drive.arrives(500)
    assert isinstance(reserve, a.Reserve)
    assert reserve.skip_tokens == 160
    actions = drive.feed(e.LandingReserved("r", 1000, BLOCK, "life-2", ("full_attention",)))
    assert told(actions) == ["DropLanding pd-0", "Decode pd-0"]


# Members that change under a transfer


@pytest.mark.parametrize("after", [["west-1 prefill", "pd-0 both"], ["west-1 prefill", "pd-0 both", "pd-w prefill"]])
def test_a_prompt_is_not_sent_to_a_prefill_instance_that_has_left_meanwhile(after: list[str]) -> None:
    """Also if it has other requests to finish, for which it is kept."""
    drive = Drive("west-0 prefill", "pd-0 both")
    drive.to(S.PREFILLING)
    drive.arrives(request_id="second")
    drive.feed(e.TopologyChanged(topology_of(*after)))
    actions = drive.feed(e.LandingReserved("second", 1000))
    assert told(actions) == ["DropLanding pd-0", "Decode pd-0"]


def test_a_prompt_is_not_sent_to_an_instance_that_decodes_now() -> None:
    """Its duty was changed between the reservation and the answer to it."""
    drive = Drive("pd-0 decode", "pd-p prefill")
    assert told(drive.arrives(50)) == ["Reserve"]
    drive.feed(e.TopologyChanged(topology_of("pd-0 decode", "pd-p both")))
    assert told(drive.feed(e.LandingReserved("r", 1000))) == ["DropLanding pd-0", "Decode pd-0"]


@pytest.mark.parametrize(
    ("state", "event", "expected"),
    [
        (S.RESERVING, e.LandingReserved("r", 1000), ["DropLanding pd-0", "Decode pd-1"]),
        (S.PREFILLING, e.LandingEnded("r", 1000), ["StopPrefill", "DropLanding pd-0", "Decode pd-1"]),
    ],
)
def test_a_landing_does_not_follow_a_name_that_has_moved(
    state: RequestState, event: e.RequestEvent, expected: list[str]
) -> None:
    """The name leads to another engine now, and the node beside that one has no such landing."""
    drive = Drive(*TWO_DECODERS)
    drive.to(state)
    moved = member("pd-0 both", url="http://elsewhere")
    drive.feed(e.TopologyChanged(topology_of("west-0 prefill", moved, "pd-1 both")))
    assert told(drive.feed(event)) == expected


# Decode


def test_a_second_leg_goes_to_another_engine_if_one_works() -> None:
    """Else to the same one, which may be back."""
    both, alone = Drive(*TWO_DECODERS), Drive()
    for drive, again in ((both, "pd-1"), (alone, "pd-0")):
        assert told(drive.arrives(50)) == ["Decode pd-0"]
        (decode,) = drive.feed(e.DecodeFailed("r", 1, failure("decode_unreachable")))
        assert isinstance(decode, a.Decode)
        assert (decode.instance, decode.attempt, decode.is_retry) == (again, 2, True)


def test_an_engine_that_refuses_connections_gets_no_second_leg() -> None:
    """Nobody listens there; without another engine the client is told so."""
    drive = Drive()
    drive.arrives(50)
    (refuse,) = drive.feed(e.DecodeFailed("r", 1, failure("decode_unreachable", refused=True)))
    assert isinstance(refuse, a.Refuse)
    assert refuse.code == "no_healthy_engine"


@pytest.mark.parametrize("event", [e.AnswerBegan("r", 1), e.DecodeFailed("r", 1, failure("decode_unreachable"))])
def test_what_an_earlier_leg_says_late_changes_nothing(event: e.RequestEvent) -> None:
    """Legs are numbered for that."""
    drive = Drive(*TWO_DECODERS)
    drive.arrives(50)
    drive.feed(e.DecodeFailed("r", 1, failure("decode_unreachable")))
    assert drive.feed(event) == []
    assert (drive.request.state, drive.request.attempt, drive.request.decode) == (S.COMPUTING, 2, "pd-1")


def test_without_a_healthy_engine_a_request_is_refused() -> None:
    """And counts nowhere."""
    drive = Drive(seen=False)
    assert told(drive.arrives(50)) == ["Refuse"]
    assert drive.at("pd-0") == (0, 0)
    assert told(drive.feed(e.AnswerEnded("r", "unavailable"))) == ["Close"]


def test_an_engines_own_refusal_of_a_landing_ends_the_request_and_drops_the_landing() -> None:
    """The client has the engine's answer; no byte was loaded for it."""
    drive = Drive()
    drive.to(S.LOADING)
    assert told(drive.feed(e.AnswerEnded("r", "client_error", 400))) == ["DropLanding pd-0"]
    assert told(drive.feed(e.LandingDropped("r"))) == ["Close"]


# The landing's end


def test_a_settlement_that_nobody_answered_is_followed_by_a_drop() -> None:
    """Perhaps the landing is there still."""
    drive = Drive()
    drive.to(S.ANSWERING)
    assert told(drive.feed(e.LandingSettled("r", None))) == ["DropLanding pd-0"]
    drive.feed(e.AnswerEnded("r", "ok"))
    assert told(drive.feed(e.LandingDropped("r"))) == ["Close"]


@pytest.mark.parametrize(
    ("record", "reusable"),
    [
        (e.FinalRecord("consumed", tokens_loaded=499), 496),
        (e.FinalRecord("aborted", "not loaded", tokens_loaded=0, tokens_recomputed=500), 496),
    ],
)
def test_the_decode_engine_is_known_to_hold_the_prompt_after_it_was_settled(
    record: e.FinalRecord, reusable: int
) -> None:
    """It has loaded it, or computed it because it could not."""
    drive = Drive()
    drive.to(S.ANSWERING)
    drive.feed(e.LandingSettled("r", record))
    assert drive.scheduler.fleet.instances["pd-0"].match(chain(600)).attention_prefix_tokens == reusable


@pytest.mark.parametrize(
    ("record", "loaded"),
    [
        (e.FinalRecord("consumed", tokens_loaded=9), True),
        (e.FinalRecord("consumed", tokens_loaded=0), False),
        (e.FinalRecord("consumed"), False),
        (e.FinalRecord("aborted", tokens_loaded=9), False),
    ],
)
def test_a_transfer_served_if_its_landing_was_consumed_and_tokens_were_loaded(
    record: e.FinalRecord, loaded: bool
) -> None:
    """Else its bytes moved for nothing."""
    assert was_loaded(record) == loaded


# The client leaves


@pytest.mark.parametrize(
    ("state", "expected", "then"),
    [
        (S.RESERVING, [], [(e.LandingReserved("r", 1000), ["DropLanding pd-0"]), (e.LandingDropped("r"), ["Close"])]),
        (S.PREFILLING, ["StopPrefill", "DropLanding pd-0"],
         [(e.LandingDropped("r"), []), (e.PrefillEnded("r"), ["Close"])]),
        (S.LOADING, ["DropLanding pd-0"], [(e.LandingDropped("r"), ["Close"])]),
        (S.ANSWERING, [], [(e.LandingSettled("r", e.FinalRecord("consumed", tokens_loaded=1)), ["Close"])]),
    ],
)  # fmt: skip
def test_a_client_that_leaves_leaves_nothing_behind(
    state: RequestState, expected: list[str], then: list[tuple[e.RequestEvent, list[str]]]
) -> None:
    """Prefill stopped, landing dropped or settled, counts at zero, and the request closed when all of it is over."""
    drive = Drive()
    drive.to(state)
    assert told(drive.feed(e.RequestAbandoned("r", "cancelled"))) == expected
    for event, actions in then:
        assert not drive.is_closed
        assert told(drive.feed(event)) == actions
    assert drive.is_closed
    assert drive.at("pd-0") == drive.at("west-0") == (0, 0)


def test_a_client_that_leaves_while_its_prompt_is_counted_is_closed_at_once() -> None:
    """The count runs in the client's own task and ends with it."""
    drive = Drive()
    drive.feed(e.RequestArrived("r", "t", 500))
    assert told(drive.feed(e.RequestAbandoned("r", "cancelled"))) == ["Close"]
    assert drive.feed(e.PromptCounted("r", 500, chain(500))) == []


# Policies


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (RoutePolicy(offload=True, threshold_tokens=0), ["remote", "remote"]),
        (RoutePolicy(offload=True, threshold_tokens=100), ["local", "remote"]),
        (RoutePolicy(offload=False, threshold_tokens=0), ["local", "local"]),
    ],
)
def test_all_prompts_leave_or_the_long_ones_or_none(policy: RoutePolicy, expected: list[str]) -> None:
    """Naive, by threshold, and homogeneous; for a prompt of 50 tokens and one of 500."""
    kinds = []
    for num_tokens in (50, 500):
        drive = Drive(policy=policy)
        (action,) = drive.arrives(num_tokens)
        assert isinstance(action, a.Reserve | a.Decode)
        kinds.append(str(action.route.kind))
    assert kinds == expected


def test_a_policy_holds_from_the_next_route_on() -> None:
    """What is on its way goes on."""
    drive = Drive()
    drive.to(S.PREFILLING)
    drive.feed(e.PolicyChanged(RoutePolicy(offload=False, threshold_tokens=0)))
    assert told(drive.arrives(request_id="second")) == ["Decode pd-0"]
    assert told(drive.feed(e.LandingEnded("r", 1000))) == ["Decode pd-0"]
