"""The layout that an engine would register for a model, from its config.json: for engines that compute nothing.

Laws of this file:
- Which layer keeps what is `hf_config`'s, so a layout and a size of one config cannot disagree.
- What a config does not say is an argument: the engine's block, its kernel's page, its number formats.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from prfaas.core.model.cache_size import CacheGroup
from prfaas.core.model.config_fields import BadModelConfig
from prfaas.core.model.hf_config import cache_size_of
from prfaas.core.model.layout import KVGroup, KVGroupKind, KVLayout


def layout_of_config(
    config: Mapping[str, object],
    *,
    block_tokens: int,
    page_tokens: int | None = None,
    max_model_tokens: int,
    cache_dtype: str | None = None,
    state_dtype: str | None = None,
) -> KVLayout:
    """Layout of the model that `config`, the parsed config.json, describes; for dtypes see `cache_size_of`.

    `page_tokens` divides `block_tokens`, and is equal to it by default. A real engine may cut the layers into more
    groups, and pads or names pages in its own way; each layer's kind and bytes are the same.

    Raises UnknownArchitecture and BadModelConfig as `cache_size_of` does, BadModelConfig also for a model with layers
    that keep two caches, ValueError for sizes that do not fit each other.
    """
    size = cache_size_of(config, cache_dtype=cache_dtype, state_dtype=state_dtype)
    layers = [layer for group in size.groups for layer in group.layers]
    if len(set(layers)) != len(layers):
        both = " and ".join(group.name for group in size.groups)
        raise BadModelConfig(
            f"model_type {size.architecture}: its layers keep {both}; layouts hold one cache per layer"
        )
    return KVLayout(
        model=f"{size.architecture}:{_digest(config)}",
        groups=tuple(_group(group, page_tokens or block_tokens) for group in size.groups),
        block_tokens=block_tokens,
        align_tokens=block_tokens,
        max_model_tokens=max_model_tokens,
    )


def _group(group: CacheGroup, page_tokens: int) -> KVGroup:
    detail = f"{group.name} {group.detail}"
    if group.kind is KVGroupKind.LINEAR_STATE:
        return KVGroup(group.kind, group.layers, 0, 0, group.state_bytes, 0, detail)
    page_bytes = page_tokens * group.bytes_per_token
    return KVGroup(group.kind, group.layers, page_tokens, page_bytes, 0, group.window_tokens, detail)


def _digest(config: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()[:32]
