"""What requests say: random tokens or words, and the JSON around them. Pure; cheap, as a server may share the machine.

Laws of this file:
- A piece depends on the prompt seed, its key and its length alone. Pieces with equal keys begin alike, so that blocks
  which a trace names twice are the same tokens each time.
- Token ids are written with leading spaces, all as wide: then a prompt is one look-up in a table, and no number is
  ever formatted. JSON allows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import orjson

from prfaas.bench.e2e.options import Endpoint
from prfaas.profiles.measure.prompts import WORDS, WordSize

#: What a key's first number says the piece is.
ALONE: Final = 0
BLOCK: Final = 1
SHARED: Final = 2
TURN: Final = 3
ANSWER: Final = 4


class Material(Protocol):
    """What prompts are made of."""

    def piece(self, key: tuple[int, ...], num_tokens: int) -> bytes:
        """A part of a prompt, as it stands in a body."""


class TokenMaterial:
    """Ids from the first to the last of `token_ids`."""

    def __init__(self, prompt_seed: int, token_ids: tuple[int, int]) -> None:
        self._seed = prompt_seed
        first, last = token_ids
        width = len(str(last))
        self._table = np.array([f"{token_id:>{width}}," for token_id in range(first, last + 1)], dtype=f"S{width + 1}")

    def piece(self, key: tuple[int, ...], num_tokens: int) -> bytes:
        """Each id with a comma behind it."""
        rng = np.random.default_rng((self._seed, *map(_natural, key)))
        return self._table[rng.integers(0, len(self._table), num_tokens)].tobytes()


class WordMaterial:
    """Common words, each with a space behind it; about as many tokens as asked for, by `size`."""

    def __init__(self, prompt_seed: int, size: WordSize) -> None:
        self._seed, self._size = prompt_seed, size

    def piece(self, key: tuple[int, ...], num_tokens: int) -> bytes:
        """All words come once, in random order, before any comes again: so pieces of as many words have almost as many
        tokens."""
        num_words = max(1, round(num_tokens / self._size.tokens_per_word))
        rng = np.random.default_rng((self._seed, *map(_natural, key)))
        rounds = -(-num_words // len(WORDS))
        order = rng.random((rounds, len(WORDS))).argsort(axis=1).ravel()[:num_words]
        return " ".join([WORDS[place] for place in order.tolist()]).encode() + b" "


@dataclass(frozen=True, slots=True)
class Turn:
    """What was asked and answered before; of the last turn nothing is answered."""

    asked: bytes
    answered: bytes = b""


class Bodies:
    """Of one run's requests. `wants_ids`: ask for the ids of an answer's tokens, to send them back."""

    def __init__(self, endpoint: Endpoint, model: str, *, ignore_eos: bool, wants_ids: bool) -> None:
        self.is_chat = endpoint == "chat"
        fields: dict[str, Any] = {
            "model": model, "stream": True, "stream_options": {"include_usage": True}, "temperature": 0.0
        }  # fmt: skip
        if ignore_eos:
            fields["ignore_eos"] = True
        if wants_ids and not self.is_chat:
            fields["return_token_ids"] = True
        self._head = orjson.dumps(fields)[:-1]

    def body(self, turns: Sequence[Turn], max_tokens: int) -> bytes:
        """Of a prompt, after everything before it."""
        if not self.is_chat:
            ids = b"".join(part for turn in turns for part in (turn.asked, turn.answered))
            return b'%b,"max_tokens":%d,"prompt":[%b]}' % (self._head, max_tokens, ids[:-1])
        said = b",".join(part for turn in turns for part in _messages(turn))
        return b'%b,"max_completion_tokens":%d,"messages":[%b]}' % (self._head, max_tokens, said)

    def text(self, answer: str) -> bytes:
        """A chat's answer, as it is sent back."""
        return orjson.dumps(answer)


def _messages(turn: Turn) -> list[bytes]:
    asked = b'{"role":"user","content":"%b"}' % turn.asked
    return [asked, b'{"role":"assistant","content":%b}' % turn.answered] if turn.answered else [asked]


def prompt_piece(material: Material, number: int, num_tokens: int, blocks: Sequence[int], block_tokens: int) -> bytes:
    """The prompt of a request that stands alone: its blocks, the last of which may be cut short, and what no block
    names."""
    parts = []
    left = num_tokens
    for block in blocks:
        parts.append(material.piece((BLOCK, block), min(block_tokens, left)))
        left -= min(block_tokens, left)
    if left:
        parts.append(material.piece((ALONE, number), left))
    return b"".join(parts)


def answer_piece(token_ids: Sequence[int]) -> bytes:
    """Ids that a server gave, as they are sent back."""
    return b"".join([b"%d," % token_id for token_id in token_ids])


def _natural(number: int) -> int:
    """A seed has no sign; a trace's ids may have one."""
    return 2 * number if number >= 0 else -2 * number - 1
