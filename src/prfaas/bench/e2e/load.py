"""Sends a plan's requests, each at its own time, whatever has become of the others.

Laws of this file:
- A request's time is the plan's. Nothing that the server does moves it; what this machine does to it is kept as
  `sent_s` less `arrival_s`.
- Bodies are made before they are due, while nothing else is to be done.
- A client that holds conversations waits for its own answer, as people do; its next request's time is that of the
  answer's end and what it thinks.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Iterator
from typing import Final, NamedTuple

from prfaas.bench.e2e.answers import AnswerReader
from prfaas.bench.e2e.client import Client
from prfaas.bench.e2e.conversations import Ask, TalkingClient
from prfaas.bench.e2e.options import DEFAULT_TOKEN_IDS
from prfaas.bench.e2e.plan import Plan, Planned, Talks
from prfaas.bench.e2e.prompts import (
    ANSWER,
    SHARED,
    TURN,
    Bodies,
    Material,
    TokenMaterial,
    Turn,
    answer_piece,
    prompt_piece,
)
from prfaas.bench.e2e.sent import Sent
from prfaas.sim.engine import Gaps

#: Bodies that are ready before their time: enough for a burst, and not all of a long run.
_MAX_AHEAD: Final = 64
_MAX_AHEAD_BYTES: Final = 32 << 20
#: A body takes less than that to make; one that is due sooner is sent first.
_SPARE_S: Final = 0.005


class _Ready(NamedTuple):
    planned: Planned
    body: bytes


class _Ahead:
    """Requests that are ready, in their order; the next one is made at the latest when it is asked for."""

    def __init__(self, source: Iterator[_Ready]) -> None:
        self._source = source
        self._ready: deque[_Ready] = deque()
        self._num_bytes = 0

    def make(self) -> bool:
        """One more, unless there are enough, or no more."""
        if len(self._ready) >= _MAX_AHEAD or self._num_bytes >= _MAX_AHEAD_BYTES:
            return False
        made = next(self._source, None)
        if made is None:
            return False
        self._ready.append(made)
        self._num_bytes += len(made.body)
        return True

    def first(self) -> _Ready | None:
        """The next; None at the end."""
        return self._ready[0] if self._ready or self.make() else None

    def take(self) -> _Ready:
        """Of `first`."""
        taken = self._ready.popleft()
        self._num_bytes -= len(taken.body)
        return taken


class Load:
    """One run. `sent` has every request that was begun, also while it runs."""

    def __init__(
        self, client: Client, plan: Plan, bodies: Bodies, material: Material, *, seed: int, duration_s: float | None,
        keeps_answers: bool = False,
    ) -> None:  # fmt: skip
        self._client, self._plan, self._bodies, self._material = client, plan, bodies, material
        self._seed, self._duration_s = seed, duration_s
        self._keeps_answers = keeps_answers
        self._tasks: set[asyncio.Task[None]] = set()
        self.gaps = Gaps()
        self.sent: list[Sent] = []
        self.num_over = 0
        self.num_without_ids = 0
        self._defect: BaseException | None = None
        self._is_stopped = False

    def stop(self) -> None:
        """Begin no more requests of a plan; those that are under way go on."""
        self._is_stopped = True

    async def run(self) -> None:
        """To the end of the last answer. If it is cancelled, requests that are under way are given up."""
        try:
            if self._plan.talks is not None:
                self._client.begin()
                await self._talk(self._plan.talks)
            else:
                await self._send_all()
                while self._tasks:
                    await asyncio.wait(self._tasks)
            if self._defect is not None:
                raise self._defect
        finally:
            left = list(self._tasks)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    # At times of a plan

    async def _send_all(self) -> None:
        clock = self._client.clock
        ahead = _Ahead(self._ready())
        # Those of the first moment too: many may be due in it.
        while ahead.make():
            pass
        self._client.begin()
        while (first := ahead.first()) is not None:
            if first.planned.at_s - clock() > _SPARE_S and ahead.make():
                await asyncio.sleep(0)  # answers come meanwhile
                continue
            await self._until(first.planned.at_s)
            if self._is_stopped:
                return
            while (due := ahead.first()) is not None and due.planned.at_s <= clock():
                planned, body = ahead.take()
                sent = Sent(planned.number, planned.at_s, planned.input_tokens, planned.output_tokens)
                self._begin(sent, body)

    def _ready(self) -> Iterator[_Ready]:
        for planned in self._plan.requests:
            piece = prompt_piece(
                self._material, planned.number, planned.input_tokens, planned.blocks, self._plan.block_tokens
            )
            yield _Ready(planned, self._bodies.body([Turn(piece)], planned.output_tokens))

    def _begin(self, sent: Sent, body: bytes) -> None:
        self.sent.append(sent)
        task = asyncio.create_task(self._send(sent, body, AnswerReader(self.gaps, keeps=self._keeps_answers)))
        self._tasks.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._defect = task.exception()

    async def _send(self, sent: Sent, body: bytes, reader: AnswerReader) -> None:
        await self._client.send(sent, body, reader)
        if self._keeps_answers:
            sent.answer = "".join(reader.text)
        self.num_over += 1

    async def _until(self, at_s: float) -> None:
        # The loop's timers count whole milliseconds, and may be early by half of one.
        while (left_s := at_s - self._client.clock()) > 0:  # noqa: ASYNC110 - time is all that is waited for
            await asyncio.sleep(left_s)

    # Conversations

    async def _talk(self, talks: Talks) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(talks.terms.num_clients):
                group.create_task(self._hold(talks, number))

    async def _hold(self, talks: Talks, number: int) -> None:
        """One client, until all requests are sent or the time is over."""
        client = TalkingClient(talks, self._seed, number)
        turns: list[Turn] = []
        at_s = client.think_s()
        while self._duration_s is None or at_s < self._duration_s:
            ask = client.ask()
            if ask.turn == 1:
                turns = []
            turns.append(Turn(self._asked(talks, number, ask)))
            body = self._bodies.body(turns, talks.output_tokens)
            await self._until(at_s)
            if talks.num_requests is not None and len(self.sent) >= talks.num_requests:
                return
            sent = Sent(len(self.sent) + 1, at_s, ask.prompt_tokens, talks.output_tokens)
            sent.conversation, sent.turn = f"{number}-{ask.conversation}", ask.turn
            self.sent.append(sent)
            reader = AnswerReader(self.gaps, keeps=True)
            await self._send(sent, body, reader)
            if sent.is_ok:
                turns[-1] = Turn(turns[-1].asked, self._answered(number, ask, reader))
                wait_s = client.answered(reader.output_tokens)
            else:
                wait_s = client.failed(sent.retry_after_s)
            at_s = sent.over_s + wait_s

    def _asked(self, talks: Talks, number: int, ask: Ask) -> bytes:
        new = self._material.piece((TURN, number, ask.conversation, ask.turn), ask.new_tokens)
        if ask.turn > 1 or not talks.terms.shared_tokens:
            return new
        return self._material.piece((SHARED,), talks.terms.shared_tokens) + new

    def _answered(self, number: int, ask: Ask, reader: AnswerReader) -> bytes:
        """The answer's own tokens or text; tokens that stand for it, where the server does not tell them."""
        if self._bodies.is_chat:
            return self._bodies.text("".join(reader.text))
        if reader.num_ids == reader.output_tokens:
            return answer_piece(reader.token_ids)
        self.num_without_ids += 1
        return self._material.piece((ANSWER, number, ask.conversation, ask.turn), reader.output_tokens)


async def new_prompts(client: Client, model_name: str, plan: Plan, prompt_seed: int | None = None) -> Load:
    """A plan's load at /v1/completions, with prompts of token ids; without a seed of prompts that no run had before, so
    that none is cached. Raises as `Client.look`."""
    model = await client.look(model_name)
    material = TokenMaterial(secrets.randbits(32) if prompt_seed is None else prompt_seed, DEFAULT_TOKEN_IDS)
    bodies = Bodies("completions", model, ignore_eos=True, wants_ids=False)
    return Load(client, plan, bodies, material, seed=0, duration_s=None)
