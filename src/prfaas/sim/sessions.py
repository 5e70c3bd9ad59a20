"""Closed loop: clients that hold conversations. Each asks, waits for the answer, thinks, and asks again.

A further prompt is the one before, its answer, and something new; so most of it can be cached. All conversations begin
alike, with `shared_tokens` tokens. A client that is refused begins anew when it may
ask again; one whose next prompt would be too long, at once.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from prfaas.sim.arrivals import Arrival, DrawLength
from prfaas.sim.deployment import SimulatedDeployment
from prfaas.sim.draws import exponential
from prfaas.sim.runs import Run
from prfaas.sim.simulation import Life


@dataclass(frozen=True, slots=True)
class Conversations:
    """`num_clients` hold them at a time, of `num_turns` prompts each, and think for `think_s` on average."""

    num_clients: int
    think_s: float = 0.0
    num_turns: int = 1
    shared_tokens: int = 0


@dataclass(slots=True)
class _Talk:
    """One client's conversation: `num_tokens` of it so far, the answers too."""

    client: int
    number: int = 0
    turn: int = 0
    num_tokens: int = 0
    blocks: list[bytes] = field(default_factory=list)


class Sessions(Run):
    """`num_requests` prompts, to each of which `lengths` draws what is new. No prompt is longer than `max_tokens`."""

    def __init__(
        self,
        deployment: SimulatedDeployment,
        rng: random.Random,
        lengths: DrawLength,
        terms: Conversations,
        *,
        num_output_tokens: int,
        num_requests: int,
        max_tokens: int,
        checks: bool = False,
    ) -> None:
        super().__init__(deployment, checks=checks)
        self.is_closed = True
        self._rng, self._lengths, self._terms = rng, lengths, terms
        self._num_output_tokens, self._num_left, self._max_tokens = num_output_tokens, num_requests, max_tokens
        self._block_tokens = 0 if deployment.caches is None else deployment.caches.block_tokens
        self._num_talks = 0
        self._talks: dict[int, _Talk] = {}
        self.simulation.expects_more = True
        for client in range(min(terms.num_clients, num_requests)):
            self._think(_Talk(client, turn=terms.num_turns))

    def _think(self, talk: _Talk, at_least_s: float = 0.0) -> None:
        think_s = exponential(self._rng, 1.0 / self._terms.think_s) if self._terms.think_s else 0.0
        self.simulation.kernel.after(max(think_s, at_least_s), self._ask, talk)

    def _ask(self, talk: _Talk) -> None:
        if not self._num_left:
            return
        self._num_left -= 1
        self.simulation.expects_more = self._num_left > 0
        new_tokens = self._lengths(self._rng)
        if talk.turn >= self._terms.num_turns or talk.num_tokens + new_tokens > self._max_tokens:
            self._num_talks += 1
            talk = _Talk(talk.client, self._num_talks, num_tokens=self._terms.shared_tokens)
        talk.turn += 1
        talk.num_tokens = min(talk.num_tokens + new_tokens, self._max_tokens)
        life = self.simulation.submit(
            Arrival(
                self.simulation.kernel.now_s, talk.num_tokens, self._num_output_tokens,
                tenant=f"client-{talk.client}", blocks=self._named(talk),
            )
        )  # fmt: skip
        self._talks[life.number] = talk

    def _named(self, talk: _Talk) -> tuple[bytes, ...]:
        if not self._block_tokens:
            return ()
        for index in range(len(talk.blocks), talk.num_tokens // self._block_tokens):
            is_shared = (index + 1) * self._block_tokens <= self._terms.shared_tokens
            talk.blocks.append(f"{0 if is_shared else talk.number}:{index}".encode())
        return tuple(talk.blocks)

    def _end(self, life: Life) -> None:
        super()._end(life)
        talk = self._talks.pop(life.number)
        if life.outcome == "ok":
            talk.num_tokens += life.arrival.num_output_tokens
            self._think(talk)
        else:
            talk.turn = self._terms.num_turns
            self._think(talk, life.retry_after_s or 1.0)
