"""Simulated time at the pace of an event loop's clock.

Laws of this file:
- What is planned happens when it is due or a little later, and is told that it is when it was due. So an emulated
  engine loses no time to a busy process: of two prompts in a row the second begins when the first should have ended.
- What comes from outside happens after everything that was due before it: see `catch_up`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from prfaas.sim.kernel import Kernel, Planned


class LoopKernel(Kernel):
    """All engines of one process may share it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._loop = loop
        self._began_s = loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = 0.0

    @property
    def clock_s(self) -> float:
        """The time, whatever of what is due has happened."""
        return self._loop.time() - self._began_s

    def at(self, time_s: float, call: Callable[..., object], *arguments: Any, priority: int = 0) -> Planned:
        planned = super().at(time_s, call, *arguments, priority=priority)
        self._arm()
        return planned

    def catch_up(self) -> None:
        """Let everything happen that is due. To be called before anything is told to an engine."""
        self.run(self.clock_s)
        self._arm()

    def _arm(self) -> None:
        due_s = self.next_due_s
        if due_s is None:
            return
        when_s = self._began_s + due_s
        if self._timer is not None:
            if self._timer_s <= when_s:
                return
            self._timer.cancel()
        self._timer, self._timer_s = self._loop.call_at(when_s, self._fire), when_s

    def _fire(self) -> None:
        self._timer = None
        self.catch_up()
