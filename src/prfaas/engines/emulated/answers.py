"""What an emulated engine answers: tokens that are a function of the prompt, and of the KVCache that it is answered
from. A wrong, missing or stale block shows as a wrong token."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from typing import Final

#: Bytes of one draw: a token is chosen among at most 65,536.
_DRAW: Final = 2


def seed_of(whole_name: bytes, wrong: Collection[str]) -> bytes:
    """Of an answer to the prompt whose tokens have this name, from a KVCache with these wrong parts."""
    return hashlib.sha256(whole_name + "\n".join(sorted(wrong)).encode()).digest()


def answer_tokens(seed: bytes, num_tokens: int, alphabet: Sequence[int]) -> list[int]:
    """The first `num_tokens`; more of them begin with the same ones."""
    draws = hashlib.shake_128(seed).digest(_DRAW * num_tokens)
    return [
        alphabet[int.from_bytes(draws[index : index + _DRAW], "little") % len(alphabet)]
        for index in range(0, len(draws), _DRAW)
    ]
