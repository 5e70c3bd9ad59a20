"""Curves of prompt length: values, sums, expectations, and that none is ever negative."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas.core.model.curve import Curve, Piece, polynomial, saturating, through
from prfaas.core.planning.workload import Empirical

TOKENS = st.floats(0, 300_000)
POINTS = st.dictionaries(st.integers(0, 200_000), st.floats(0, 100), min_size=1, max_size=6).map(
    lambda table: sorted(table.items())
)
CURVES = st.one_of(
    st.builds(polynomial, st.floats(0, 10), st.floats(0, 1e-3), st.floats(0, 1e-9)),
    st.builds(saturating, st.floats(0, 1e-2), st.floats(1, 1e5)),
    POINTS.map(through),
)


def test_a_table_is_straight_between_its_points_and_beyond() -> None:
    """Points are met, midpoints are means, both ends go on."""
    curve = through([(1000, 1.0), (2000, 3.0), (4000, 4.0)])
    assert [curve.at(x) for x in (1000, 1500, 2000, 3000, 4000)] == pytest.approx([1.0, 2.0, 3.0, 3.5, 4.0])
    assert curve.at(6000) == pytest.approx(5.0)
    assert through([(1000, 2.0), (2000, 3.0)]).at(0) == pytest.approx(1.0)
    assert through([(5000, 2.0)]).at(1) == 2.0


def test_below_the_first_point_a_table_bends_to_the_origin() -> None:
    """A line that would pass under zero there goes to zero at length 0 instead."""
    curve = through([(1000, 1.0), (2000, 3.0)])
    assert [curve.at(x) for x in (0, 500, 1000, 2000)] == pytest.approx([0.0, 0.5, 1.0, 3.0])


def test_beyond_the_last_point_a_table_does_not_fall() -> None:
    """Two noisy measurements at the end give no negative time at twice the length."""
    curve = through([(1000, 2.0), (2000, 5.0), (4000, 4.0)])
    assert [curve.at(x) for x in (3000, 4000, 8000, 1e6)] == pytest.approx([4.5, 4.0, 4.0, 4.0])


@given(POINTS, TOKENS)
def test_a_table_is_never_negative(points: list[tuple[int, float]], tokens: float) -> None:
    """At any length, but for rounding."""
    assert through(points).at(tokens) >= -1e-9 * max(value for _, value in points)


@given(POINTS)
def test_a_table_meets_its_points(points: list[tuple[int, float]]) -> None:
    """Up to rounding, which a steep line magnifies."""
    steepest = max([1.0, *(abs(y1 - y0) / (x1 - x0) for (x0, y0), (x1, y1) in itertools.pairwise(points))])
    for tokens, value in points:
        assert through(points).at(tokens) == pytest.approx(value, rel=1e-9, abs=1e-10 * steepest * (1 + tokens))


@given(CURVES, CURVES, TOKENS, st.floats(1e-6, 100))
def test_sums_and_multiples(a: Curve, b: Curve, tokens: float, factor: float) -> None:
    """The curve of a sum is the sum of the curves, at every length; so for products with a number."""
    scale = 1 + sum(abs(c) for curve in (a, b) for p in curve.pieces for c in (p.c0, p.c1 * 3e5))
    assert (a + b).at(tokens) == pytest.approx(a.at(tokens) + b.at(tokens), rel=1e-9, abs=1e-12 * scale)
    assert a.scaled(factor).at(tokens) == pytest.approx(factor * a.at(tokens), rel=1e-9, abs=1e-12 * scale * factor)


def test_a_window_stops_growing() -> None:
    """min(l, window) times the bytes of a token."""
    assert [saturating(2.0, 100.0).at(x) for x in (0, 50, 100, 101, 1e9)] == [0.0, 100.0, 200.0, 200.0, 200.0]


@pytest.mark.parametrize("seed", range(4))
def test_values_and_expectations_agree_at_a_jump(seed: int) -> None:
    """A piece covers the lengths over its start up to the next one's, in `at` as in `expected`."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    curve = Curve((Piece(0.0, 1.0, 0.0, 0.0), Piece(1000.0, 5.0, 1e-3, 0.0), Piece(2000.0, 50.0, 0.0, 0.0)))
    assert (curve.at(1000), curve.at(1001)) == (1.0, pytest.approx(6.001))
    lengths = [rng.choice([999, 1000, 1001, 2000, 2001]) for _ in range(20)]
    total = Empirical(lengths).expected(curve, 0, 1e9)
    assert total == pytest.approx(sum(map(curve.at, lengths)) / len(lengths))


@pytest.mark.parametrize(
    "points",
    [[], [(2, 1.0), (1, 2.0)], [(1, 1.0), (1, 2.0)], [(1, -1.0), (2, 1.0)], [(-1, 1.0), (2, 1.0)]],
    ids=str,
)
def test_tables_that_cannot_be_are_refused(points: list[tuple[float, float]]) -> None:
    """No points, lengths that do not rise, negative numbers."""
    with pytest.raises(ValueError, match="table"):
        through(points)


def test_pieces_must_rise() -> None:
    """A curve without pieces, or with two that start at once, is none."""
    for pieces in ((), (Piece(0.0, 1, 0, 0), Piece(0.0, 2, 0, 0))):
        with pytest.raises(ValueError, match="rising"):
            Curve(pieces)
