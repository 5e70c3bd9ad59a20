"""One request's record, and the two tables of what may happen to it.

Laws of this file:
- A request changes state only as `TRANSITIONS` says: state -> event -> the states it may be in afterwards. An event
  that a state does not list is a defect of the driver.
- A landing changes phase only as `LANDING_TRANSITIONS` says, so it is settled or dropped exactly once: both leave
  HELD, and nothing leads back to it.
- A request that has ended is kept until its landing is gone, its prefill has stopped and its tokens are counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from prfaas.core.cache.hashing import TokenChain
from prfaas.core.control import events as e
from prfaas.core.control.instance import Instance
from prfaas.core.control.route import Option, Route


class RequestState(StrEnum):
    """Where a request is."""

    COUNTING = "counting"
    WAITING = "waiting"
    RESERVING = "reserving"
    PREFILLING = "prefilling"
    LOADING = "loading"
    COMPUTING = "computing"
    ANSWERING = "answering"
    ENDED = "ended"


class LandingPhase(StrEnum):
    """Where a request's landing is. `ABANDONED`: asked for, and to be dropped as soon as the node has answered."""

    NONE = "none"
    ASKED = "asked"
    ABANDONED = "abandoned"
    HELD = "held"
    SETTLING = "settling"
    DROPPING = "dropping"
    GONE = "gone"


S = RequestState
_LOCALLY: Final = frozenset({S.COMPUTING, S.ANSWERING})


def _stays(state: RequestState, *events: type) -> dict[type, frozenset[RequestState]]:
    return {event: frozenset({state}) for event in events}


#: What a transfer that was given up, or is over, may still report. None of it changes the state.
_AFTERWARDS: Final = (e.PrefillEnded, e.LandingEnded, e.LeaseRenewed, e.LandingDropped)
#: What may still come of a landing that was given up before its node had answered.
_ABANDONED: Final = (e.LandingReserved, e.ReserveFailed)
_GONE: Final[dict[type, frozenset[RequestState]]] = {e.RequestAbandoned: frozenset({S.ENDED})}

#: state -> event -> states afterwards. docs/control.md shows it; `make docs` renews that.
TRANSITIONS: Final[dict[RequestState, dict[type, frozenset[RequestState]]]] = {
    S.COUNTING: {
        e.PromptCounted: frozenset({S.WAITING, S.RESERVING, *_LOCALLY}),
        e.PromptUncountable: _LOCALLY,
        # A prompt that does not fit is refused by whoever counts it.
        e.AnswerEnded: frozenset({S.ENDED}),
        **_GONE,
    },
    S.WAITING: {
        # Its own cluster has lost everyone who could prefill it: it may wait for another one.
        e.TurnCame: frozenset({S.RESERVING, S.WAITING, *_LOCALLY}),
        **_GONE,
    },
    S.RESERVING: {
        e.LandingReserved: frozenset({S.PREFILLING, *_LOCALLY}),
        **dict.fromkeys((e.ReserveFailed, e.DeadlinePassed), _LOCALLY),
        **_GONE,
    },
    S.PREFILLING: {
        e.PrefillEnded: frozenset({S.PREFILLING, *_LOCALLY}),
        e.LandingEnded: frozenset({S.LOADING, *_LOCALLY}),
        e.DeadlinePassed: _LOCALLY,
        **_stays(S.PREFILLING, e.LeaseRenewed),
        **_GONE,
    },
    S.LOADING: {
        e.AnswerBegan: frozenset({S.ANSWERING}),
        e.DecodeFailed: _LOCALLY,
        e.AnswerEnded: frozenset({S.ENDED}),
        **_stays(S.LOADING, e.PrefillEnded, e.LeaseRenewed),
        **_GONE,
    },
    S.COMPUTING: {
        e.AnswerBegan: frozenset({S.ANSWERING}),
        e.DecodeFailed: _LOCALLY,
        e.AnswerEnded: frozenset({S.ENDED}),
        **_stays(S.COMPUTING, *_AFTERWARDS, *_ABANDONED),
        **_GONE,
    },
    S.ANSWERING: {
        e.AnswerEnded: frozenset({S.ENDED}),
        **_stays(S.ANSWERING, e.LandingSettled, *_AFTERWARDS, *_ABANDONED),
        **_GONE,
    },
    S.ENDED: {
        **_stays(S.ENDED, e.LandingSettled, *_AFTERWARDS, *_ABANDONED),
        **_stays(S.ENDED, e.PromptCounted, e.PromptUncountable),
        # The client left, and the leg that was stopped tells its end too.
        **_stays(S.ENDED, e.AnswerBegan, e.DecodeFailed, e.AnswerEnded, e.RequestAbandoned),
    },
}

