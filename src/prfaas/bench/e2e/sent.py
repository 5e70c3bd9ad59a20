"""What is kept of every request that was sent. Times are seconds since the run began."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

#: As `prfaas simulate` calls them: answered; turned away with 429, or with 503 and Retry-After; anything else that went
#: wrong; given up by this client, because the run was interrupted.
OK: Final = "ok"
UNAVAILABLE: Final = "unavailable"
ERROR: Final = "error"
CANCELLED: Final = "cancelled"

#: Where no header of the answer says the route.
UNKNOWN: Final = "unknown"
REMOTE: Final = "remote"


@dataclass(slots=True, eq=False)
class Sent:
    """`arrival_s`: when it was to be sent. `end_s`: when its last token came. `failure` says of an `error` which kind,
    `detail` in words. `answer`: its text, if the run keeps it."""

    number: int
    arrival_s: float
    input_tokens: int
    max_tokens: int
    conversation: str | None = None
    turn: int | None = None
    sent_s: float = math.nan
    first_token_s: float | None = None
    end_s: float | None = None
    over_s: float = math.nan
    output_tokens: int = 0
    num_events: int = 0
    counted_by: str = ""
    prompt_tokens: int | None = None
    status: int | None = None
    outcome: str = CANCELLED
    failure: str | None = None
    detail: str | None = None
    retry_after_s: float | None = None
    route: str = UNKNOWN
    reason: str | None = None
    request_id: str | None = None
    answer: str | None = None

    @property
    def is_ok(self) -> bool:
        return self.outcome == OK

    @property
    def ttft_s(self) -> float:
        """Of an answered one: from when it was to be sent."""
        assert self.first_token_s is not None
        return self.first_token_s - self.arrival_s

    @property
    def e2e_s(self) -> float:
        """Of an answered one: from when it was to be sent, to its last token."""
        assert self.end_s is not None
        return self.end_s - self.arrival_s

    @property
    def tpot_s(self) -> float | None:
        """Seconds for each token after the first; None for an answer of one token."""
        if self.first_token_s is None or self.end_s is None or self.output_tokens < 2:
            return None
        return (self.end_s - self.first_token_s) / (self.output_tokens - 1)

    @property
    def late_s(self) -> float:
        """How much later than meant it was sent."""
        return self.sent_s - self.arrival_s

    def line(self) -> dict[str, Any]:
        """As docs/benchmarking.md lists the keys."""
        kept = {} if self.answer is None else {"answer": self.answer}
        return {
            "request": self.number,
            "arrival_s": self.arrival_s,
            "sent_s": None if math.isnan(self.sent_s) else self.sent_s,
            "first_token_s": self.first_token_s,
            "end_s": self.end_s,
            "input_tokens": self.input_tokens,
            "prompt_tokens": self.prompt_tokens,
            "max_tokens": self.max_tokens,
            "output_tokens": self.output_tokens,
            "num_events": self.num_events,
            "route": self.route,
            "reason": self.reason,
            "outcome": self.outcome,
            "status": self.status,
            "failure": self.failure,
            "detail": self.detail,
            "request_id": self.request_id,
            "conversation": self.conversation,
            "turn": self.turn,
            **kept,
        }
