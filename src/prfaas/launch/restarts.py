"""When a process that ended on its own is started again. Pure: time is an argument.

Laws of this file:
- A process that ran well is started again after FIRST_S. One that ends soon after its start waits twice as long as the
  time before, up to MOST_S: a broken one must not keep a machine busy.
"""

from __future__ import annotations

from typing import Final

FIRST_S: Final = 1.0
MOST_S: Final = 60.0
#: Who lives so long ran well. Less than a process needs to load what it serves would never grow.
WELL_S: Final = 10.0


class Restarts:
    """Of the processes of one supervisor, by name."""

    def __init__(self) -> None:
        self._started_s: dict[str, float] = {}
        self._wait_s: dict[str, float] = {}
        self._due_s: dict[str, float] = {}

    def started(self, name: str, now_s: float) -> None:
        """Now, for the first time or again."""
        self._started_s[name] = now_s
        self._due_s.pop(name, None)

    def ended(self, name: str, now_s: float) -> float:
        """How long it waits until it is started again, in seconds."""
        soon = now_s - self._started_s.get(name, now_s) < WELL_S
        before_s = self._wait_s.get(name)
        wait_s = FIRST_S if before_s is None or not soon else min(MOST_S, 2 * before_s)
        self._wait_s[name] = wait_s
        self._due_s[name] = now_s + wait_s
        return wait_s

    def due(self, now_s: float) -> list[str]:
        """Those whose time has come, until they are `started`."""
        return [name for name, due_s in self._due_s.items() if due_s <= now_s]
