"""Where the next turn of a conversation runs, by what the decode engine's layout keeps of the last one."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest
import yaml

import prfaas
from prfaas.core.cache.engine_cache import EngineCache
from prfaas.core.cache.hashing import TokenChain, chain_tokens, pack_tokens
from prfaas.core.control.route import RouteKind
from prfaas.core.control.router import Candidate, RequestFacts, RoutePolicy, decide
from prfaas.core.model.hf_config import cache_size_of
from prfaas.core.model.layout import KVGroupKind

FULL, WINDOW, STATE = KVGroupKind.FULL_ATTENTION, KVGroupKind.SLIDING_WINDOW, KVGroupKind.LINEAR_STATE
PROFILES = Path(prfaas.__file__).parent / "profiles" / "models"
BLOCK_TOKENS: Final = 16
THRESHOLD_TOKENS: Final = 16_384


def of_profile(name: str) -> list[KVGroupKind]:
    """Kinds of the groups of a shipped model profile."""
    config = yaml.safe_load((PROFILES / f"{name}.yaml").read_text(encoding="utf-8"))["hf_config"]
    return [group.kind for group in cache_size_of(config).groups]


#: Models whose config.json does not say "linear_attention" or "mamba" anywhere, and which keep recurrent state.
#: LFM2's short convolutions and RecurrentGemma's RG-LRU are registered as state, as Mamba's is.
RECURRENT = {
    "kimi-linear-48b": of_profile("kimi-linear-48b"),
    "ring-2.5-1t": of_profile("ring-2.5-1t"),
    "minimax-text-01": [STATE, FULL],
    "lfm2": [STATE, FULL],
    "recurrentgemma": [STATE, WINDOW],
}


def chain(num_tokens: int) -> TokenChain:
    """A prompt that begins like every longer one."""
    return chain_tokens(pack_tokens(range(num_tokens)), BLOCK_TOKENS, "seed")


def follow_up(cache: EngineCache) -> tuple[RouteKind, int | None]:
    """Route and uncached tokens of a prompt of 30,200 tokens, of which the first 30,000 were a prompt before."""
    decode = Candidate("pd-0", "pd", True, True, 0, cache.match(chain(30_200)))
    prefill = Candidate("prfaas-0", "prfaas", True, True, 0)
    route = decide(
        RequestFacts(30_200, None), RoutePolicy(True, THRESHOLD_TOKENS), [decode], lambda kind, name: [prefill]
    )
    return route.kind, route.num_uncached_tokens


@pytest.mark.parametrize("model", RECURRENT)
def test_after_a_landing_a_recurrent_model_has_the_whole_prompt_to_compute(model: str) -> None:
    """The state that came stands in the middle of a block, where no later prompt can start: of 30,200 tokens none is
    cached, whatever attention blocks there are, and the decode cluster must not be left with them."""
    cache = EngineCache(10_000)
    cache.observe_kinds(RECURRENT[model])
    cache.landed(chain(30_000))
    assert follow_up(cache) == (RouteKind.REMOTE, 30_200)


def test_after_a_local_run_it_starts_from_the_last_block() -> None:
    """Which a local run leaves a state at: (30,000 - 1) // 16 blocks."""
    cache = EngineCache(10_000)
    cache.observe_kinds(of_profile("kimi-linear-48b"))
    cache.ran_locally(chain(30_000))
    assert follow_up(cache) == (RouteKind.LOCAL, 30_200 - 29_984)


def test_a_model_without_state_starts_where_the_landing_ended() -> None:
    """Attention blocks are enough for it."""
    cache = EngineCache(10_000)
    cache.observe_kinds(of_profile("qwen3-235b"))
    cache.landed(chain(30_000))
    assert follow_up(cache) == (RouteKind.LOCAL, 30_200 - 29_984)


def test_until_an_engine_has_registered_its_whole_prompt_counts() -> None:
    """Nothing is promised on a guess."""
    cache = EngineCache(10_000)
    cache.landed(chain(30_000))
    assert follow_up(cache) == (RouteKind.REMOTE, 30_200)
