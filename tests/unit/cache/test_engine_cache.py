"""The prefix record against a plain model of an engine's cache."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from prfaas.core.cache.engine_cache import NO_MATCH, EngineCache, PrefixMatch
from prfaas.core.cache.hashing import TokenChain, chain_tokens, pack_tokens, token_digest
from prfaas.core.model.layout import KVGroupKind

BLOCK = 4


FULL, WINDOW, STATE = KVGroupKind.FULL_ATTENTION, KVGroupKind.SLIDING_WINDOW, KVGroupKind.LINEAR_STATE


def cache_of(*kinds: KVGroupKind, max_blocks: int = 100) -> EngineCache:
    """The record of an engine that registered these kinds of KV groups."""
    cache = EngineCache(max_blocks)
    cache.observe_kinds(kinds)
    return cache


def chain(tokens: list[int], salt: str = "") -> TokenChain:
    """A chain with the tests' block size."""
    return chain_tokens(pack_tokens(tokens), BLOCK, "seed", salt)


def test_tokens_are_little_endian_uint32_and_the_digest_is_their_sha256() -> None:
    """Both ends of the protocol compute the same digest."""
    assert pack_tokens([1, 258]) == bytes([1, 0, 0, 0, 2, 1, 0, 0])
    assert token_digest(pack_tokens([1, 258])) == hashlib.sha256(bytes([1, 0, 0, 0, 2, 1, 0, 0])).hexdigest()
    with pytest.raises(OverflowError):
        pack_tokens([1 << 32])


def test_only_full_blocks_are_named_and_names_chain() -> None:
    """A block's name depends on everything before it, on the seed and on the salt."""
    a, b = chain([1] * 10), chain([1] * 4 + [2] * 4)
    assert (a.num_tokens, len(a.hashes)) == (10, 2)
    assert a.hashes[0] == b.hashes[0]
    assert a.hashes[1] != b.hashes[1]
    assert a.hashes[0] != a.hashes[1]
    assert a.hashes[0] != chain([1] * 10, "tenant").hashes[0]
    assert a.hashes[0] != chain_tokens(pack_tokens([1] * 10), BLOCK, "other", "").hashes[0]
    # Seed and salt cannot run into each other.
    assert chain_tokens(b"\0" * 16, BLOCK, "ab", "c").hashes != chain_tokens(b"\0" * 16, BLOCK, "a", "bc").hashes


