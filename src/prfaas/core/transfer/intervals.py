"""A set of bytes as disjoint half-open intervals: what of an image is staged, sent, verified."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator


class IntervalSet:
    """Disjoint, sorted, coalesced [start, end) intervals. Adding costs O(log n) plus what it merges."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self.size = 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._starts, self._ends, strict=True)

    def __len__(self) -> int:
        return len(self._starts)

    def overlaps(self, start: int, end: int) -> bool:
        """Is any byte of [start, end) in the set?"""
        index = bisect_right(self._ends, start)
        return index < len(self._starts) and self._starts[index] < end

    def contains(self, start: int, end: int) -> bool:
        """Is every byte of [start, end) in the set?"""
        index = bisect_right(self._starts, start) - 1
        return index >= 0 and self._ends[index] >= end

    def add(self, start: int, end: int) -> int:
        """Add [start, end); returns how many bytes were new."""
        if start >= end:
            return 0
        first = bisect_left(self._ends, start)
        last = bisect_right(self._starts, end)
        covered = sum(
            max(0, min(end, old_end) - max(start, old_start))
            for old_start, old_end in zip(self._starts[first:last], self._ends[first:last], strict=True)
        )
        if first < last:
            new_start, new_end = min(start, self._starts[first]), max(end, self._ends[last - 1])
        else:
            new_start, new_end = start, end
        self._starts[first:last] = [new_start]
        self._ends[first:last] = [new_end]
        added = end - start - covered
        self.size += added
        return added

    def remove(self, start: int, end: int) -> None:
        """Take [start, end) out, as far as it is in."""
        if start >= end:
            return
        kept: list[tuple[int, int]] = []
        for old_start, old_end in self:
            if old_end <= start or old_start >= end:
                kept.append((old_start, old_end))
                continue
            if old_start < start:
                kept.append((old_start, start))
            if old_end > end:
                kept.append((end, old_end))
        self._starts = [interval[0] for interval in kept]
        self._ends = [interval[1] for interval in kept]
        self.size = sum(interval_end - interval_start for interval_start, interval_end in kept)

    def first(self) -> tuple[int, int] | None:
        """The lowest interval, or None."""
        return (self._starts[0], self._ends[0]) if self._starts else None
