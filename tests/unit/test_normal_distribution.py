"""The normal distribution against the C library, which is right to the last bits, if not the same everywhere."""

from __future__ import annotations

import math
from statistics import NormalDist

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from prfaas.core.normal_distribution import quantile, share_below, share_between


@given(st.floats(-37.0, 10.0))
@example(0.0)
@example(-0.84375 * math.sqrt(2))
@example(-1.25 * math.sqrt(2))
@example(-math.sqrt(2) / 0.35)
def test_the_share_below(x: float) -> None:
    """As the C library has it, in the tail too, at every border between two approximations too."""
    assert share_below(x) == pytest.approx(0.5 * math.erfc(-x * math.sqrt(0.5)), rel=2e-15)


def test_the_share_below_at_its_ends() -> None:
    """Beyond what a float can say it is nothing, or all."""
    assert share_below(-40.0) == 0.0
    assert share_below(0.0) == 0.5
    assert share_below(9.0) == share_below(40.0) == 1.0


@given(st.floats(0.0, 30.0, exclude_min=True), st.floats(0.01, 10.0))
def test_shares_between_are_the_same_on_both_sides(a: float, width: float) -> None:
    """The upper tail is as accurate as the lower one."""
    assert share_between(a, a + width) == share_between(-(a + width), -a) >= 0.0


@given(st.floats(1e-300, 1.0, exclude_max=True))
@example(0.075)
@example(math.exp(-25.0))
@example(0.5)
def test_the_quantile(share: float) -> None:
    """As the standard library has it, whose logarithm is the C library's."""
    assert quantile(share) == pytest.approx(NormalDist().inv_cdf(share), rel=2e-15, abs=1e-16)


@given(st.floats(-30.0, 8.0))
def test_the_quantile_goes_back(x: float) -> None:
    """From a share below to where it is; above the mean a share that is nearly all says less of it."""
    lost = 1e-16 / math.exp(-x * x / 2) if x > 0 else 0.0
    assert quantile(share_below(x)) == pytest.approx(x, rel=1e-14, abs=1e-15 + 5 * lost)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1.1, math.nan])
def test_there_is_no_quantile_of_other_shares(share: float) -> None:
    """Of none and of all there would be an end, which the distribution has not."""
    with pytest.raises(ValueError, match="no logarithm"):
        quantile(share)


def test_bits_that_every_machine_finds() -> None:
    """Another last bit here, and results of one seed are others than elsewhere."""
    found = [share_below(-3.3), share_below(-1.5), share_below(0.2), quantile(0.4), quantile(0.01), quantile(1e-30)]
    assert [value.hex() for value in found] == [
        "0x1.fae82e1b2d7b8p-12", "0x1.11a46d89647edp-4", "0x1.2894ba87dce1cp-1",
        "-0x1.036d6c4a04b5ap-2", "-0x1.29c5c4630ff0ep+1", "-0x1.6ed94a4dacdc9p+3",
    ]  # fmt: skip
