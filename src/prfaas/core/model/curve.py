"""Quantities that depend on a prompt's length: seconds of prefill, bytes of KVCache.

A curve is a piecewise polynomial of degree two at most, because the expectation of such a curve over part of a workload
is exact: it needs nothing but the workload's moments of order 0, 1 and 2.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple


class Piece(NamedTuple):
    """c0 + c1·l + c2·l² for lengths l > `start_tokens`, up to the next piece's start."""

    start_tokens: float
    c0: float
    c1: float
    c2: float


@dataclass(frozen=True)
class Curve:
    """A value over prompt length in tokens. Pieces rise by their start; the first covers what is below it too."""

    pieces: tuple[Piece, ...]

    def __post_init__(self) -> None:
        starts = [piece.start_tokens for piece in self.pieces]
        if not starts or any(a >= b for a, b in pairwise(starts)):
            raise ValueError("a curve needs pieces with rising starts")

    @cached_property
    def _inner_starts(self) -> list[float]:
        return [piece.start_tokens for piece in self.pieces[1:]]

    def at(self, num_tokens: float) -> float:
        _, c0, c1, c2 = self.pieces[bisect_left(self._inner_starts, num_tokens)]
        return c0 + (c1 + c2 * num_tokens) * num_tokens

    def scaled(self, factor: float) -> Curve:
        return Curve(tuple(Piece(start, c0 * factor, c1 * factor, c2 * factor) for start, c0, c1, c2 in self.pieces))

    def __add__(self, other: Curve) -> Curve:
        starts = sorted({piece.start_tokens for curve in (self, other) for piece in curve.pieces[1:]})
        first = min(self.pieces[0].start_tokens, other.pieces[0].start_tokens)
        pieces = []
        for start in [first, *starts]:
            a, b = self._piece_from(start), other._piece_from(start)
            pieces.append(Piece(start, a.c0 + b.c0, a.c1 + b.c1, a.c2 + b.c2))
        return Curve(tuple(pieces))

    def expected(self, moment: Callable[[int, float, float], float], low: float, high: float) -> float:
        """E[curve(L); low < L ≤ high]. `moment(k, a, b)` is E[L^k; a < L ≤ b] for k = 0, 1, 2 (not conditional)."""
        total = 0.0
        ends = [*self._inner_starts, float("inf")]
        start = float("-inf")
        for piece, end in zip(self.pieces, ends, strict=True):
            a, b = max(low, start), min(high, end)
            start = end
            if a < b:
                coefficients = (piece.c0, piece.c1, piece.c2)
                total += math.fsum(c * moment(k, a, b) for k, c in enumerate(coefficients) if c)
        return total

    def _piece_from(self, start: float) -> Piece:
        return self.pieces[bisect_right(self._inner_starts, start)]


def polynomial(c0: float, c1: float = 0.0, c2: float = 0.0) -> Curve:
    """c0 + c1·l + c2·l² at every length."""
    return Curve((Piece(0.0, c0, c1, c2),))


def saturating(per_token: float, window_tokens: float) -> Curve:
    """per_token · min(l, window): the cache of a sliding window."""
    return Curve((Piece(0.0, 0.0, per_token, 0.0), Piece(window_tokens, per_token * window_tokens, 0.0, 0.0)))


def through(points: Sequence[tuple[float, float]]) -> Curve:
    """Straight lines through (tokens, value) points in order of tokens, the outer ones prolonged.

    One point gives a constant. Nowhere is the curve negative: below the first point a line that would pass under zero
    bends to the origin instead, and a last line that falls is not prolonged. Raises ValueError if tokens do not rise
    or a value is negative.
    """
    tokens = [point[0] for point in points]
    if not points or any(a >= b for a, b in pairwise(tokens)):
        raise ValueError("a table needs points with rising token counts")
    if min(value for _, value in points) < 0 or tokens[0] < 0:
        raise ValueError("a table's numbers cannot be negative")
    if len(points) == 1:
        return polynomial(points[0][1])
    pieces = []
    for (x0, y0), (x1, y1) in pairwise(points):
        slope = (y1 - y0) / (x1 - x0)
        pieces.append(Piece(x0, y0 - slope * x0, slope, 0.0))
    if pieces[0].c0 < 0:
        x0, y0 = points[0]
        pieces.insert(0, Piece(0.0, 0.0, y0 / x0, 0.0))
    if pieces[-1].c1 < 0:
        pieces.append(Piece(*points[-1], 0.0, 0.0))
    return Curve(tuple(pieces))
