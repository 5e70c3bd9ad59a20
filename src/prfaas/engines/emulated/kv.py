"""KVCache that can be checked: every byte of a prompt's image is a function of its tokens and of its place.

Laws of this file:
- A page's bytes depend on all tokens up to the page's end, as real KV does, on its KV group, layer and number; a
  state's on all tokens that went into it. Two prompts with a common prefix have equal pages there, and no others.
- They do not depend on who computes them, nor on how the prompt is cut into chunks.
- So whoever loads an image knows what it must be, and a page of another prompt, layer or place is told from its own.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from typing import Final

from prfaas.core.cache.hashing import TokenChain, chain_tokens, pack_tokens, token_digest
from prfaas.core.model.layout import KVGroup, KVLayout
from prfaas.core.transfer.shipping import Piece, StatePiece

_PLACE: Final = struct.Struct("<4sIII")


class PrefixNames:
    """Of some tokens that a model computes: a name of each prefix that ends with a page, and of all of them. Tenants'
    salts are not in them: they name blocks of a cache, and change no KV."""

    def __init__(self, packed: bytes, chain: TokenChain) -> None:
        self._packed = packed
        #: Of all blocks that are full.
        self.chain = chain
        before = chain.hashes[-1] if chain.hashes else b""
        self.whole = hashlib.sha256(before + packed[4 * chain.block_tokens * len(chain.hashes) :]).digest()

    def page(self, number: int) -> bytes:
        """Of everything up to the end of page `number`; the last one may not be full."""
        return self.chain.hashes[number] if number < len(self.chain.hashes) else self.whole

    def without_last(self) -> PrefixNames:
        """Of all tokens but the last."""
        num_tokens, block = self.chain.num_tokens - 1, self.chain.block_tokens
        shorter = TokenChain(num_tokens, block, self.chain.hashes[: num_tokens // block])
        return PrefixNames(self._packed[:-4], shorter)

    @property
    def digest(self) -> str:
        """As the gateway names the prompt."""
        return token_digest(self._packed)


class KVBytes:
    """The KVCache of one model. Raises ValueError for a layout whose pages are not its blocks."""

    def __init__(self, layout: KVLayout) -> None:
        if any(group.page_tokens not in (0, layout.block_tokens) for group in layout.groups):
            raise ValueError(f"an emulated engine's pages are its blocks of {layout.block_tokens} tokens")
        self.layout = layout

    def names(self, token_ids: Sequence[int]) -> PrefixNames:
        packed = pack_tokens(token_ids)
        return PrefixNames(packed, chain_tokens(packed, self.layout.block_tokens, self.layout.model))

    def of(self, piece: Piece, names: PrefixNames) -> bytes:
        """What a piece of the image must be."""
        group = self.layout.groups[piece.group]
        if isinstance(piece, StatePiece):
            return _bytes(names.whole, b"stat", piece, 0, group.state_bytes)
        return b"".join(
            _bytes(names.page(number), b"page", piece, number, group.page_bytes)
            for number in range(piece.first_page, piece.end_page)
        )

    def wrong_parts(self, piece: Piece, names: PrefixNames, found: bytes | memoryview) -> list[int]:
        """Numbers of the pages of a piece that are not what they must be; [-1] for a state."""
        wanted = self.of(piece, names)
        if found == wanted:
            return []
        if isinstance(piece, StatePiece):
            return [-1]
        size = self.layout.groups[piece.group].page_bytes
        return [
            piece.first_page + index
            for index in range(piece.end_page - piece.first_page)
            if found[index * size : (index + 1) * size] != wanted[index * size : (index + 1) * size]
        ]


def _bytes(name: bytes, kind: bytes, piece: Piece, number: int, size: int) -> bytes:
    return hashlib.shake_128(name + _PLACE.pack(kind, piece.group, piece.layer, number)).digest(size)


def scaled(layout: KVLayout, bytes_scale: float) -> KVLayout:
    """The same layers with so many times their bytes, at least one each."""
    if bytes_scale == 1.0:
        return layout
    groups = tuple(_scaled(group, bytes_scale) for group in layout.groups)
    model = f"{layout.model} x{bytes_scale:g}"
    return KVLayout(model, groups, layout.block_tokens, layout.align_tokens, layout.max_model_tokens)


def _scaled(group: KVGroup, bytes_scale: float) -> KVGroup:
    def size(num_bytes: int) -> int:
        return max(1, round(num_bytes * bytes_scale)) if num_bytes else 0

    return KVGroup(
        group.kind, group.layers, group.page_tokens, size(group.page_bytes), size(group.state_bytes),
        group.window_tokens, f"{group.detail} x{bytes_scale:g}",
    )  # fmt: skip
