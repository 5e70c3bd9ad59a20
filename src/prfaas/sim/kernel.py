"""Simulated time: what happens next, and in which order.

Laws of this file:
- Things happen in the order of their times; of equal times the lower priority number first, then in the order in which
  they were planned. So a run depends on nothing but what was planned.
- Nothing happens before it was planned, and time never falls.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

Thunk = Callable[[], None]


class Planned:
    """Something that will happen, unless it is cancelled."""

    __slots__ = ("arguments", "call")

    def __init__(self, call: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        self.call: Callable[..., object] | None = call
        self.arguments = arguments

    def cancel(self) -> None:
        """Idempotent, also when it has happened."""
        self.call = None
        self.arguments = ()


#: Its time, priority and number, which order it.
_Entry = tuple[float, int, int, Planned]


class Kernel:
    """The clock and the list of what is planned."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.num_events = 0
        self._heap: list[_Entry] = []
        #: What is to happen at once, with priority 0. Most is, and needs no heap: its order is that of its planning.
        self._at_once: deque[_Entry] = deque()
        self._sequence = 0

    def at(self, time_s: float, call: Callable[..., object], *arguments: Any, priority: int = 0) -> Planned:
        """Plan `call(*arguments)`. A time that has passed means now."""
        planned = Planned(call, arguments)
        self._sequence += 1
        if time_s > self.now_s:
            heappush(self._heap, (time_s, priority, self._sequence, planned))
        elif priority:
            heappush(self._heap, (self.now_s, priority, self._sequence, planned))
        else:
            self._at_once.append((self.now_s, priority, self._sequence, planned))
        return planned

    def after(self, delay_s: float, call: Callable[..., object], *arguments: Any, priority: int = 0) -> Planned:
        return self.at(self.now_s + delay_s, call, *arguments, priority=priority)

    @property
    def next_due_s(self) -> float | None:
        """When the next thing is due, even if it was cancelled since; None if nothing is planned."""
        if self._at_once:
            return self.now_s
        return self._heap[0][0] if self._heap else None

    def step(self, until_s: float = math.inf) -> bool:
        """Let the next thing happen, if it is due by `until_s`. False if nothing is."""
        return self.steps(1, until_s) == 1

    def steps(self, most: float, until_s: float = math.inf) -> int:
        """As many, one after the other; returns how many there were."""
        heap, at_once, num = self._heap, self._at_once, 0
        while num < most and (heap or at_once):
            is_at_once = bool(at_once) and not (heap and heap[0] < at_once[0])
            time_s, _, _, planned = at_once[0] if is_at_once else heap[0]
            if time_s > until_s:
                break
            if is_at_once:
                at_once.popleft()
            else:
                heappop(heap)
            call = planned.call
            if call is not None:
                self.now_s = time_s
                self.num_events += 1
                num += 1
                call(*planned.arguments)
        return num

    def run(self, until_s: float) -> None:
        """Everything up to `until_s`, which is the time afterwards."""
        self.steps(math.inf, until_s)
        self.now_s = max(self.now_s, until_s)
