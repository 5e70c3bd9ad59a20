"""How many bytes of KVCache one request has at a length: S_kv(l) of the paper.

S_kv(l) = Σ over groups of n · s(l), where n is the group's number of layers and s(l) the bytes of one layer:
- full attention: l · b, with b bytes per token;
- sliding window: min(l, w) · b, with a window of w tokens;
- recurrent state: a constant.

It counts what a decode instance needs, once: nothing that tensor parallelism replicates, no rounding to whole blocks or
pages (at most one block per layer; see `layout.py` for an engine's exact image), no layers for speculative decoding.
"""

from __future__ import annotations

from dataclasses import dataclass

from prfaas.core.model.curve import Curve, polynomial, saturating
from prfaas.core.model.layout import KVGroupKind


@dataclass(frozen=True, slots=True)
class CacheGroup:
    """Layers whose caches have one size.

    `layers` are the model's layers by index, from 0. `bytes_per_token` (0 for state) and `state_bytes` (0 for
    attention; recurrent and convolution state together) are per layer. `window_tokens` is 0 unless the group slides.
    `name` is what the layers are called ("GQA", "KDA"), `detail` the product behind the number, for people to check.
    """

    kind: KVGroupKind
    name: str
    layers: tuple[int, ...]
    bytes_per_token: int
    window_tokens: int
    state_bytes: int
    detail: str

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError(f"a cache group needs layers, got {self}")
        if min(self.bytes_per_token, self.window_tokens, self.state_bytes) < 0:
            raise ValueError(f"sizes cannot be negative, got {self}")
        is_state = self.kind is KVGroupKind.LINEAR_STATE
        if {is_state} != {self.state_bytes > 0, self.bytes_per_token == 0}:
            raise ValueError(f"{self.kind} group needs either state_bytes or bytes_per_token, got {self}")
        if (self.kind is KVGroupKind.SLIDING_WINDOW) != (self.window_tokens > 0):
            raise ValueError(f"window_tokens belongs to sliding-window groups only, got {self}")

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def bytes_at(self, num_tokens: float) -> float:
        """Bytes of all layers of the group after `num_tokens` tokens. State is constant: it exists from the start."""
        if not num_tokens >= 0:
            raise ValueError(f"num_tokens must not be negative, got {num_tokens}")
        if self.kind is KVGroupKind.LINEAR_STATE:
            return float(self.num_layers * self.state_bytes)
        seen = min(num_tokens, self.window_tokens) if self.window_tokens else num_tokens
        return float(self.num_layers * self.bytes_per_token * seen)


@dataclass(frozen=True, slots=True)
class CacheSize:
    """KVCache size of one model. `architecture` is its `model_type`."""

    architecture: str
    groups: tuple[CacheGroup, ...]

    def __post_init__(self) -> None:
        if not self.groups:
            raise ValueError(f"{self.architecture}: a model without a cache")

    def bytes_at(self, num_tokens: float) -> float:
        """S_kv: bytes of one request's cache after `num_tokens` tokens."""
        return sum(group.bytes_at(num_tokens) for group in self.groups)

    def curve(self) -> Curve:
        """S_kv over length."""
        total = polynomial(0.0)
        for group in self.groups:
            if group.kind is KVGroupKind.LINEAR_STATE:
                total += polynomial(float(group.num_layers * group.state_bytes))
            elif group.window_tokens:
                total += saturating(group.num_layers * group.bytes_per_token, group.window_tokens)
            else:
                total += polynomial(0.0, group.num_layers * group.bytes_per_token)
        return total
