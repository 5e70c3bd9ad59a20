"""What the control core wants done. The driver turns each action into work whose result is the next event.

| action | its result |
|---|---|
| `CountPrompt` | `PromptCounted` or `PromptUncountable`; or `AnswerEnded`, if the prompt does not fit |
| `Reserve` | `LandingReserved` or `ReserveFailed`, also after the client has left |
| `Prefill` | `PrefillEnded`, also when it was stopped |
| `AwaitLanding` | `LandingEnded`, also when it was stopped |
| `RenewLease` | `LeaseRenewed` |
| `Decode` | `DecodeFailed`; or `AnswerBegan`, then `AnswerEnded`; or `AnswerEnded` alone for the engine's own refusal |
| `Refuse` | `AnswerEnded` |
| `SettleLanding` | `LandingSettled` |
| `DropLanding` | `LandingDropped` |
| `StopPrefill`, `NoteUncached`, `Close` | none |
| `Convert` | `TopologyChanged`, or `ConversionRefused` |
| `NoteConversion`, `NoteSuggestions`, `NoteHealth` | none |
"""

from __future__ import annotations

from enum import StrEnum

from prfaas.core.control.conversion import Conversion
from prfaas.core.control.fallback import Failure
from prfaas.core.control.rebalance import Suggestion
from prfaas.core.control.route import Route
from prfaas.core.record import record
from prfaas.core.topology import Duty


@record
class CountPrompt:
    """Count the prompt's tokens and name its blocks, of each of `block_sizes` tokens."""

    request_id: str
    block_sizes: tuple[int, ...]
    is_late: bool = False


@record
class Reserve:
    """Reserve a landing on the node beside `route.decode`. The image leaves out the first `skip_tokens`."""

    request_id: str
    transfer_id: str
    route: Route
    num_prompt_tokens: int
    skip_tokens: int
    lease_s: float


@record
class Prefill:
    """Have `instance` prefill the prompt and send its KVCache into the landing beside `decode`, within `deadline_s`.
    Before that it fetches the prompt's first `num_fetched_tokens` from the instance `fetch_from`, unless that is empty;
    what does not come is computed."""

    request_id: str
    instance: str
    decode: str
    deadline_s: float
    fetch_from: str = ""
    num_fetched_tokens: int = 0


@record
class AwaitLanding:
    """Watch the landing beside `decode` until it is past receiving."""

    request_id: str
    decode: str


@record
class StopPrefill:
    """Stop what `Prefill` and `AwaitLanding` began."""

    request_id: str


@record
class RenewLease:
    """Renew the landing's lease."""

    request_id: str
    decode: str
    lease_s: float


@record
class Decode:
    """Send the client's request to `instance`, which loads the landing if `is_landed` and computes the prompt
    otherwise. `fallback` and `is_retry` say why this is not the first plan. A 5xx is `DecodeFailed` if
    `is_landed`, and the client's answer otherwise."""

    request_id: str
    attempt: int
    instance: str
    route: Route
    is_landed: bool = False
    num_landed_bytes: int = 0
    fallback: Failure | None = None
    is_retry: bool = False


class RefusalCode(StrEnum):
    """The `code` of the error that the client gets."""

    NO_HEALTHY_ENGINE = "no_healthy_engine"
    UPSTREAM_DOWN = "upstream_down"
    TOO_BUSY = "too_busy"


@record
class Refuse:
    """Tell the client that it gets no answer; `retry_after_s`, when to ask again, if that is known."""

    request_id: str
    code: RefusalCode
    detail: str
    route: Route
    fallback: Failure | None = None
    retry_after_s: int | None = None


@record
class SettleLanding:
    """Ask for the landing's final record, and free it."""

    request_id: str
    decode: str


@record
class DropLanding:
    """Free the landing, whatever its state."""

    request_id: str
    decode: str


@record
class NoteUncached:
    """For the journal: so many tokens of a prompt that was counted after its answer were not cached."""

    request_id: str
    num_uncached_tokens: int


@record
class Close:
    """Nothing more will happen to this request."""

    request_id: str


@record
class Convert:
    """Give an instance of which nothing of ours is in use another duty."""

    instance: str
    duty: Duty


@record
class NoteConversion:
    """For the log: a conversion has begun, or has ended."""

    conversion: Conversion


@record
class NoteSuggestions:
    """For the log: what would serve more is another than before; empty when nothing binds any more."""

    suggestions: tuple[Suggestion, ...]


@record
class NoteHealth:
    """For the log: an instance fails its work and gets none for a while, or works again."""

    instance: str
    is_out: bool
    why: str


RequestAction = (
    CountPrompt
    | Reserve
    | Prefill
    | AwaitLanding
    | StopPrefill
    | RenewLease
    | Decode
    | Refuse
    | SettleLanding
    | DropLanding
    | NoteUncached
    | Close
)
FleetAction = Convert | NoteConversion | NoteSuggestions | NoteHealth
Action = RequestAction | FleetAction
