"""A request's record, and the tables of what may happen to it."""

from __future__ import annotations

from typing import get_args

import pytest

from prfaas.core.control import events as e
from prfaas.core.control.request import LANDING_TRANSITIONS, TRANSITIONS, LandingPhase, Request, RequestState

P, S = LandingPhase, RequestState


def request(state: RequestState = S.COUNTING, landing: LandingPhase = P.NONE, **more: object) -> Request:
    return Request(e.RequestArrived("r", "t", 10), 0.0, state, landing=landing, **more)  # type: ignore[arg-type]


def test_every_state_has_its_row() -> None:
    """None is left out, and no row leads to a state that has none."""
    assert set(TRANSITIONS) == set(RequestState)
    assert {after for by in TRANSITIONS.values() for to in by.values() for after in to} <= set(RequestState)


def test_every_event_of_a_request_has_a_place() -> None:
    """But its arrival, which is before every state."""
    listed = {event for by in TRANSITIONS.values() for event in by}
    assert listed == set(get_args(e.RequestEvent)) - {e.RequestArrived}


def test_nothing_leads_out_of_the_end() -> None:
    """A request that has ended stays so, whatever is told afterwards."""
    assert {after for to in TRANSITIONS[S.ENDED].values() for after in to} == {S.ENDED}


@pytest.mark.parametrize("state", [state for state in S if state is not S.ENDED])
def test_a_client_may_leave_in_every_state(state: RequestState) -> None:
    """And then the request has ended."""
    assert TRANSITIONS[state][e.RequestAbandoned] == {S.ENDED}


def test_only_loading_and_computing_begin_an_answer() -> None:
    """So no answer begins twice."""
    assert [state for state, by in TRANSITIONS.items() if S.ANSWERING in by.get(e.AnswerBegan, ())] == [
        S.LOADING,
        S.COMPUTING,
    ]


@pytest.mark.parametrize("phase", [P.SETTLING, P.DROPPING, P.GONE])
def test_a_landing_is_freed_once(phase: LandingPhase) -> None:
    """From where it is settled or dropped nothing leads back to where that is decided."""
    reached, todo = set(), [phase]
    while todo:
        todo += [after for after in LANDING_TRANSITIONS[todo.pop()] if after not in reached]
        reached |= set(todo)
    assert not reached & {P.NONE, P.ASKED, P.ABANDONED, P.HELD}


@pytest.mark.parametrize(("phase", "after"), [(p, n) for p in P for n in P if n not in LANDING_TRANSITIONS[p]])
def test_a_landing_takes_no_step_that_is_not_in_the_table(phase: LandingPhase, after: LandingPhase) -> None:
    """The message names the request and both phases."""
    one = request(landing=phase)
    with pytest.raises(AssertionError, match=f"r: landing {phase} -> {after}"):
        one.move_landing(after)
    assert one.landing is phase


@pytest.mark.parametrize(
    ("one", "is_over"),
    [
        (request(S.ENDED), True),
        (request(S.ENDED, P.GONE), True),
        (request(S.ANSWERING), False),
        (request(S.ENDED, P.DROPPING), False),
        (request(S.ENDED, P.SETTLING), False),
        (request(S.ENDED, P.ABANDONED), False),
        (request(S.ENDED, prefill="west-0"), False),
        (request(S.ENDED, is_counting=True), False),
    ],
)
def test_a_request_is_over_when_nothing_of_it_goes_on(one: Request, is_over: bool) -> None:
    """Neither a landing nor a prefill nor a count."""
    assert one.is_over == is_over
