"""A prompt's tokens as bytes: the one form that gateway and engines hash, so that they mean the same prompt."""

from __future__ import annotations

import hashlib
import struct
import sys
from array import array
from collections.abc import Sequence


def pack_tokens(token_ids: Sequence[int]) -> bytes:
    """Token ids as little-endian uint32, the form that is hashed. Raises OverflowError for ids outside it."""
    packed = array("I", token_ids)
    if packed.itemsize != 4:  # pragma: no cover - no supported platform has another size
        return struct.pack(f"<{len(token_ids)}I", *token_ids)
    if sys.byteorder == "big":  # pragma: no cover
        packed.byteswap()
    return packed.tobytes()


def token_digest(packed_tokens: bytes) -> str:
    """Hex SHA-256: the `token_digest` of docs/protocols.md."""
    return hashlib.sha256(packed_tokens).hexdigest()