@pytest.mark.parametrize(
    ("num_tokens", "state_at"), [(1, 0), (3, 0), (4, 0), (5, 4), (7, 4), (8, 4), (9, 8), (12, 8), (13, 12)]
)
def test_a_local_run_leaves_one_state_at_the_last_full_block_before_its_last_token(
    num_tokens: int, state_at: int
) -> None:
    """floor((N - 1) / block) blocks."""
    record = cache_of(FULL, STATE)
    tokens = list(range(num_tokens))
    record.ran_locally(chain(tokens))
    longer = chain([*tokens, *range(1000, 1020)])
    assert record.match(longer) == PrefixMatch(num_tokens // BLOCK * BLOCK, state_at, num_tokens // BLOCK * BLOCK)


def test_an_offloaded_run_leaves_attention_blocks_but_no_state() -> None:
    """So it helps the wire, and does not help a local run of a recurrent model."""
    tokens = list(range(20))
    recurrent, plain = cache_of(FULL, STATE), cache_of(FULL)
    for record in (recurrent, plain):
        record.landed(chain(tokens))
    longer = chain([*tokens, 7, 7, 7, 7])
    assert recurrent.match(longer) == PrefixMatch(16, 0, 16)
    assert plain.match(longer) == PrefixMatch(16, 16, 16)


def test_a_landing_brings_only_the_window_at_its_own_end() -> None:
    """With sliding windows, a prompt that leaves an offloaded one in its middle cannot start there."""
    tokens = list(range(20))
    record = cache_of(FULL, WINDOW)
    record.landed(chain(tokens))
    assert record.match(chain([*tokens[:9], 99, 99, 99, 99])) == PrefixMatch(8, 0, 0)
    assert record.match(chain([*tokens, 7, 7, 7, 7])) == PrefixMatch(16, 16, 16)
    record.ran_locally(chain(tokens))
    assert record.match(chain([*tokens[:9], 99, 99, 99, 99])) == PrefixMatch(8, 8, 8)


def test_a_prefix_leaves_at_least_one_token_to_compute() -> None:
    """The whole prompt is never a prefix of itself."""
    record = cache_of(FULL)
    record.ran_locally(chain([5] * 8))
    assert record.match(chain([5] * 8)).reusable_prefix_tokens == 4


def test_a_new_boot_id_empties_the_record() -> None:
    """A restarted engine holds nothing."""
    record = cache_of(FULL)
    assert record.observe_boot("a")
    record.observe_kinds([FULL])
    record.ran_locally(chain([1] * 9))
    assert not record.observe_boot("a")
    assert record.match(chain([1] * 9)) != NO_MATCH
    assert record.observe_boot("b")
    record.observe_kinds([FULL])
    assert record.match(chain([1] * 9)) == NO_MATCH


@pytest.mark.parametrize("kinds", [(), ("chunked_attention", FULL)])
def test_an_engine_of_unknown_kinds_promises_nothing(kinds: tuple[str, ...]) -> None:
    """Nobody has said what it keeps, or it keeps what this version does not know. What it ran meanwhile is not
    remembered: how much of it can be used is not known either."""
    record = EngineCache(100)
    record.observe_kinds(kinds)
    record.ran_locally(chain([1] * 9))
    record.landed(chain([1] * 9))
    assert (record.match(chain([1] * 9)), len(record)) == (NO_MATCH, 0)
    record.observe_kinds([FULL])
    assert record.match(chain([1] * 9)) == NO_MATCH
    record.ran_locally(chain([1] * 9))
    assert record.match(chain([1] * 9)) == PrefixMatch(8, 8, 8)


def test_another_life_of_an_engine_may_have_another_layout() -> None:
    """So its kinds must be told anew; the same ones told again change nothing."""
    record = cache_of(FULL)
    record.observe_boot("a")
    record.ran_locally(chain([1] * 9))
    assert record.match(chain([1] * 9)) == NO_MATCH
    record.observe_kinds([FULL, STATE])
    record.ran_locally(chain([1] * 9))
    record.observe_kinds([STATE, FULL, FULL])
    assert record.match(chain([1] * 9)) == PrefixMatch(8, 8, 8)
    record.observe_kinds([FULL])
    assert record.match(chain([1] * 9)) == NO_MATCH


def test_eviction_takes_the_longest_chains_ends_first() -> None:
    """The root outlives its leaves."""
    record = cache_of(FULL, max_blocks=3)
    record.ran_locally(chain([1] * 9))
    record.ran_locally(chain([2] * 9))
    assert record.match(chain([2] * 9)).attention_prefix_tokens == 8
    assert record.match(chain([1] * 9)).attention_prefix_tokens == 4
    record.ran_locally(chain([3] * 100))
    assert len(record) == 3
    assert record.match(chain([3] * 100)).attention_prefix_tokens == 12


def test_what_an_engine_lacks_is_gone_with_all_that_was_used_before_it() -> None:
    """What was used since is kept, and the prompt's blocks before the first that is missing."""
    record = cache_of(FULL, max_blocks=100)
    for first in (1, 2, 3):
        record.ran_locally(chain([first] * 13))
    record.lacked(chain([2] * 13), 4)
    held = [record.match(chain([first] * 13)).attention_prefix_tokens for first in (1, 2, 3)]
    assert held == [0, 4, 12]


def test_a_record_learns_how_much_an_engine_keeps() -> None:
    """An engine of eight blocks, under prompts of three each: after two mistakes the record is no longer than the
    engine's, and it grows by one block for 256 that the engine took in."""
    record, real = cache_of(FULL, max_blocks=10_000), cache_of(FULL, max_blocks=8)
    prompts = [chain([number] * 13) for number in range(1, 400)]
    for prompt in prompts[:100]:
        record.ran_locally(prompt)
        real.ran_locally(prompt)
    assert len(record) == 300
    record.lacked(prompts[90], real.match(prompts[90]).attention_prefix_tokens)
    assert len(record) <= 27
    record.lacked(prompts[97], real.match(prompts[97]).attention_prefix_tokens)
    assert len(record) <= 8
    for prompt in prompts[100:]:
        record.ran_locally(prompt)
    assert 4 <= len(record) <= 8


def test_what_is_not_known_cannot_be_lacked() -> None:
    """A prompt that the record does not have, or has less of."""
    record = cache_of(FULL, max_blocks=10)
    record.landed(chain([1] * 9))
    record.lacked(chain([2] * 9), 0)
    record.lacked(chain([1] * 30), 8)
    assert record.match(chain([1] * 9)).attention_prefix_tokens == 8


class RecordModel(RuleBasedStateMachine):
    """Any order of events, against sets of token prefixes. Room is ample, so nothing is evicted."""

    prompts = st.lists(st.integers(0, 1), min_size=1, max_size=20)

    def __init__(self) -> None:
        super().__init__()
        self.record = cache_of(FULL, STATE, max_blocks=10_000)
        self.blocks: set[tuple[int, ...]] = set()
        self.states: set[tuple[int, ...]] = set()

    @rule(tokens=prompts)
    def ran(self, tokens: list[int]) -> None:
        self.record.ran_locally(chain(tokens))
        self.blocks |= {tuple(tokens[:end]) for end in range(BLOCK, len(tokens) + 1, BLOCK)}
        state = tuple(tokens[: (len(tokens) - 1) // BLOCK * BLOCK])
        self.states |= {state} - {()}

    @rule(tokens=prompts)
    def landed(self, tokens: list[int]) -> None:
        self.record.landed(chain(tokens))
        self.blocks |= {tuple(tokens[:end]) for end in range(BLOCK, len(tokens), BLOCK)}

    @rule(tokens=prompts)
    def restart(self, tokens: list[int]) -> None:
        self.record.observe_boot(str(tokens))
        self.record.observe_kinds([FULL, STATE])
        if not self.record:
            self.blocks, self.states = set(), set()

    @rule(tokens=prompts)
    def match(self, tokens: list[int]) -> None:
        match = self.record.match(chain(tokens))
        held, reusable = 0, 0
        for end in range(BLOCK, len(tokens), BLOCK):
            if tuple(tokens[:end]) not in self.blocks:
                break
            held = end
            reusable = end if tuple(tokens[:end]) in self.states else reusable
        assert match == PrefixMatch(held, reusable, held)
        assert match.reusable_prefix_tokens <= match.attention_prefix_tokens < len(tokens)

    @invariant()
    def holds(self) -> None:
        self.record.check()


TestRecordModel = RecordModel.TestCase


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=30), max_size=30), st.integers(1, 5))
def test_the_bound_holds_for_any_history(prompts: list[list[int]], max_blocks: int) -> None:
    """However many prompts come."""
    record = cache_of(FULL, max_blocks=max_blocks)
    for index, tokens in enumerate(prompts):
        (record.ran_locally if index % 2 else record.landed)(chain(tokens))
        record.check()
