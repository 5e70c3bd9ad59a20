"""One client that holds conversations: how long it thinks, and what it asks next. Pure.

As in `prfaas simulate`: a further prompt is the one before, its answer, and something new. Every client draws by
itself, so that what it asks does not depend on how fast others are answered.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from prfaas.bench.e2e.plan import Talks

#: A client that is refused and not told when to come back waits for so long before it begins anew.
AFTER_REFUSAL_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Ask:
    """The next prompt: `new_tokens` after the conversation so far, which is empty but for the shared tokens if
    `turn` is 1."""

    conversation: int
    turn: int
    new_tokens: int
    prompt_tokens: int


class TalkingClient:
    """`ask`, then `answered` or `failed`, each of which says for how long it thinks."""

    def __init__(self, talks: Talks, seed: int, client: int) -> None:
        self._talks = talks
        self._rng = random.Random(f"{seed}/{client}")
        self._conversation = 0
        self._turn = 0
        self._num_tokens = 0

    def ask(self) -> Ask:
        """Begins a new conversation after the last turn, or where the prompt would become too long."""
        talks = self._talks
        new_tokens = talks.lengths(self._rng)
        too_long = talks.max_tokens is not None and self._num_tokens + new_tokens > talks.max_tokens
        if self._turn in (0, talks.terms.num_turns) or too_long:
            self._conversation += 1
            self._turn, self._num_tokens = 0, talks.terms.shared_tokens
        self._turn += 1
        if talks.max_tokens is not None:
            new_tokens = max(1, min(new_tokens, talks.max_tokens - self._num_tokens))
        self._num_tokens += new_tokens
        return Ask(self._conversation, self._turn, new_tokens, self._num_tokens)

    def answered(self, output_tokens: int) -> float:
        """Seconds until the next prompt; the answer is in it."""
        self._num_tokens += output_tokens
        return self.think_s()

    def failed(self, retry_after_s: float | None) -> float:
        """Seconds until it begins a new conversation."""
        self._turn = 0
        return max(self.think_s(), AFTER_REFUSAL_S if retry_after_s is None else retry_after_s)

    def think_s(self) -> float:
        """Drawn; also before the first prompt, so that not all come at once."""
        mean_s = self._talks.terms.think_s
        return self._rng.expovariate(1.0 / mean_s) if mean_s else 0.0
