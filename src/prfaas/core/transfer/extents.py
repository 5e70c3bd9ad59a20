"""First-fit allocator of contiguous extents in an arena.

Contiguous, because an image is sent and received as byte ranges and mapped by engines as one tensor. First fit with
coalescing keeps fragmentation low for the few, large, short-lived extents that transfers are.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Set
from dataclasses import dataclass
from typing import Final

#: Extents start on cache-line pairs, so that two lanes never write one line and tensors are aligned for any dtype.
ALIGN_BYTES: Final = 128


@dataclass(frozen=True, slots=True, order=True)
class Extent:
    """Half-open byte range [start, start + size) of the arena; `size` is what was asked for."""

    start: int
    size: int

    @property
    def end(self) -> int:
        return self.start + self.size


def _padded(size: int) -> int:
    return -(-size // ALIGN_BYTES) * ALIGN_BYTES


class ExtentAllocator:
    """Hands out disjoint extents of `capacity` bytes and takes each back exactly once."""

    def __init__(self, capacity: int) -> None:
        if capacity < ALIGN_BYTES:
            raise ValueError(f"an arena needs at least {ALIGN_BYTES} bytes, got {capacity}")
        self.capacity = capacity // ALIGN_BYTES * ALIGN_BYTES
        self._holes = [Extent(0, self.capacity)]
        self._live: set[Extent] = set()

    @property
    def free_bytes(self) -> int:
        return sum(hole.size for hole in self._holes)

    @property
    def num_live(self) -> int:
        return len(self._live)

    def live(self) -> Set[Extent]:
        """Every extent that was handed out and not freed."""
        return self._live

    def allocate(self, size: int) -> Extent | None:
        """An extent of `size` bytes, or None when no hole is large enough."""
        if size < 1:
            raise ValueError(f"cannot allocate {size} bytes")
        need = _padded(size)
        for index, hole in enumerate(self._holes):
            if hole.size >= need:
                rest = Extent(hole.start + need, hole.size - need)
                self._holes[index : index + 1] = [rest] if rest.size else []
                extent = Extent(hole.start, size)
                self._live.add(extent)
                return extent
        return None

    def free(self, extent: Extent) -> None:
        """Return `extent`. Raises ValueError if it is not live: a double free would hand one place to two owners."""
        if extent not in self._live:
            raise ValueError(f"{extent} is not allocated")
        self._live.remove(extent)
        insort(self._holes, Extent(extent.start, _padded(extent.size)))
        merged: list[Extent] = []
        for hole in self._holes:
            if merged and merged[-1].end == hole.start:
                merged[-1] = Extent(merged[-1].start, merged[-1].size + hole.size)
            else:
                merged.append(hole)
        self._holes = merged

    def check(self) -> None:
        """Holes and live extents tile the arena exactly."""
        position = 0
        for extent in sorted([*self._holes, *(Extent(live.start, _padded(live.size)) for live in self._live)]):
            assert extent.start == position, f"gap or overlap at {position}: {extent}"
            position = extent.end
        assert position == self.capacity, f"arena ends at {position}, not {self.capacity}"
