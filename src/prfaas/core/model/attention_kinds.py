"""Bytes that one layer of each kind of attention keeps, as vLLM 0.32 and SGLang allocate them.

Symbols: h_kv key/value heads, d_k and d_v their dimensions, r the MLA rank, d_r its rotary part, w a window, h heads of
a recurrent state, k a convolution's kernel (it keeps the last k − 1 inputs), B bytes per value.

| kind | per token | constant |
|---|---|---|
| GQA, MQA, MHA | h_kv · (d_k + d_v) · B | |
| MLA | (r + d_r) · B, one copy for all heads | |
| SWA | as GQA, for w tokens at most | |
| KDA | | h · d · d · B_state + (k − 1) · 3 · h · d · B |
| Gated DeltaNet | | h_v · d_v · d_k · B_state + (k − 1) · (2 · h_k · d_k + h_v · d_v) · B |
| Mamba2 | | h · d · n · B_state + (k − 1) · (h · d + 2 · g · n) · B, state size n, g groups |
| Lightning | | h · d · d · B_state, no convolution |
"""

from __future__ import annotations

from prfaas.core.model.cache_size import CacheGroup
from prfaas.core.model.config_fields import Dtype
from prfaas.core.model.layout import KVGroupKind

#: Indices of layers, from 0.
Layers = tuple[int, ...]


def softmax(
    name: str, layers: Layers, kv_heads: int, key_dim: int, value_dim: int, dtype: Dtype, window_tokens: int = 0
) -> CacheGroup:
    """Keys and values of every token, or of the last `window_tokens` if that is not 0."""
    kind = KVGroupKind.SLIDING_WINDOW if window_tokens else KVGroupKind.FULL_ATTENTION
    heads = "1 head" if kv_heads == 1 else f"{kv_heads} heads"
    same = key_dim == value_dim
    detail = f"2 × {heads} × {key_dim} × {dtype}" if same else f"{heads} × ({key_dim} + {value_dim}) × {dtype}"
    if window_tokens:
        detail += f", window {window_tokens} tokens"
    per_token = kv_heads * (key_dim + value_dim) * dtype.num_bytes
    return CacheGroup(kind, name, layers, per_token, window_tokens, 0, detail)


def latent(layers: Layers, rank: int, rotary_dim: int, dtype: Dtype) -> CacheGroup:
    """MLA: one compressed vector and one rotary key per token, shared by all heads."""
    detail = f"({rank} + {rotary_dim}) × {dtype}, one copy for all heads"
    per_token = (rank + rotary_dim) * dtype.num_bytes
    return CacheGroup(KVGroupKind.FULL_ATTENTION, "MLA", layers, per_token, 0, 0, detail)


def kda(layers: Layers, heads: int, head_dim: int, conv_kernel: int, state: Dtype, conv: Dtype) -> CacheGroup:
    """Kimi Delta Attention: a square state per head; queries, keys and values are convolved."""
    return _recurrent("KDA", layers, (heads, head_dim, head_dim), state, conv_kernel, 3 * heads * head_dim, conv)


def gated_delta_net(
    layers: Layers,
    key_heads: int,
    value_heads: int,
    key_dim: int,
    value_dim: int,
    conv_kernel: int,
    state: Dtype,
    conv: Dtype,
) -> CacheGroup:
    """Gated DeltaNet: a state per value head; queries, keys and values are convolved."""
    channels = 2 * key_heads * key_dim + value_heads * value_dim
    shape = (value_heads, value_dim, key_dim)
    return _recurrent("GatedDeltaNet", layers, shape, state, conv_kernel, channels, conv)


def mamba2(
    layers: Layers,
    heads: int,
    head_dim: int,
    state_size: int,
    num_groups: int,
    conv_kernel: int,
    state: Dtype,
    conv: Dtype,
) -> CacheGroup:
    """Mamba2: a state per head; the inputs and both projections B and C of each group are convolved."""
    channels = heads * head_dim + 2 * num_groups * state_size
    return _recurrent("Mamba2", layers, (heads, head_dim, state_size), state, conv_kernel, channels, conv)


def lightning(layers: Layers, heads: int, head_dim: int, state: Dtype) -> CacheGroup:
    """Lightning attention: a square state per query head, without convolution."""
    return _recurrent("Lightning", layers, (heads, head_dim, head_dim), state)


def _recurrent(
    name: str,
    layers: Layers,
    shape: tuple[int, int, int],
    state: Dtype,
    conv_kernel: int = 1,
    conv_channels: int = 0,
    conv: Dtype | None = None,
) -> CacheGroup:
    heads, rows, columns = shape
    detail = f"{heads} heads × {rows} × {columns} × {state}"
    num_bytes = heads * rows * columns * state.num_bytes
    if conv is not None and conv_kernel > 1:
        detail += f" + convolution {conv_kernel - 1} × {conv_channels} × {conv}"
        num_bytes += (conv_kernel - 1) * conv_channels * conv.num_bytes
    return CacheGroup(KVGroupKind.LINEAR_STATE, name, layers, 0, 0, num_bytes, detail)
