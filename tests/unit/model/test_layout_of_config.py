"""Layouts from config.json, against sizes from the same config: two readers that must not disagree."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas.core.model.cache_size import CacheGroup
from prfaas.core.model.hf_config import BadModelConfig, UnknownArchitecture, cache_size_of
from prfaas.core.model.layout import KVGroupKind, KVLayout
from prfaas.core.model.layout_of_config import layout_of_config
from tests.unit.model.test_hf_config import CASES, FALCON_H1, GPT_OSS, KIMI, LLAMA, ZOO_SIZES, Config, zoo

MAX_TOKENS = 1 << 20
#: Every kind of attention, and every model of the zoo; layers that keep two caches have no layout.
CONFIGS: dict[str, Config] = {
    **{name: config for name, (config, _) in CASES.items() if config is not FALCON_H1},
    **{name: zoo(name) for name in ZOO_SIZES},
}
configs = st.sampled_from(sorted(CONFIGS)).map(CONFIGS.__getitem__)


def held(group: CacheGroup, num_tokens: int) -> int:
    """Bytes of a group that cross after `num_tokens` tokens. Of a window, what the next token sees: it is one of the
    window itself, so there is one place less than the size counts."""
    if group.kind is not KVGroupKind.SLIDING_WINDOW:
        return int(group.bytes_at(num_tokens))
    return group.num_layers * group.bytes_per_token * min(num_tokens, group.window_tokens - 1)


@given(configs, st.integers(2, MAX_TOKENS))
def test_an_image_has_the_bytes_of_the_cache(config: Config, num_tokens: int) -> None:
    """With pages of one token, all of what decode needs crosses and nothing else."""
    image = layout_of_config(config, block_tokens=1, max_model_tokens=MAX_TOKENS).image(num_tokens)
    assert image.num_bytes == sum(held(group, num_tokens - 1) for group in cache_size_of(config).groups)


@given(configs, st.integers(2, MAX_TOKENS), st.integers(1, 8), st.integers(1, 256))
def test_pages_and_blocks_only_round_up(
    config: Config, num_tokens: int, pages_per_block: int, page_tokens: int
) -> None:
    """By less than a page at an attention layer's end, and by less than a block at a window's beginning."""
    block_tokens = pages_per_block * page_tokens
    layout = layout_of_config(config, block_tokens=block_tokens, page_tokens=page_tokens, max_model_tokens=MAX_TOKENS)
    extra = layout.image(num_tokens).num_bytes
    limit = 0
    for group in cache_size_of(config).groups:
        extra -= held(group, num_tokens - 1)
        slides = group.kind is KVGroupKind.SLIDING_WINDOW
        limit += group.num_layers * group.bytes_per_token * (page_tokens - 1 + (block_tokens - 1 if slides else 0))
    assert 0 <= extra <= limit


@pytest.mark.parametrize("name", CONFIGS)
def test_every_layer_is_where_the_size_counts_it(name: str) -> None:
    """Kinds, layers, windows and states are taken over group by group."""
    layout = layout_of_config(CONFIGS[name], block_tokens=64, max_model_tokens=MAX_TOKENS)
    for ours, theirs in zip(layout.groups, cache_size_of(CONFIGS[name]).groups, strict=True):
        assert (ours.kind, ours.layers, ours.window_tokens) == (theirs.kind, theirs.layers, theirs.window_tokens)
        assert (ours.page_bytes, ours.state_bytes) == (64 * theirs.bytes_per_token, theirs.state_bytes)


def test_number_formats_are_arguments() -> None:
    """As for sizes: fp8 halves attention, bfloat16 the state."""

    def layout(**dtypes: str) -> tuple[int, int]:
        attention, state = layout_of_config(KIMI, block_tokens=16, max_model_tokens=64, **dtypes).groups
        return attention.page_bytes, state.state_bytes

    assert layout() == (16 * 1152, 2_170_880)
    assert layout(cache_dtype="fp8") == (16 * 576, 2_170_880)
    assert layout(state_dtype="bfloat16") == (16 * 1152, 32 * 128 * 128 * 2 + 3 * 3 * 4096 * 2)


def test_engines_of_different_models_do_not_exchange_images() -> None:
    """Equal shapes are not enough: the config is part of the fingerprint; context length is each engine's own."""

    def fingerprint(config: Config, max_model_tokens: int = 64) -> str:
        return layout_of_config(config, block_tokens=16, max_model_tokens=max_model_tokens).fingerprint

    assert fingerprint(LLAMA) == fingerprint(dict(LLAMA), 128)
    assert fingerprint(LLAMA) != fingerprint({**LLAMA, "rope_theta": 1})
    assert fingerprint(LLAMA) != fingerprint(GPT_OSS)


def test_layers_with_two_caches_are_refused() -> None:
    """Falcon-H1 has attention and Mamba2 heads side by side; an image has one region per layer."""
    with pytest.raises(BadModelConfig, match="falcon_h1: its layers keep GQA and Mamba2; layouts hold one cache"):
        layout_of_config(FALCON_H1, block_tokens=16, max_model_tokens=64)


def test_what_has_no_size_has_no_layout() -> None:
    """With the same errors."""
    with pytest.raises(UnknownArchitecture):
        layout_of_config({"model_type": "unheard_of"}, block_tokens=16, max_model_tokens=64)
    with pytest.raises(ValueError, match="align_tokens must be a multiple"):
        layout_of_config(LLAMA, block_tokens=16, page_tokens=12, max_model_tokens=64)


def test_the_wire_form_of_such_a_layout_round_trips() -> None:
    """An engine can register it as any other."""
    layout = layout_of_config(GPT_OSS, block_tokens=32, page_tokens=16, max_model_tokens=4096)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(layout), type=KVLayout) == layout
    assert layout.fingerprint == dataclasses.replace(layout, block_tokens=64).fingerprint
