"""Exponentials, logarithms and sines against many more digits than a float has."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from prfaas.core.portable_math import exp, exp2, log, polynomial, sine_of_turns

#: The last bit of a float, and a quarter.
CLOSE = Decimal(2) ** -53 * Decimal("2.5")
#: Of π, fifty digits.
PI = Decimal("3.14159265358979323846264338327950288419716939937510")


def is_close(found: float, true: Decimal) -> bool:
    return abs(Decimal(found) - true) <= CLOSE * abs(true)


def sine(x: Decimal) -> Decimal:
    """By its series."""
    total = term = x
    degree = 1
    while abs(term) > Decimal("1e-48"):
        term *= -x * x / ((degree + 1) * (degree + 2))
        total += term
        degree += 2
    return total


@given(st.floats(-700.0, 700.0))
@example(0.0)
@example(0.5 * math.log(2) / 64)
def test_exp(x: float) -> None:
    """To the last bit but one, wherever the result is a float of full precision."""
    with localcontext(prec=50):
        assert is_close(exp(x), Decimal(x).exp())


@given(st.floats(-1020.0, 1023.0))
@example(-1.0 / 128)
def test_exp2(x: float) -> None:
    """As exp."""
    with localcontext(prec=50):
        assert is_close(exp2(x), (Decimal(x) * Decimal(2).ln()).exp())


@given(st.floats(min_value=0.0, exclude_min=True, allow_infinity=False))
@example(1.0 + 2.0**-52)
@example(1.0 - 2.0**-53)
@example(5e-324)
def test_log(x: float) -> None:
    """As exp, near one too, where the result is small."""
    with localcontext(prec=50):
        assert is_close(log(x), Decimal(x).ln())


@given(st.floats(-0.5, 0.5))
@example(0.25)
@example(0.5 - 2.0**-54)
def test_sine_of_turns(turns: float) -> None:
    """As exp, near its zeros too."""
    assume(turns == 0.0 or abs(turns) > 1e-300)
    with localcontext(prec=50):
        # Beyond a quarter of a turn the series would be of a number whose sine is small: it goes back down.
        from_zero = Decimal(turns) if abs(turns) <= 0.25 else Decimal(math.copysign(0.5, turns)) - Decimal(turns)
        assert is_close(sine_of_turns(turns), sine(2 * PI * from_zero))


@given(st.floats(0.0, 1.0), st.integers(-1_000_000, 1_000_000))
def test_a_sine_comes_again(part: float, num_turns: int) -> None:
    """After whole turns it is what it was, but for what the sum has lost of the part."""
    assert sine_of_turns(num_turns + part) == pytest.approx(sine_of_turns(part), abs=2e-9)
    assert sine_of_turns(float(num_turns)) == 0.0


@given(st.integers(-1074, 1023))
def test_whole_powers_of_two_are_exact(power: int) -> None:
    """Down to the smallest float; beyond there is nothing."""
    assert exp2(power) == math.ldexp(1.0, power)
    assert exp2(float(power)) == math.ldexp(1.0, power)
    assert exp2(-1075.0 + min(0, power)) == 0.0


def test_ends() -> None:
    """What is too small is zero, what is too large and what is no number raises."""
    assert exp(0.0) == exp2(0.0) == 1.0
    assert log(1.0) == 0.0
    assert exp(-1e6) == exp2(-1e300) == exp(-math.inf) == exp2(-math.inf) == 0.0
    for grows in (exp, exp2):
        for x in (1100.0, math.inf):
            with pytest.raises(OverflowError):
                grows(x)
    for x in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="no logarithm"):
            log(x)


def test_a_polynomial_begins_with_its_highest_power() -> None:
    """2x² + 3x + 4 at 10."""
    assert polynomial((2.0, 3.0, 4.0), 10.0) == 234.0


def test_bits_that_every_machine_finds() -> None:
    """Another last bit here, and results of one seed are others than elsewhere."""
    found = [exp(1.0), exp(-0.1), exp2(0.3), exp2(-7.7), log(10.0), log(0.7), sine_of_turns(0.1), sine_of_turns(7.9)]
    assert [value.hex() for value in found] == [
        "0x1.5bf0a8b145769p+1", "0x1.cf46d99d52b3bp-1", "0x1.3b2c47bff8329p+0", "0x1.3b2c47bff8328p-8",
        "0x1.26bb1bbb55516p+1", "-0x1.6d3c324e13f50p-2", "0x1.2cf2304755a5ep-1", "-0x1.2cf2304755a4ep-1",
    ]  # fmt: skip
