"""What happened, noted once. Stories, metrics, log lines and spans are folds over it.

An entry is one event with what the control core made of it. Entries come in the order in which they happened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from prfaas.core.control.actions import Action
from prfaas.core.control.events import Event


@dataclass(frozen=True, slots=True)
class RequestTurnedAway:
    """A request that the control core never saw: it was malformed, too large, or one too many."""

    request_id: str
    endpoint: str
    outcome: str
    status: int | None
    error: str | None


Noted = Event | RequestTurnedAway


class Fold(Protocol):
    """Makes something of the journal."""

    def note(self, now_s: float, event: Noted, actions: Sequence[Action]) -> None:
        """Take one entry. Must not raise for an entry of a kind that it does not know."""


class Journal:
    """Hands every entry to every fold, in the folds' order: a later one may read what an earlier one has made."""

    def __init__(self, folds: Sequence[Fold]) -> None:
        self._folds = tuple(folds)

    def note(self, now_s: float, event: Noted, actions: Sequence[Action] = ()) -> None:
        """One entry. `now_s` is the clock that the scheduler was given."""
        for fold in self._folds:
            fold.note(now_s, event, actions)
