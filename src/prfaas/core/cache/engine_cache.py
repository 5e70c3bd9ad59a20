"""What one decode engine's prefix cache holds, as far as the gateway saw it happen. A hint, never authority.

Laws of this file:
- A block is named by the chain of hashes before it: equal names mean equal tokens from the prompt's first on. Seed and
  salt enter at the root, so deployments and tenants that differ in them share nothing.
- A prefix is shorter than the prompt by at least one token, because the engine must compute one to sample from.
- Attention blocks are useful alone. Recurrent state is useful only as a snapshot at exactly the prefix's end: a local
  run of N tokens leaves one at floor((N - 1) / block) blocks; an offloaded run leaves none, since the state that came
  over the wire stands in the middle of a block. It need not: every landing brings the state, so attention blocks alone
  may be left out of one.
- A sliding window must be held at the prefix's end. A local run leaves windows at every block; an offloaded run only
  at its own end, and no landing brings the window of an earlier place.
- Which of these an engine keeps is what it registered with its node, never what its model's name or config suggests.
  Until all kinds of its KV groups are known, it counts as holding nothing.
- A restarted engine holds nothing: another boot id empties the record, and its layout must be told anew.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import Final, Protocol

from prfaas.core.cache.hashing import TokenChain
from prfaas.core.model.layout import KVGroupKind
from prfaas.core.record import record


@record
class PrefixMatch:
    """Lengths of a prompt's known prefix, both multiples of the block size and less than the prompt.

    `attention_prefix_tokens`: the longest chain of attention blocks held. `reusable_prefix_tokens`: the longest prefix
    valid in every KV group, which is what an engine can start from without being sent anything. `skippable_tokens`:
    the longest prefix that a landing may leave out, because it brings what else is needed.
    """

    attention_prefix_tokens: int
    reusable_prefix_tokens: int
    skippable_tokens: int


NO_MATCH = PrefixMatch(0, 0, 0)

#: Of what was used since the first block that an engine lacks, as much is believed from then on; and it is believed to
#: keep more again by this share of what it took in since. A mistake costs the decode side a whole prompt, caution a few
#: bytes that cross: with 1 and 1/16 the simulator answers half as many requests where caches hold a few prompts.
_KEPT_LEFT: Final = 0.5
_KEPT_GROWS: Final = 1 / 256

_KNOWN = frozenset(KVGroupKind)
_ATTENTION_ALONE = frozenset({KVGroupKind.FULL_ATTENTION})


class Roots(Protocol):
    """Hears of first blocks of prompts: most prompts share not even that with what an engine holds."""

    def add(self, name: bytes) -> None:
        """It is held now. Perhaps it was before."""

    def drop(self, name: bytes) -> None:
        """This block, first or not, is held no more."""


class EngineCache:
    """One engine's known blocks, least recently used first out: at most `max_blocks`, and no more than it seems to keep
    (see `lacked`)."""

    def __init__(self, max_blocks: int, roots: Roots | None = None) -> None:
        if max_blocks <= 0:
            raise ValueError(f"max_blocks must be positive, got {max_blocks}")
        self._max_blocks = max_blocks
        #: As many as the engine seems to keep, which is learned from what it turned out not to have.
        self._kept_blocks = float(max_blocks)
        #: Is told which prompts' first blocks are held here.
        self._roots = roots
        self._kinds: frozenset[str] = frozenset()
        self._boot_id: str | None = None
        #: block name -> whether everything but attention is there too at its end; oldest first
        self._blocks: OrderedDict[bytes, bool] = OrderedDict()

    def __len__(self) -> int:
        return len(self._blocks)

    @property
    def boot_id(self) -> str | None:
        """Which life of the engine the record is of."""
        return self._boot_id

    def observe_boot(self, boot_id: str | None) -> bool:
        """Tell the record which life of the engine is current. Returns True if that emptied it."""
        if boot_id == self._boot_id:
            return False
        self._boot_id = boot_id
        self._kinds = frozenset()
        self._clear()
        return True

    def observe_kinds(self, kinds: Collection[str]) -> None:
        """The kinds of KV groups in the layout that the engine registered. One that is not known here, of a newer node,
        is as good as no word: what such a group needs of a prefix cannot be told."""
        known = frozenset(kinds) if all(kind in _KNOWN for kind in kinds) else frozenset()
        if known != self._kinds:
            self._kinds = known
            self._clear()

    def match(self, chain: TokenChain) -> PrefixMatch:
        """Known prefix of a prompt. Changes nothing; a use is reported by `ran_locally` or `landed`."""
        held, reusable = 0, 0
        blocks, needs_no_state = self._blocks, self._kinds == _ATTENTION_ALONE
        for name in chain.hashes[: _usable_blocks(chain)]:
            has_state = blocks.get(name)
            if has_state is None:
                break
            held += 1
            if has_state:
                reusable = held
        if needs_no_state:
            reusable = held
        skippable = reusable if KVGroupKind.SLIDING_WINDOW in self._kinds else held
        return PrefixMatch(held * chain.block_tokens, reusable * chain.block_tokens, skippable * chain.block_tokens)

    def ran_locally(self, chain: TokenChain) -> None:
        """The engine computed this whole prompt (or reused what it had)."""
        self._hold(chain.hashes)
        usable = chain.hashes[: _usable_blocks(chain)]
        self._complete(usable[-1:] if KVGroupKind.LINEAR_STATE in self._kinds else usable)

    def landed(self, chain: TokenChain) -> None:
        """The engine loaded N - 1 tokens of this prompt from its node."""
        usable = chain.hashes[: _usable_blocks(chain)]
        self._hold(usable)
        if KVGroupKind.LINEAR_STATE not in self._kinds:
            self._complete(usable[-1:])

    def fetched(self, chain: TokenChain, num_tokens: int) -> None:
        """The engine got the first `num_tokens` of this prompt, whole blocks, with all that it needs to start there."""
        names = chain.hashes[: num_tokens // chain.block_tokens]
        self._hold(names)
        self._complete(names[-1:])

    def lacked(self, chain: TokenChain, held_tokens: int) -> None:
        """The engine turned out to hold no more than `held_tokens` of this prompt. It throws out first what was used
        least recently: so what was used before the first block that it lacks is gone as well, and it keeps less than
        what was used since."""
        first = chain.hashes[held_tokens // chain.block_tokens :][:1]
        if not first or first[0] not in self._blocks:
            return
        name = None
        while name != first[0]:
            name, _ = self._blocks.popitem(last=False)
            self._gone(name)
        self._kept_blocks = max(1.0, len(self._blocks) * _KEPT_LEFT)

    def check(self) -> None:
        """Invariants, for tests."""
        assert len(self._blocks) <= self._max_blocks, len(self._blocks)

    def _complete(self, names: Sequence[bytes]) -> None:
        for name in names:
            if name in self._blocks:
                self._blocks[name] = True

    def _hold(self, names: Sequence[bytes]) -> None:
        if not self._kinds:
            return
        # Last block first: a chain is worth nothing without its root, so the root must be the last to be evicted.
        num_before = len(self._blocks)
        for name in reversed(names[: self._max_blocks]):
            self._blocks[name] = self._blocks.get(name, False)
            self._blocks.move_to_end(name)
        num_new = len(self._blocks) - num_before
        self._kept_blocks = min(self._max_blocks, self._kept_blocks + num_new * _KEPT_GROWS)
        if names and self._roots is not None:
            self._roots.add(names[0])
        while len(self._blocks) > self._kept_blocks and len(self._blocks) > 1:
            name, _ = self._blocks.popitem(last=False)
            self._gone(name)

    def _clear(self) -> None:
        blocks, self._blocks = self._blocks, OrderedDict()
        for name in blocks:
            self._gone(name)

    def _gone(self, name: bytes) -> None:
        if self._roots is not None:
            self._roots.drop(name)


def _usable_blocks(chain: TokenChain) -> int:
    return max(0, chain.num_tokens - 1) // chain.block_tokens
