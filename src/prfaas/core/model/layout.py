"""The layout of a model's KVCache and the image of it that crosses between datacenters.

Laws of this file:
- An image is contiguous and its size is known before the first byte exists; both nodes lay it out alike.
- Attention KV crosses in whole pages (a kernel's unit of tokens), as opaque bytes: kernels interleave the tokens of
  a page as they like (AMX packs pairs of keys), so half a page means nothing outside the engine that wrote it.
- Layers lie in model order, so a prefill that computes layer after layer fills the image from front to back.
- It holds the cache after `num_prompt_tokens - 1` tokens: recurrent state cannot be rolled back, and decode must
  compute the last token itself to sample from it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import cached_property


class KVGroupKind(StrEnum):
    """How a group's cache depends on the prompt's length."""

    FULL_ATTENTION = "full_attention"
    SLIDING_WINDOW = "sliding_window"
    LINEAR_STATE = "linear_state"


@dataclass(frozen=True, slots=True)
class KVGroup:
    """Layers that share one spec and one block table.

    `page_bytes` is the size of one page of `page_tokens` tokens in one layer (both 0 for linear state), `state_bytes`
    the size of one layer's state (0 for attention). `window_tokens` is the sliding window w: a token attends to
    itself and w - 1 before it. `detail` names dtype, inner shape and the kernel's arrangement inside a page; two
    engines ledgers KV only if it is equal.
    """

    kind: KVGroupKind
    layers: tuple[int, ...]
    page_tokens: int
    page_bytes: int
    state_bytes: int
    window_tokens: int
    detail: str

    def __post_init__(self) -> None:
        is_state = self.kind is KVGroupKind.LINEAR_STATE
        if {is_state} != {self.state_bytes > 0, self.page_bytes == 0, self.page_tokens == 0}:
            raise ValueError(f"{self.kind} group needs either state_bytes or page_tokens and page_bytes, got {self}")
        if (self.kind is KVGroupKind.SLIDING_WINDOW) != (self.window_tokens > 0):
            raise ValueError(f"window_tokens belongs to sliding-window groups only, got {self}")
        if not self.layers:
            raise ValueError("a KV group without layers")

    def token_range(self, num_prompt_tokens: int, skip_tokens: int, align_tokens: int) -> tuple[int, int]:
        """Half-open range of prompt tokens whose KV is in the image; (n, n) for linear state."""
        end = num_prompt_tokens - 1
        if self.kind is KVGroupKind.LINEAR_STATE:
            return end, end
        start = skip_tokens
        if self.kind is KVGroupKind.SLIDING_WINDOW:
            # The token that decode computes, number `end`, attends to itself and the window - 1 before it. Whole
            # blocks are kept, because an engine's prefix cache holds nothing smaller.
            first_seen = max(0, num_prompt_tokens - self.window_tokens)
            start = max(start, first_seen // align_tokens * align_tokens)
        return min(start, end), end

    def pages(self, first_token: int, end_token: int) -> tuple[int, int]:
        """Half-open range of page numbers that hold tokens [first_token, end_token). Not for linear state."""
        return first_token // self.page_tokens, -(-end_token // self.page_tokens)


@dataclass(frozen=True, slots=True)
class Region:
    """One layer's half-open byte range [start, end) of an image, holding tokens [first_token, end_token)."""

    layer: int
    group: int
    start: int
    end: int
    first_token: int
    end_token: int


@dataclass(frozen=True)
class Image:
    """Where each layer lies in the bytes that one transfer moves. Regions are in model order, without gaps."""

    num_prompt_tokens: int
    skip_tokens: int
    regions: tuple[Region, ...]

    @property
    def num_bytes(self) -> int:
        return self.regions[-1].end if self.regions else 0

    @cached_property
    def by_layer(self) -> dict[int, Region]:
        """Region of each layer index."""
        return {region.layer: region for region in self.regions}


@dataclass(frozen=True)
class KVLayout:
    """KVCache layout of one engine, as it registers it with its node.

    `align_tokens` is the granularity in tokens that both sides round sliding windows to; part of the fingerprint.
    `block_tokens` is this engine's own block size and may differ between peers. `model` identifies the weights.
    """

    model: str
    groups: tuple[KVGroup, ...]
    block_tokens: int
    align_tokens: int
    max_model_tokens: int

    def __post_init__(self) -> None:
        layers = [layer for group in self.groups for layer in group.layers]
        if not layers or len(set(layers)) != len(layers):
            raise ValueError("every layer must belong to exactly one KV group, and there must be one")
        if min(self.block_tokens, self.align_tokens, self.max_model_tokens) < 1:
            raise ValueError("block_tokens, align_tokens and max_model_tokens must be positive")
        if any(group.page_tokens and self.align_tokens % group.page_tokens for group in self.groups):
            raise ValueError("align_tokens must be a multiple of every group's page_tokens")

    @property
    def group_kinds(self) -> tuple[KVGroupKind, ...]:
        return tuple(group.kind for group in self.groups)

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 over everything that two engines must share to ledgers images."""
        shared = {"model": self.model, "align": self.align_tokens, "groups": [asdict(group) for group in self.groups]}
        return hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()

    def image(self, num_prompt_tokens: int, skip_tokens: int = 0) -> Image:
        """The image for a prompt of which the destination holds the first `skip_tokens` of full attention.

        Raises ValueError if nothing could be moved: decode computes the last token, so a prompt needs at least two.
        """
        if not 2 <= num_prompt_tokens <= self.max_model_tokens:
            raise ValueError(f"a transfer needs 2 to {self.max_model_tokens} prompt tokens, got {num_prompt_tokens}")
        if not 0 <= skip_tokens < num_prompt_tokens or skip_tokens % self.align_tokens:
            raise ValueError(
                f"skip_tokens must be a multiple of {self.align_tokens} below {num_prompt_tokens}, got {skip_tokens}"
            )
        group_of = {layer: index for index, group in enumerate(self.groups) for layer in group.layers}
        regions: list[Region] = []
        offset = 0
        for layer in sorted(group_of):
            group = self.groups[group_of[layer]]
            first, end = group.token_range(num_prompt_tokens, skip_tokens, self.align_tokens)
            size = group.state_bytes
            if not size and first < end:
                first_page, end_page = group.pages(first, end)
                size = (end_page - first_page) * group.page_bytes
            regions.append(Region(layer, group_of[layer], offset, offset + size, first, end))
            offset += size
        return Image(num_prompt_tokens, skip_tokens, tuple(regions))
