"""A prompt in tokens, and in named blocks."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from prfaas.core.cache.hashing import TokenChain, chain_tokens, pack_tokens, token_digest


@dataclass(slots=True)
class PromptTokens:
    """Empty until it is counted, and for ever if that cannot be done."""

    token_ids: list[int] = field(default_factory=list)
    packed: bytes = b""

    def take(self, token_ids: list[int]) -> None:
        self.token_ids, self.packed = token_ids, pack_tokens(token_ids)

    def chains(self, block_sizes: Collection[int], seed: str, salt: str) -> dict[int, TokenChain]:
        """By block size in tokens. `salt` separates tenants, `seed` deployments."""
        return {size: chain_tokens(self.packed, size, seed, salt) for size in block_sizes}

    @property
    def digest(self) -> str:
        return token_digest(self.packed)
