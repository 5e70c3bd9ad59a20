"""Bytes in order, in large blocks that are used again: read into at one end, sent from at the other, never copied."""

from __future__ import annotations

from collections import deque
from typing import Final

BLOCK_BYTES: Final = 256 << 10
#: Kept for use again; more go back to the system.
MAX_SPARE: Final = 256
#: A block with less than this free gets no more.
_LEAST: Final = 4096


class Block:
    """`memory[start:end]` is what it has."""

    __slots__ = ("end", "memory", "start")

    def __init__(self) -> None:
        self.memory = memoryview(bytearray(BLOCK_BYTES))
        self.start = self.end = 0


class Pool:
    """Blocks that nobody uses. The last one that came back is the first that goes: it is still in the cache."""

    def __init__(self) -> None:
        self._spare: list[Block] = []

    def take(self) -> Block:
        return self._spare.pop() if self._spare else Block()

    def give(self, block: Block) -> None:
        if len(self._spare) < MAX_SPARE:
            block.start = block.end = 0
            self._spare.append(block)


class Bytes:
    """A queue of bytes. Reads go to `space`, and `wrote` says how many came; `front` is what is sent first, and `drop`
    says how many went."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._blocks: deque[Block] = deque()

    def __len__(self) -> int:
        return sum(block.end - block.start for block in self._blocks)

    def space(self, most: int) -> memoryview:
        """At most `most` writable bytes. Always followed by `wrote`."""
        if not self._blocks or BLOCK_BYTES - self._blocks[-1].end < _LEAST:
            self._blocks.append(self._pool.take())
        block = self._blocks[-1]
        return block.memory[block.end : block.end + most]

    def wrote(self, num_bytes: int) -> None:
        """Also 0, so that an idle connection keeps no block."""
        block = self._blocks[-1]
        block.end += num_bytes
        if block.start == block.end:
            self._pool.give(self._blocks.pop())

    def front(self, most: int) -> memoryview:
        """At most `most` bytes; empty only if there are none."""
        if not self._blocks:
            return memoryview(b"")
        block = self._blocks[0]
        return block.memory[block.start : min(block.end, block.start + most)]

    def drop(self, num_bytes: int) -> None:
        """Of the front."""
        block = self._blocks[0]
        block.start += num_bytes
        if block.start == block.end:
            self._pool.give(self._blocks.popleft())

    def clear(self) -> None:
        """Give every block back."""
        while self._blocks:
            self._pool.give(self._blocks.popleft())
