"""The standard normal distribution, with every bit the same on every machine: see `portable_math`.

The relative error is within 4e-15 up to 5 standard deviations from the mean, and grows to 2e-13 where the tail below
becomes less than any float, at 38: there the error of a share is that of x, times x².
"""

from __future__ import annotations

import math
from typing import Final

from prfaas.core.portable_math import exp, log, polynomial

_SQRT_HALF: Final = 0.7071067811865476

# erfc: the rational approximations of fdlibm's s_erf.c, the highest power first; P over Q each. Copyright (C) 1993 by
# Sun Microsystems, Inc. Developed at SunPro, a Sun Microsystems, Inc. business. Permission to use, copy, modify, and
# distribute this software is freely granted, provided that this notice is preserved.

#: (erf(x) − x) / x of x², up to 0.84375.
_NEAR: Final = 0.84375
_NEAR_P: Final = (
    -2.37630166566501626084e-05, -5.77027029648944159157e-03, -2.84817495755985104766e-02,
    -3.25042107247001499370e-01, 1.28379167095512558561e-01,
)  # fmt: skip
_NEAR_Q: Final = (
    -3.96022827877536812320e-06, 1.32494738004321644526e-04, 5.08130628187576562776e-03, 6.50222499887672944485e-02,
    3.97917223959155352819e-01, 1.0,
)  # fmt: skip
#: erf(x) − `_ERF_1` of x − 1, up to 1.25.
_MIDDLE: Final = 1.25
_ERF_1: Final = 8.45062911510467529297e-01
_MIDDLE_P: Final = (
    -2.16637559486879084300e-03, 3.54783043256182359371e-02, -1.10894694282396677476e-01, 3.18346619901161753674e-01,
    -3.72207876035701323847e-01, 4.14856118683748331666e-01, -2.36211856075265944077e-03,
)  # fmt: skip
_MIDDLE_Q: Final = (
    1.19844998467991074170e-02, 1.36370839120290507362e-02, 1.26171219808761642112e-01, 7.18286544141962662868e-02,
    5.40397917702171048937e-01, 1.06420880400844228286e-01, 1.0,
)  # fmt: skip
#: ln(x · erfc(x)) + x² + 0.5625 of 1/x², up to 1/0.35 and beyond.
_FAR: Final = 1.0 / 0.35
_FAR_P: Final = (
    -9.81432934416914548592e00, -8.12874355063065934246e01, -1.84605092906711035994e02, -1.62396669462573470355e02,
    -6.23753324503260060396e01, -1.05586262253232909814e01, -6.93858572707181764372e-01, -9.86494403484714822705e-03,
)  # fmt: skip
_FAR_Q: Final = (
    -6.04244152148580987438e-02, 6.57024977031928170135e00, 1.08635005541779435134e02, 4.29008140027567833386e02,
    6.45387271733267880336e02, 4.34565877475229228821e02, 1.37657754143519042600e02, 1.96512716674392571292e01, 1.0,
)  # fmt: skip
_FARTHEST_P: Final = (
    -4.83519191608651397019e02, -1.02509513161107724954e03, -6.37566443368389627722e02, -1.60636384855821916062e02,
    -1.77579549177547519889e01, -7.99283237680523006574e-01, -9.86494292470009928597e-03,
)  # fmt: skip
_FARTHEST_Q: Final = (
    -2.24409524465858183362e01, 4.74528541206955367215e02, 2.55305040643316442583e03, 3.19985821950859553908e03,
    1.53672958608443695994e03, 3.25792512996573918826e02, 3.03380607434824582924e01, 1.0,
)  # fmt: skip
#: Beyond it erfc is no float but zero, and on the other side, from −6 on, nothing but two.
_END: Final = 28.0
_OTHER_END: Final = -6.0

# The quantile: M. J. Wichura, Algorithm AS 241 (PPND16), Applied Statistics 37 (1988), in the same form.

