"""Simulated time: a heap of what happens when. Equal times happen in the order in which they were planned."""

from __future__ import annotations

import heapq
from collections.abc import Callable

Thunk = Callable[[], None]


class Kernel:
    """The only clock of a world."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.num_steps = 0
        self._heap: list[tuple[float, int, Thunk]] = []
        self._number = 0

    def __len__(self) -> int:
        return len(self._heap)

    def after(self, delay_s: float, thunk: Thunk) -> None:
        """Plan something. A delay below zero counts as zero."""
        self._number += 1
        heapq.heappush(self._heap, (self.now_s + max(0.0, delay_s), self._number, thunk))

    def step(self) -> bool:
        """The next thing happens; False if nothing is planned."""
        if not self._heap:
            return False
        self.now_s, _, thunk = heapq.heappop(self._heap)
        self.num_steps += 1
        thunk()
        return True
