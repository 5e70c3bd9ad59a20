"""Copies between vLLM's paged KV tensors and the bytes of an image.

Shapes: an attention tensor is [page, head, token, value] or, for MLA, [page, token, value]; a block of the scheduler
may be several pages. Linear state is one int8 row per block, of which the first `state_bytes` are the state.
"""

from __future__ import annotations

import torch

from prfaas.core.errors import Refused
from prfaas.core.model.layout import KVGroup, KVGroupKind


class LayerPages:
    """One layer's pages. Never reads or writes block 0, vLLM's null block."""

    def __init__(self, name: str, cache: torch.Tensor, group: KVGroup, num_blocks: int) -> None:
        self.group = group
        self._cache = cache
        is_state = group.kind is KVGroupKind.LINEAR_STATE
        known = cache.dtype == torch.int8 if is_state else cache.dim() in (3, 4)
        if not known or cache.shape[0] % num_blocks:
            shape = f"{tuple(cache.shape)} {cache.dtype}"
            raise Refused("layout", f"layer {name}: KV tensor {shape} is not in a layout that PrfaaS knows")
        self._pages_per_block = cache.shape[0] // num_blocks

    def read_state(self, block_id: int, target: torch.Tensor) -> None:
        """Copy the state in `block_id` into `target`, uint8 of `state_bytes`."""
        target.copy_(self._state_row(block_id))

    def write_state(self, block_id: int, source: torch.Tensor) -> None:
        """The inverse of `read_state`."""
        self._state_row(block_id).copy_(source)

    def read_pages(self, block_ids: list[int], first: int, end: int, target: torch.Tensor) -> None:
        """Copy the request's pages [first, end) into `target`, uint8 of (end - first) × page_bytes."""
        pages = self._cache.index_select(0, self._indices(block_ids, first, end))
        target.copy_(pages.contiguous().view(torch.uint8).flatten())

    def write_pages(self, block_ids: list[int], first: int, end: int, source: torch.Tensor) -> None:
        """The inverse of `read_pages`."""
        shape = (end - first, *self._cache.shape[1:])
        # The image need not be aligned for the cache's dtype where the page lies in it; a fresh tensor is.
        pages = source.clone().view(self._cache.dtype).view(shape)
        self._cache.index_copy_(0, self._indices(block_ids, first, end), pages)

    def _state_row(self, block_id: int) -> torch.Tensor:
        _require(block_id)
        return self._cache[block_id].flatten()[: self.group.state_bytes].view(torch.uint8)

    def _indices(self, block_ids: list[int], first: int, end: int) -> torch.Tensor:
        per_block = self._pages_per_block
        blocks = [block_ids[page // per_block] for page in range(first, end)]
        for block_id in blocks:
            _require(block_id)
        indices = [
            block_id * per_block + page % per_block for block_id, page in zip(blocks, range(first, end), strict=True)
        ]
        return torch.tensor(indices, dtype=torch.long, device=self._cache.device)


def _require(block_id: int) -> None:
    if block_id == 0:
        raise LookupError("the block table names the null block where the image needs KV")
