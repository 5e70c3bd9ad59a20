"""Work that must outlive the request that caused it, such as giving a landing back after the client went away."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from typing import Any, Final

logger = logging.getLogger("prfaas.gateway")

#: Cancelled work gives back what it holds; a shutdown waits for no node longer than this.
CANCEL_WAIT_S: Final = 2.0


class Background:
    """Holds its tasks, so that none is lost, and ends them at shutdown."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start `work`; what it raises is logged."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    async def drain(self, timeout_s: float) -> None:
        """Wait for what runs and for what it starts in its turn, then cancel the rest and wait for what that starts."""
        await self._wait(timeout_s)
        if self._tasks:
            for task in set(self._tasks):
                task.cancel()
            await self._wait(CANCEL_WAIT_S)

    async def _wait(self, timeout_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._tasks:
                    await asyncio.wait(set(self._tasks))

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("background work failed", exc_info=task.exception())
