"""Clients of a run: those of `prfaas bench e2e`, who also name their requests, keep the answers, and ask the gateway
what it has made of each. Some leave before their answer is whole."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Mapping
from typing import Any, Final

import aiohttp
import orjson

from prfaas.bench.e2e.answers import AnswerReader
from prfaas.bench.e2e.client import Client
from prfaas.bench.e2e.sent import UNKNOWN, Sent
from prfaas.chaos.records import Outcome, Record
from prfaas.sim.engine import Gaps

STORY_TIMEOUT_S: Final = 5.0
#: A client has left at most so many seconds after it asked.
LEAVES_WITHIN_S: Final = 1.0


def leaves(seed: int, numbers: range, share: float) -> dict[int, float]:
    """After how many seconds which requests are given up by their clients."""
    rng = random.Random(f"prfaas chaos leaves {seed}")
    return {number: rng.uniform(0.0, LEAVES_WITHIN_S) for number in numbers if rng.random() < share}


class ChaosClient(Client):
    """`run_id` begins the ids of its requests. `life` counts the gateways that were there."""

    def __init__(
        self, session: aiohttp.ClientSession, url: str, timeout_s: float, run_id: str, leaves: Mapping[int, float],
        life: Callable[[], int],
    ) -> None:  # fmt: skip
        super().__init__(session, url, "/v1/completions", timeout_s)
        self._stories = f"{url}/prfaas/requests/"
        self._asking = session
        self._run_id = run_id
        self._leaves = leaves
        self._life = life
        self.records: dict[int, Record] = {}
        self.begun = asyncio.Event()

    def begin(self) -> None:
        super().begin()
        self.begun.set()

    async def send(self, sent: Sent, body: bytes, reader: AnswerReader) -> None:
        """Its answer is read by a reader of our own, which keeps it."""
        keeping = AnswerReader(Gaps(), keeps=True)
        record = self.records[sent.number] = Record(sent, keeping.token_ids)
        sent.request_id = f"{self._run_id}-{sent.number}"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._leaves.get(sent.number)):
                await super().send(sent, body, keeping)
        if record.outcome is not Outcome.UNREACHED:
            await self.ask_story(record)

    async def ask_story(self, record: Record, wait_s: float = 0.0) -> None:
        """What the gateway knows of it; what was known before stays, if nobody answers."""
        life = self._life()
        story = await self._story(f"{record.sent.request_id}{f'?wait_s={wait_s:g}' if wait_s else ''}", wait_s)
        if story is not None and life == self._life():
            record.story, record.life = story, life
            # Headers of a stream that a comment had to open do not know the route.
            if record.sent.route == UNKNOWN and isinstance(story.get("route"), str):
                record.sent.route = story["route"]

    async def _story(self, path: str, wait_s: float) -> dict[str, Any] | None:
        try:
            async with asyncio.timeout(STORY_TIMEOUT_S + wait_s), self._asking.get(self._stories + path) as response:
                found = orjson.loads(await response.read()) if response.status == 200 else None
        except (aiohttp.ClientError, OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None
