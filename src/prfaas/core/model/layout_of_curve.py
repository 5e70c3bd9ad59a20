"""A layout for a model of which only S_kv(l) is known: for engines that compute nothing."""

from __future__ import annotations

from typing import Final

from prfaas.core.model.curve import Curve
from prfaas.core.model.layout import KVGroup, KVGroupKind, KVLayout

#: Such a model has three layers of linear state for each of full attention, as Kimi Linear and Qwen3-Next have.
NUM_LAYERS: Final = 16
ATTENTION_EVERY: Final = 4
#: A state that is less than so many tokens' KV is an error of measurement.
_LEAST_STATE_TOKENS: Final = 1.0


def layout_of_curve(model: str, kv_bytes: Curve, *, block_tokens: int, max_model_tokens: int) -> KVLayout:
    """Full attention and linear state whose bytes are those of `kv_bytes` where its first piece begins and at the
    longest prompt, and lie on a straight line between: a curve that bends is met at the ends. Raises ValueError for a
    curve that does not rise."""
    first = max(1.0, kv_bytes.pieces[0].start_tokens)
    first_bytes, last_bytes = kv_bytes.at(first), kv_bytes.at(max_model_tokens)
    per_token = (last_bytes - first_bytes) / (max_model_tokens - first)
    if not per_token > 0:
        raise ValueError(f"{model}: its KVCache does not grow from {first:g} to {max_model_tokens} tokens")
    state_bytes = first_bytes - per_token * first
    has_state = state_bytes > per_token * _LEAST_STATE_TOKENS
    every = ATTENTION_EVERY if has_state else 1
    attention = tuple(layer for layer in range(NUM_LAYERS) if (layer + 1) % every == 0)
    states = tuple(layer for layer in range(NUM_LAYERS) if layer not in attention)
    page_bytes = max(1, round(per_token * block_tokens / len(attention)))
    groups = [KVGroup(KVGroupKind.FULL_ATTENTION, attention, block_tokens, page_bytes, 0, 0, "of a curve")]
    if has_state:
        each = max(1, round(state_bytes / len(states)))
        groups.append(KVGroup(KVGroupKind.LINEAR_STATE, states, 0, 0, each, 0, "of a curve"))
    return KVLayout(model, tuple(groups), block_tokens, block_tokens, max_model_tokens)
