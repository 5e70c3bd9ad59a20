"""What is due when. Removal is lazy: whoever sees a timer come first looks whether it still means anything."""

from __future__ import annotations

import heapq
from enum import StrEnum
from typing import NamedTuple


class TimerKind(StrEnum):
    """`DEADLINE`: a transfer must have landed. `RENEW`: its lease wants renewal."""

    DEADLINE = "deadline"
    RENEW = "renew"


class Timer(NamedTuple):
    """Ordered by time, then by the order in which they were set."""

    due_s: float
    number: int
    request_id: str
    kind: TimerKind


class Timers:
    """A heap of timers."""

    def __init__(self) -> None:
        self._heap: list[Timer] = []
        self._number = 0
        #: The first that will be due.
        self.next: Timer | None = None

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def next_due_s(self) -> float | None:
        return None if self.next is None else self.next.due_s

    def set(self, due_s: float, request_id: str, kind: TimerKind) -> float:
        """Returns `due_s`, which the owner keeps to know whether a timer is still its own."""
        self._number += 1
        heapq.heappush(self._heap, Timer(due_s, self._number, request_id, kind))
        self.next = self._heap[0]
        return due_s

    def take_due(self, now_s: float) -> Timer | None:
        """The next timer that is due, removed; None if none is."""
        if self.next is None or self.next.due_s > now_s:
            return None
        taken = heapq.heappop(self._heap)
        self.next = self._heap[0] if self._heap else None
        return taken