P = LandingPhase
LANDING_TRANSITIONS: Final[dict[LandingPhase, frozenset[LandingPhase]]] = {
    P.NONE: frozenset({P.ASKED}),
    P.ASKED: frozenset({P.HELD, P.ABANDONED, P.DROPPING}),
    P.ABANDONED: frozenset({P.DROPPING}),
    P.HELD: frozenset({P.SETTLING, P.DROPPING}),
    P.SETTLING: frozenset({P.GONE, P.DROPPING}),
    P.DROPPING: frozenset({P.GONE}),
    P.GONE: frozenset(),
}


@dataclass(eq=False, slots=True)
class Crossing:
    """What of a request is still to cross, from one cluster to another. `is_bound`: an instance sends it."""

    pair: tuple[str, str]
    num_bytes: float
    is_bound: bool = False


@dataclass(eq=False, slots=True)
class Request:
    """What the scheduler knows of one request. Names of instances are empty for none: on `decode` and `prefill` it
    counts as in flight now, beside `landing_at` is its landing. The prefix that `skip_tokens` leaves out was held by
    the life `matched_boot_id` of the decode engine. A name may lead to another engine later: `decode_instance`,
    `prefill_instance` and `landing_beside` are the instances that `decode`, `prefill` and `landing_at` named when they
    were set; `answered_by` began the answer, and
    `answers_at` counts it among those that its batch answers."""

    arrived: e.RequestArrived
    arrived_s: float
    request_id: str = field(init=False, repr=False)
    state: RequestState = S.COUNTING
    num_prompt_tokens: int | None = None
    obstacle: str | None = None
    chains: Mapping[int, TokenChain] = field(default_factory=dict)
    route: Route | None = None
    attempt: int = 0
    may_retry: bool = True
    decode: str = ""
    prefill: str = ""
    prefill_instance: Instance | None = field(default=None, repr=False)
    decode_instance: Instance | None = field(default=None, repr=False)
    answered_by: Instance | None = field(default=None, repr=False)
    landing: LandingPhase = P.NONE
    landing_at: str = ""
    landing_beside: Instance | None = field(default=None, repr=False)
    skip_tokens: int = 0
    matched_boot_id: str | None = None
    num_landed_bytes: int = 0
    deadline_s: float | None = None
    renew_s: float | None = None
    option: Option | None = field(default=None, repr=False)
    works_at: Instance | None = field(default=None, repr=False)
    answers_at: Instance | None = field(default=None, repr=False)
    num_work_tokens: int = 0
    crossing: Crossing | None = None
    counts_late: bool = False
    is_counting: bool = False

    def __post_init__(self) -> None:
        self.request_id = self.arrived.request_id

    @property
    def is_over(self) -> bool:
        """Nothing more can happen to it."""
        if self.state is not S.ENDED or self.is_counting or self.prefill:
            return False
        return self.landing is P.NONE or self.landing is P.GONE

    def move_landing(self, phase: LandingPhase) -> None:
        """Raises AssertionError for a step that the table does not have."""
        assert phase in LANDING_TRANSITIONS[self.landing], f"{self.request_id}: landing {self.landing} -> {phase}"
        self.landing = phase
