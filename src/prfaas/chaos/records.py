"""What is known of one request from both sides. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from prfaas.bench.e2e.sent import CANCELLED, OK, UNAVAILABLE, Sent


class Outcome(StrEnum):
    """`unreached`: nobody listened, so nobody has accepted it."""

    COMPLETED = "completed"
    REFUSED = "refused"
    CANCELLED = "cancelled"
    FAILED = "failed"
    UNREACHED = "unreached"


@dataclass(slots=True)
class Record:
    """`token_ids` are those of its answer as far as it came, `expected` what a whole one must be, None where that is
    not known. `story` is the gateway's, told by its life number `life`; None if it knows none, or nobody could be
    asked."""

    sent: Sent
    token_ids: list[int] = field(default_factory=list)
    expected: list[int] | None = None
    story: dict[str, Any] | None = None
    life: int | None = None

    @property
    def is_over(self) -> bool:
        return not math.isnan(self.sent.over_s)

    @property
    def outcome(self) -> Outcome:
        """As the client sees it."""
        if self.sent.outcome == OK:
            return Outcome.COMPLETED
        if self.sent.outcome == UNAVAILABLE:
            return Outcome.REFUSED
        if self.sent.outcome == CANCELLED:
            return Outcome.CANCELLED
        return Outcome.UNREACHED if self.sent.failure == "connect" else Outcome.FAILED

    @property
    def told(self) -> str:
        """By the gateway: the outcome of its story."""
        return "" if self.story is None else str(self.story.get("outcome"))

    def name(self) -> str:
        """For people."""
        sent = self.sent
        why = "" if sent.failure is None else f", {sent.failure}: {sent.detail}"
        by = "" if self.story is None else f"; decoded by {self.story.get('decode_instance')}"
        return f"request {sent.request_id} ({self.outcome} after {sent.sent_s:.2f} to {sent.over_s:.2f} s{why}{by})"
