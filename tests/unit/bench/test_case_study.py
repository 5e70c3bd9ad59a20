"""What the case study's table is computed from, and how it is written."""

from __future__ import annotations

import re
from typing import Any

import pytest

from benchmarks.case_study import page
from benchmarks.case_study.measured import in_profile_time, loaded, offload_fraction, saturated


def line(arrival_s: float, end_s: float, *, route: str = "remote", outcome: str = "ok") -> dict[str, Any]:
    first_s = arrival_s + 1.0
    return {"arrival_s": arrival_s, "first_token_s": first_s, "end_s": end_s, "route": route, "outcome": outcome}


def test_a_saturated_rate_counts_what_ends_between_the_warm_up_and_the_last_arrival() -> None:
    """Not what ended before, not what drains afterwards, not what failed."""
    lines = [line(at_s, at_s + 10.0) for at_s in range(101)]
    assert saturated(lines, 20.0).rps == 1.0
    assert saturated(lines, 20.0).window_s == (20.0, 100.0)
    lines[50]["outcome"] = "error"
    assert saturated(lines, 20.0).rps == 79 / 80


def test_a_run_that_ends_within_its_warm_up_is_refused() -> None:
    """It has nothing to say."""
    with pytest.raises(ValueError, match="within the warm-up of 20 s"):
        saturated([line(10.0, 30.0)], 20.0)


def test_times_below_saturation_leave_the_first_ones_out() -> None:
    """A tenth, by arrival, however the lines are ordered."""
    lines = [line(float(at_s), at_s + 10.0) for at_s in range(10)][::-1]
    lines[-1]["first_token_s"] = 1_000.0
    found = loaded(lines, 0.1)
    assert (found.num_requests, found.ttft_s_mean, found.ttft_s_p90) == (9, 1.0, 1.0)


def test_offloaded_is_what_a_prfaas_cluster_prefilled() -> None:
    """A prefill instance of the same cluster is not."""
    assert offload_fraction([line(0, 1), line(0, 1, route="pd_prefill"), line(0, 1, route="local")]) == 1 / 3


def test_times_of_the_clock_become_the_profiles() -> None:
    """Nothing else changes; what never came stays away."""
    found = in_profile_time([{**line(2.0, 4.0), "first_token_s": None, "input_tokens": 7}], 0.5)
    assert found == [
        {"arrival_s": 4.0, "first_token_s": None, "end_s": 8.0, "route": "remote", "outcome": "ok", "input_tokens": 7}
    ]


def figures(rps: float, *, offloads: bool) -> dict[str, Any]:
    seen = {
        "saturated": {"rps": rps, "offload_fraction": 0.5}, "loaded": {"ttft_s_mean": 3.0, "ttft_s_p90": 5.0},
        "threshold_tokens": 20_000 if offloads else None, "egress_bytes_per_s": 1.5e9 if offloads else 0.0,
        "duties": [3, 5],
    }  # fmt: skip
    plan = {
        "system_rps": 2 * rps, "num_pd_prefill": 3, "num_pd_decode": 5, "routing_threshold_tokens": 19_420,
        "offload_fraction": 0.495, "egress_bytes_per_s": 1.55e9, "ttft_s_mean": 2.2, "ttft_s_p90": 3.5,
    }  # fmt: skip
    return {"plan": plan, "simulation": seen, "system": seen}


FOUND = {
    "load": 0.8,
    "policies": {"prfaas": figures(3.0, offloads=True), "homogeneous": figures(2.0, offloads=False)},
}


def test_the_table_divides_the_system_by_plan_and_simulation() -> None:
    """And what we gain by what others have."""
    rows = page.table_of(FOUND).splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert ["Λ_max, requests/s", "3.24", "6.00", "3.00", "3.00", "0.500", "1.000"] in cells
    assert ["threshold t, tokens", "19,400", "19,420", "20,000", "20,000", "1.030", "1.000"] in cells
    assert ["egress, Gbps", "13.0", "12.4", "12.0", "12.0", "0.968", "1.000"] in cells
    assert ["Λ_max / homogeneous's", "1.54", "1.50", "1.50", "1.50", "1.000", "1.000"] in cells
    assert {len(row) for row in cells} == {7}


def test_the_table_takes_the_place_of_the_last_one() -> None:
    """A page without a place for it is told, not spoiled."""
    text = f"before\n{page.BEGINS}\nold\n{page.ENDS}\nafter\n"
    assert page.with_block(text, "| new |") == f"before\n{page.BEGINS}\n\n| new |\n\n{page.ENDS}\nafter\n"
    with pytest.raises(ValueError, match="are missing"):
        page.with_block("before\nafter\n", "| new |")


def test_the_page_and_the_picture_are_of_the_same_run() -> None:
    """The picture's description has the page's figures."""
    text = page.PAGE.read_text()
    described = re.search(r"<desc>(.*?)</desc>", page.IMAGE.read_text())
    assert described is not None
    rates = re.findall(r"Λ_max, requests/s \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", text)
    assert len(rates) == 3
    for paper, plan, simulation, system in rates:
        assert f"paper {paper}, plan {plan}, simulation {simulation}, system {system}" in described.group(1)


def test_the_picture_says_in_words_what_it_shows() -> None:
    """For those who cannot see it."""
    svg = page.picture(FOUND)
    assert "PrfaaS-PD: 32 H200, 64 H20: requests/s paper 3.24, plan 6.00, simulation 3.00, system 3.00" in svg
