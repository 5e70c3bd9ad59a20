"""NVIDIA's two sites in the simulator. `python -m benchmarks.simulator.two_sites` does the same at length."""

from __future__ import annotations

from functools import cache

import pytest

from benchmarks.simulator.two_sites import H100_PCIE_S, Seen, Setting, fitted_gbps, seen

#: Medians of the middle repetition, the rates of all, and the one request that nobody was beside.
REQUEST_S, ITL_MS, RATES_RPS, LONE_TTFT_S = 21.37, 28.87, (0.187, 0.198), 3.89


@cache
def gbps() -> float:
    """What the link carries if transfers that overlap end together."""
    return fitted_gbps("together")


@cache
def studied(sharing: str) -> Seen:
    """The study, with KVCache that leaves after prefill, at the rate that gives its time to first token."""
    return seen(Setting(fitted_gbps(sharing), sharing, is_layer_wise=False))


@pytest.mark.parametrize("sharing", ["in turn", "fairly", "together"])
def test_one_rate_explains_the_published_medians(sharing: str) -> None:
    """Whatever the sharing: in a closed loop they follow from one another."""
    found = studied(sharing)
    assert found.ttft_s == pytest.approx(14.02, rel=0.05)
    assert found.request_s == pytest.approx(REQUEST_S, rel=0.05)
    assert RATES_RPS[0] * 0.95 < found.rps < RATES_RPS[1] * 1.05


def test_only_transfers_that_end_together_explain_single_requests() -> None:
    """Four first tokens at one moment, decode steps of four, and what a lone request waits, within a tenth."""
    found = studied("together")
    assert found.in_step == 1.0
    assert found.itl_ms == pytest.approx(ITL_MS, rel=0.005)
    assert found.lone_ttft_s == pytest.approx(LONE_TTFT_S, rel=0.1)
    for sharing in ("in turn", "fairly"):
        other = studied(sharing)
        assert other.in_step < 0.1
        assert other.itl_ms < 0.985 * ITL_MS
        assert other.lone_ttft_s > 1.25 * LONE_TTFT_S


def test_leaving_layer_by_layer_gains_little_where_the_link_binds() -> None:
    """At most the one prefill that it hides."""
    before, after = studied("together"), seen(Setting(gbps(), "together"))
    assert 0 < before.ttft_s - after.ttft_s <= H100_PCIE_S + 0.01
    assert before.rps < after.rps < 1.06 * before.rps


def test_transfers_that_do_not_wait_for_one_another_gain_more() -> None:
    """At the same rate the link works while others decode."""
    found = seen(Setting(gbps(), "in turn", is_layer_wise=False))
    assert found.rps > 1.3 * studied("together").rps
    assert found.ttft_s < 0.5 * studied("together").ttft_s


def test_ethernet_that_is_used_in_full_makes_prefill_the_limit() -> None:
    """First tokens within two seconds, at more than twice the published rate; there layers that leave early count."""
    for rate in (10.0, 25.0):
        whole, layers = seen(Setting(rate, is_layer_wise=False)), seen(Setting(rate))
        assert layers.ttft_s < whole.ttft_s < 2.0
        assert layers.rps > 2.2 * RATES_RPS[1]


def test_the_policy_lets_a_dense_models_prompts_stay_where_the_link_is_thin() -> None:
    """None crosses the studied link, and nearly all cross one of 25 Gbit/s."""
    thin, local = seen(Setting(gbps(), routes="prfaas")), seen(Setting(gbps(), routes="local"))
    assert thin.remote == 0.0
    assert thin == local
    assert thin.rps > 1.9 * RATES_RPS[1]
    assert thin.ttft_s < 2.0
    assert seen(Setting(25.0, routes="prfaas")).remote > 0.9
