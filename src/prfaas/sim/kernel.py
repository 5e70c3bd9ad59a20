"""Simulated time: what happens next, and in which order.

Laws of this file:
- Things happen in the order of their times; of equal times the lower priority number first, then in the order in which
  they were planned. So a run depends on nothing but what was planned.
- Nothing happens before it was planned, and time never falls.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
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


class Kernel:
    """The clock and the list of what is planned."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.num_events = 0
        self._heap: list[tuple[float, int, int, Planned]] = []
        self._sequence = 0

    def at(self, time_s: float, call: Callable[..., object], *arguments: Any, priority: int = 0) -> Planned:
        """Plan `call(*arguments)`. A time that has passed means now."""
        planned = Planned(call, arguments)
        self._sequence += 1
        heapq.heappush(self._heap, (max(time_s, self.now_s), priority, self._sequence, planned))
        return planned

    def after(self, delay_s: float, call: Callable[..., object], *arguments: Any, priority: int = 0) -> Planned:
        return self.at(self.now_s + delay_s, call, *arguments, priority=priority)

    def step(self, until_s: float = math.inf) -> bool:
        """Let the next thing happen, if it is due by `until_s`. False if nothing is."""
        heap = self._heap
        while heap and heap[0][0] <= until_s:
            time_s, _, _, planned = heapq.heappop(heap)
            call = planned.call
            if call is not None:
                self.now_s = time_s
                self.num_events += 1
                call(*planned.arguments)
                return True
        return False

    def run(self, until_s: float) -> None:
        """Everything up to `until_s`, which is the time afterwards."""
        while self.step(until_s):
            pass
        self.now_s = max(self.now_s, until_s)
