"""How many characters of prompts may be tokenized at once: what is over it waits its turn.

Laws of this file:
- First come, first served: a long text that waits is not overtaken, or it would wait for ever.
- A text longer than the whole budget has it alone.
- What was taken is given back by whoever works on the text, not by whoever waits for it: a client that hangs up ends
  its wait and not the work.
"""

from __future__ import annotations

import asyncio
from collections import deque


class TextBudget:
    """A semaphore over characters, for one event loop at a time."""

    def __init__(self, max_chars: int) -> None:
        self._max_chars = max_chars
        self._taken_chars = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def is_full(self, num_chars: int) -> bool:
        """Whether a text would have to wait."""
        return bool(self._waiting) or self._taken_chars + min(num_chars, self._max_chars) > self._max_chars

    async def take(self, num_chars: int) -> int:
        """Wait for room for a text; returns what to `give_back`."""
        share = min(num_chars, self._max_chars)
        if not self.is_full(num_chars):
            self._taken_chars += share
            return share
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((share, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._taken_chars -= share
            self._let_in()
            raise
        return share

    def give_back(self, share: int) -> None:
        """A text is done; in the event loop's thread."""
        self._taken_chars -= share
        self._let_in()

    def _let_in(self) -> None:
        while self._waiting:
            share, turn = self._waiting[0]
            if not turn.done():
                if self._taken_chars + share > self._max_chars:
                    return
                self._taken_chars += share
                turn.set_result(None)
            self._waiting.popleft()
