"""Waiting for a story's end."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from prfaas.observe.story import Stories, Story

#: How long the proof of an answered request takes at most in a healthy system.
SETTLING_WAIT_S: Final = 2.0


class StoryBook:
    """Reads `stories`, of which it is told when one is closed."""

    def __init__(self, stories: Stories) -> None:
        self._stories = stories
        self._waiting: dict[str, set[asyncio.Event]] = {}
        stories.on_close = self._closed

    async def read(self, request_id: str, wait_s: float | None = None) -> dict[str, Any] | None:
        """The story; None if unknown. Waits up to `wait_s` for its end; without it, only for the proof of a request
        that has answered its client already."""
        story = self._stories.get(request_id)
        if story is None:
            return None
        if wait_s is None:
            wait_s = 0.0 if story.outcome is None else SETTLING_WAIT_S
        if not story.is_closed and wait_s > 0:
            await self._wait(request_id, wait_s)
        return story.public()

    async def _wait(self, request_id: str, wait_s: float) -> None:
        closed = asyncio.Event()
        waiting = self._waiting.setdefault(request_id, set())
        waiting.add(closed)
        try:
            async with asyncio.timeout(wait_s):
                await closed.wait()
        except TimeoutError:
            pass
        finally:
            waiting.discard(closed)
            if not waiting:
                self._waiting.pop(request_id, None)

    def _closed(self, story: Story) -> None:
        for event in self._waiting.get(story.request_id, ()):
            event.set()
