"""Exponentials, logarithms and sines of which every bit is the same on every machine.

`math.exp`, `math.log`, `math.sin` and `**` ask the C library, whose last bit depends on the platform, and on what the
processor has: glibc chooses between its kernels when a process starts. One such bit, and another request may be first
in a queue. So whatever decides, or draws what is decided about, calls these instead, which
`tests/unit/test_portability.py` sees to.

Laws of this file:
- A result comes from nothing but what IEEE 754 rounds correctly (+ − × ÷), comparisons, whole numbers, and scaling by
  powers of two, each done by itself and in the order in which it is written.
- It is within a relative error of 1e-15, and not always the float nearest to the truth.
"""

from __future__ import annotations

import math
from typing import Final

#: ln 2 in two parts, the first of which has so few bits that small multiples of it are exact. These, and `_LOG`, are
#: from fdlibm's e_log.c. Copyright (C) 1993 by Sun Microsystems, Inc. Developed at SunPro, a Sun Microsystems, Inc.
#: business. Permission to use, copy, modify, and distribute this software is freely granted, provided that this notice
#: is preserved.
_LN2_HIGH: Final = 6.93147180369123816490e-01
_LN2_LOW: Final = 1.90821492927058770002e-10
#: (ln(1 + f) − f + f²/2) / s, less f²/2, as a polynomial of s² without its constant term, where s = f / (2 + f).
_LOG: Final = (
    1.479819860511658591e-01, 1.531383769920937332e-01, 1.818357216161805012e-01, 2.222219843214978396e-01,
    2.857142874366239149e-01, 3.999999999940941908e-01, 6.666666666666735130e-01,
)  # fmt: skip
LN2: Final = 0.6931471805599453
_SQRT_HALF: Final = 0.7071067811865476

#: Powers of two are taken apart into a whole one, one of so many between 1 and 2, and a rest for which five terms of
#: the series of exp are enough.
_PARTS: Final = 64
_PARTS_TO_LN2: Final = _PARTS / LN2
_PART_HIGH: Final = _LN2_HIGH / _PARTS
_PART_LOW: Final = _LN2_LOW / _PARTS
#: Of this and of less every power, of two and of e, is zero.
_LOWEST: Final = -1_100.0


def _between_one_and_two(part: int) -> float:
    """2^(part / 64), by whole numbers alone: a square root of a square root is one of the fourth degree."""
    precision = 100
    root = 1 << (part + _PARTS * precision)
    for _ in range(_PARTS.bit_length() - 1):
        root = math.isqrt(root)
    return root / (1 << precision)


_POWERS: Final = tuple(map(_between_one_and_two, range(_PARTS)))


def exp2(x: float) -> float:
    """2^x. Exact for whole x. Raises OverflowError where it is too large for a float."""
    if x < _LOWEST:
        return 0.0
    num_parts = round(x * _PARTS)
    rest = (x - num_parts / _PARTS) * LN2
    power = _POWERS[num_parts % _PARTS]
    grows = rest + rest * rest * (0.5 + rest * (1.0 / 6.0 + rest * (1.0 / 24.0 + rest * (1.0 / 120.0))))
    return math.ldexp(power + power * grows, num_parts // _PARTS)


def exp(x: float) -> float:
    """e^x. Raises OverflowError where it is too large for a float."""
    if x < _LOWEST:
        return 0.0
    # From here on as above: to call the same function would take as long as what is in it.
    num_parts = round(x * _PARTS_TO_LN2)
    rest = (x - num_parts * _PART_HIGH) - num_parts * _PART_LOW
    power = _POWERS[num_parts % _PARTS]
    grows = rest + rest * rest * (0.5 + rest * (1.0 / 6.0 + rest * (1.0 / 24.0 + rest * (1.0 / 120.0))))
    return math.ldexp(power + power * grows, num_parts // _PARTS)


def log(x: float) -> float:
    """Natural. Raises ValueError for what is not positive and finite."""
    if not 0.0 < x < math.inf:
        raise ValueError(f"there is no logarithm of {x}")
    part, exponent = math.frexp(x)
    if part < _SQRT_HALF:
        part, exponent = 2.0 * part, exponent - 1
    f = part - 1.0
    s = f / (2.0 + f)
    rest = polynomial(_LOG, s * s) * (s * s)
    half_square = 0.5 * f * f
    low = s * (half_square + rest) + exponent * _LN2_LOW
    return exponent * _LN2_HIGH - ((half_square - low) - f)


#: Of sin(2πr): the series of sin, up to where a quarter of a turn has nothing left.
_TURN: Final = 2.0 * math.pi
_SINE: Final = tuple((1.0 if degree % 4 == 1 else -1.0) / math.factorial(degree) for degree in range(23, 1, -2))


def sine_of_turns(turns: float) -> float:
    """sin(2π · turns), periodic without error: after a whole number of turns it is zero."""
    rest = turns - round(turns)
    if abs(rest) > 0.25:
        rest = (0.5 if rest > 0.0 else -0.5) - rest
    x = _TURN * rest
    square = x * x
    return x + x * square * polynomial(_SINE, square)


def polynomial(coefficients: tuple[float, ...], x: float) -> float:
    """The highest power first."""
    value = 0.0
    for coefficient in coefficients:
        value = value * x + coefficient
    return value
