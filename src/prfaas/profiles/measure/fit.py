"""A quadratic through measured prefill times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class QuadraticFit(NamedTuple):
    """c0 + c1·l + c2·l², none negative, and the largest relative distance from a point."""

    c0: float
    c1: float
    c2: float
    max_relative_error: float


def fit_quadratic(points: Sequence[tuple[float, float]]) -> QuadraticFit:
    """Least squares of the relative errors over (tokens, seconds). A coefficient that would be negative is left out and
    the rest fitted again: time does not fall with length. Points must be positive; one is enough."""
    terms = [0, 1, 2][: len(points)]
    scale = max(x for x, _ in points)
    while True:
        found = dict(zip(terms, _solve([[(x / scale) ** k / y for k in terms] for x, y in points]), strict=True))
        worst = min(found, key=found.__getitem__)
        if found[worst] >= 0 or len(terms) == 1:
            break
        terms.remove(worst)
    c0, c1, c2 = (max(0.0, found.get(k, 0.0)) / scale**k for k in range(3))
    error = max(abs((c0 + c1 * x + c2 * x * x) / y - 1) for x, y in points)
    return QuadraticFit(c0, c1, c2, error)


def _solve(rows: list[list[float]]) -> list[float]:
    """Coefficients w that bring rows · w closest to 1: the normal equations, by Gauss with pivots."""
    size = len(rows[0])
    matrix = [[sum(r[i] * r[j] for r in rows) for j in range(size)] + [sum(r[i] for r in rows)] for i in range(size)]
    for i in range(size):
        pivot = max(range(i, size), key=lambda k, i=i: abs(matrix[k][i]))  # type: ignore[misc]
        matrix[i], matrix[pivot] = matrix[pivot], matrix[i]
        if not matrix[i][i]:
            continue
        for k in range(size):
            if k != i:
                factor = matrix[k][i] / matrix[i][i]
                matrix[k] = [a - factor * b for a, b in zip(matrix[k], matrix[i], strict=True)]
    return [matrix[i][size] / matrix[i][i] if matrix[i][i] else 0.0 for i in range(size)]
