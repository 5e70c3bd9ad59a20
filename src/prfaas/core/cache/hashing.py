"""A prompt's tokens as bytes and as named blocks: the one form that gateway and engines hash."""

from __future__ import annotations

import hashlib
import struct
import sys
from array import array
from collections.abc import Sequence

from prfaas.core.record import record


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


@record
class TokenChain:
    """A prompt cut into full blocks: `hashes[i]` names tokens [0, (i + 1) * block_tokens)."""

    num_tokens: int
    block_tokens: int
    hashes: tuple[bytes, ...]


def chain_tokens(packed_tokens: bytes, block_tokens: int, seed: str, salt: str = "") -> TokenChain:
    """Name every full block of a prompt. `salt` separates tenants (`cache_salt`), `seed` deployments."""
    if block_tokens <= 0:
        raise ValueError(f"block_tokens must be positive, got {block_tokens}")
    name = hashlib.sha256(f"{len(seed)}:{seed}{salt}".encode("utf-8", "surrogatepass")).digest()
    width = 4 * block_tokens
    num_blocks = len(packed_tokens) // width
    view = memoryview(packed_tokens)
    hashes: list[bytes] = []
    for index in range(num_blocks):
        digest = hashlib.sha256(name)
        digest.update(view[index * width : (index + 1) * width])
        name = digest.digest()
        hashes.append(name)
    return TokenChain(len(packed_tokens) // 4, block_tokens, tuple(hashes))