#: Within so much of one half, and in the tails up to a distance of 5: √(−ln share).
_CENTRE: Final = 0.425
_CENTRE_P: Final = (
    2.5090809287301226727e3, 3.3430575583588128105e4, 6.7265770927008700853e4, 4.5921953931549871457e4,
    1.3731693765509461125e4, 1.9715909503065514427e3, 1.3314166789178437745e2, 3.3871328727963666080e0,
)  # fmt: skip
_CENTRE_Q: Final = (
    5.2264952788528545610e3, 2.8729085735721942674e4, 3.9307895800092710610e4, 2.1213794301586595867e4,
    5.3941960214247511077e3, 6.8718700749205790830e2, 4.2313330701600911252e1, 1.0,
)  # fmt: skip
_TAIL: Final = 5.0
_TAIL_P: Final = (
    7.7454501427834140764e-4, 2.27238449892691845833e-2, 2.41780725177450611770e-1, 1.27045825245236838258e0,
    3.64784832476320460504e0, 5.76949722146069140550e0, 4.63033784615654529590e0, 1.42343711074968357734e0,
)  # fmt: skip
_TAIL_Q: Final = (
    1.05075007164441684324e-9, 5.4759380849953449460e-4, 1.51986665636164571966e-2, 1.48103976427480074590e-1,
    6.89767334985100004550e-1, 1.67638483018380384940e0, 2.05319162663775882187e0, 1.0,
)  # fmt: skip
_TIP_P: Final = (
    2.01033439929228813265e-7, 2.71155556874348757815e-5, 1.24266094738807843860e-3, 2.65321895265761230930e-2,
    2.96560571828504891230e-1, 1.78482653991729133580e0, 5.46378491116411436990e0, 6.65790464350110377720e0,
)  # fmt: skip
_TIP_Q: Final = (
    2.04426310338993978564e-15, 1.4215117583164458887e-7, 1.84631831751005468180e-5, 7.86869131145613259100e-4,
    1.48753612908506148525e-2, 1.36929880922735805310e-1, 5.99832206555887937690e-1, 1.0,
)  # fmt: skip


def share_below(x: float) -> float:
    """Φ(x), accurate in the tail below."""
    return 0.5 * _erfc(-x * _SQRT_HALF)


def share_between(a: float, b: float) -> float:
    """Φ(b) − Φ(a), accurate in both tails."""
    return share_below(-a) - share_below(-b) if a > 0 else share_below(b) - share_below(a)


def quantile(share: float) -> float:
    """Below which a share of all lies. Raises ValueError unless it is between 0 and 1."""
    from_middle = share - 0.5
    if abs(from_middle) <= _CENTRE:
        square = _CENTRE * _CENTRE - from_middle * from_middle
        return from_middle * polynomial(_CENTRE_P, square) / polynomial(_CENTRE_Q, square)
    distance = math.sqrt(-log(share if from_middle < 0.0 else 1.0 - share))
    if distance <= _TAIL:
        x = polynomial(_TAIL_P, distance - 1.6) / polynomial(_TAIL_Q, distance - 1.6)
    else:
        x = polynomial(_TIP_P, distance - _TAIL) / polynomial(_TIP_Q, distance - _TAIL)
    return -x if from_middle < 0.0 else x


def _erfc(x: float) -> float:
    size = abs(x)
    if size < _NEAR:
        beyond = x * (polynomial(_NEAR_P, x * x) / polynomial(_NEAR_Q, x * x))
        return 1.0 - (x + beyond) if x < 0.25 else 0.5 - (beyond + (x - 0.5))
    if size < _MIDDLE:
        beyond = polynomial(_MIDDLE_P, size - 1.0) / polynomial(_MIDDLE_Q, size - 1.0)
        return (1.0 - _ERF_1) - beyond if x > 0.0 else 1.0 + (_ERF_1 + beyond)
    if x >= _END:
        return 0.0
    if x <= _OTHER_END:
        return 2.0
    p, q = (_FAR_P, _FAR_Q) if size < _FAR else (_FARTHEST_P, _FARTHEST_Q)
    place = 1.0 / (x * x)
    # Of a number of so few bits the square is exact: in e^(−x²) an error of it would be as many times as large.
    short = math.ldexp(math.floor(math.ldexp(size, 20)), -20)
    rest = (short - size) * (short + size) + polynomial(p, place) / polynomial(q, place)
    tail = exp(-short * short - 0.5625) * exp(rest) / size
    return tail if x > 0.0 else 2.0 - tail
