"""Prefix caches of simulated engines: what they really hold, which is less than the scheduler believes.

The rules of a prefix are those of `core/cache/engine_cache`, for every kind of KV group. The scheduler's own record
follows what requests did; it does not see what an engine has thrown away since.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from prfaas.core.cache.engine_cache import NO_MATCH, EngineCache, PrefixMatch
from prfaas.core.cache.hashing import TokenChain
from prfaas.core.model.curve import Curve
from prfaas.core.model.layout import KVGroupKind

NO_CHAINS: Final[Mapping[int, TokenChain]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class CacheProfile:
    """An instance keeps at most as many blocks of `block_tokens` tokens as `max_blocks` says, by cluster, of KV groups
    of these `kinds`. What running requests occupy is not taken from it."""

    block_tokens: int
    max_blocks: Mapping[str, int]
    kinds: frozenset[KVGroupKind]


def kinds_of(kv_bytes: Curve) -> frozenset[KVGroupKind]:
    """Of a model whose KVCache has this size: what it has without a token is state, and what stops growing, windows."""
    slopes = [piece.c1 for piece in kv_bytes.pieces]
    found = {KVGroupKind.FULL_ATTENTION} if slopes[-1] > 0 else set()
    if kv_bytes.at(0.0) > 0:
        found.add(KVGroupKind.LINEAR_STATE)
    if slopes[-1] < slopes[0]:
        found.add(KVGroupKind.SLIDING_WINDOW)
    return frozenset(found)


class PrefixCaches:
    """Of all instances of one simulation; without a profile nothing is ever held."""

    def __init__(self, profile: CacheProfile | None) -> None:
        self.profile = profile
        self._caches: dict[str, EngineCache] = {}
        self._num_boots = 0

    def boot(self, instance: str, cluster: str) -> None:
        """Its engine begins a new life, with an empty cache."""
        if self.profile is None:
            return
        self._num_boots += 1
        cache = self._caches[instance] = EngineCache(self.profile.max_blocks[cluster])
        cache.observe_boot(f"boot-{self._num_boots}")
        cache.observe_kinds(self.profile.kinds)

    def boot_id(self, instance: str) -> str | None:
        cache = self._caches.get(instance)
        return None if cache is None else cache.boot_id

    def chains(self, num_tokens: int, blocks: tuple[bytes, ...]) -> Mapping[int, TokenChain]:
        """Of a prompt whose full blocks have these names, by block size."""
        if self.profile is None:
            return NO_CHAINS
        block_tokens = self.profile.block_tokens
        return {block_tokens: TokenChain(num_tokens, block_tokens, blocks[: num_tokens // block_tokens])}

    def match(self, instance: str, chains: Mapping[int, TokenChain]) -> PrefixMatch:
        """What of this prompt the engine holds now."""
        if self.profile is None:
            return NO_MATCH
        return self._caches[instance].match(chains[self.profile.block_tokens])

    def can_send(self, instance: str, chains: Mapping[int, TokenChain], num_tokens: int) -> bool:
        """Whether the engine holds this prefix, with all that another one needs to start at its end."""
        if self.profile is None:
            return False
        block_tokens = self.profile.block_tokens
        # A prompt of one token more, so that the whole prefix may be used.
        names = chains[block_tokens].hashes[: num_tokens // block_tokens]
        prefix = TokenChain(num_tokens + 1, block_tokens, names)
        return self._caches[instance].match(prefix).reusable_prefix_tokens == num_tokens

    def fetched(self, instance: str, chains: Mapping[int, TokenChain], num_tokens: int) -> None:
        """The engine has got this prefix from another one."""
        if self.profile is not None:
            self._caches[instance].fetched(chains[self.profile.block_tokens], num_tokens)

    def computed(self, instance: str, chains: Mapping[int, TokenChain]) -> None:
        """The engine has computed this prompt."""
        if self.profile is not None:
            self._caches[instance].ran_locally(chains[self.profile.block_tokens])

    def loaded(self, instance: str, chains: Mapping[int, TokenChain]) -> None:
        """The engine has loaded this prompt's KVCache."""
        if self.profile is not None:
            self._caches[instance].landed(chains[self.profile.block_tokens])
