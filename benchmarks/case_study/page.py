"""What the case study's figures look like: a table in docs/benchmarks/case-study.md, and a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import matplotlib
from matplotlib.figure import Figure

from prfaas.drawing import COLOURS, STYLE, described_svg

_DOCS: Final = Path(__file__).parents[2] / "docs"
PAGE: Final = _DOCS / "benchmarks" / "case-study.md"
IMAGE: Final = _DOCS / "images" / "case-study.svg"
BEGINS: Final = "<!-- figures: make case-study -->"
ENDS: Final = "<!-- end of figures -->"

NAMES: Final = {
    "prfaas": "PrfaaS-PD: 32 H200, 64 H20",
    "homogeneous": "Homogeneous PD: 96 H20",
    "naive": "Naive heterogeneous PD: 32 H200, 64 H20",
}
#: arXiv 2604.15039, Table 6 and section 4. Seconds, Gbps; times to the first token are without queues.
PAPER: Final[dict[str, dict[str, Any]]] = {
    "prfaas": {
        "rps": 3.24,
        "threshold": 19_400,
        "split": "3 / 5",
        "offloaded": 0.496,
        "gbps": 13,
        "ttft": (2.22, 3.51),
    },
    "homogeneous": {"rps": 2.11, "split": "9 / 3", "ttft": (4.44, 9.73)},
    "naive": {"rps": 2.45, "split": "– / 8", "ttft": (1.74, 3.51)},
}
COLUMNS: Final = ("paper", "plan", "simulation", "system")

Figures = Mapping[str, Any]


def table_of(found: Figures) -> str:
    """Markdown. `found` as benchmarks.case_study.table makes it."""
    policies: dict[str, Any] = found["policies"]
    lines = [
        f"| | {' | '.join(COLUMNS)} | system / plan | system / simulation |",
        f"|---|{'---:|' * (len(COLUMNS) + 2)}",
    ]
    for policy, figures in policies.items():
        lines += _rows(policy, figures, found["load"])
    if len(policies) > 1:
        lines += _ratios(policies, found["load"])
    return "\n".join(lines)


def _rows(policy: str, figures: Figures, load: float) -> list[str]:
    paper, plan, system, simulation = PAPER[policy], figures["plan"], figures["system"], figures["simulation"]
    at_most, below = system["saturated"], system["loaded"]
    rps = (paper["rps"], plan["system_rps"], simulation["saturated"]["rps"], at_most["rps"])
    rows = [f"| **{NAMES[policy]}** | | | | | | |", _row("Λ_max, requests/s", rps, ".2f")]
    split = (paper["split"], *(_split(policy, duties) for duties in _duties(figures)))
    rows.append(f"| N_p / N_d | {' | '.join(split)} | | |")
    if policy == "prfaas":
        thresholds = (paper["threshold"], plan["routing_threshold_tokens"], *_both("threshold_tokens", figures))
        rows.append(_row("threshold t, tokens", thresholds, ",.0f"))
        shares = (plan["offload_fraction"], simulation["saturated"]["offload_fraction"], at_most["offload_fraction"])
        rows.append(_row("offloaded", (paper["offloaded"], *shares), ".1%"))
    if policy != "homogeneous":
        egress = (plan["egress_bytes_per_s"], *_both("egress_bytes_per_s", figures))
        gbps = tuple(bytes_per_s * 8 / 1e9 for bytes_per_s in egress)
        rows.append(_row("egress, Gbps", (paper.get("gbps"), *gbps), ".1f"))
    rows.append(_row("TTFT without queues, s: mean", (paper["ttft"][0], plan["ttft_s_mean"], None, None), ".2f"))
    rows.append(_row("P90", (paper["ttft"][1], plan["ttft_s_p90"], None, None), ".2f"))
    loaded = simulation["loaded"]
    rows.append(
        _row(f"TTFT at {load:g} of Λ_max, s: mean", (None, None, loaded["ttft_s_mean"], below["ttft_s_mean"]), ".2f")
    )
    rows.append(_row("P90", (None, None, loaded["ttft_s_p90"], below["ttft_s_p90"]), ".2f"))
    return rows


def _both(name: str, figures: Figures) -> tuple[float, float]:
    return figures["simulation"][name], figures["system"][name]


def _duties(figures: Figures) -> tuple[tuple[int, int], ...]:
    plan = figures["plan"]
    return (plan["num_pd_prefill"], plan["num_pd_decode"]), figures["simulation"]["duties"], figures["system"]["duties"]


def _split(policy: str, duties: tuple[int, int]) -> str:
    prefill, decode = duties
    return f"{'–' if policy == 'naive' and not prefill else prefill} / {decode}"


def _row(name: str, values: tuple[float | None, ...], form: str) -> str:
    cells = ["" if value is None else f"{value:{form}}" for value in values]
    _, plan, simulation, system = values
    ratios = [f"{system / one:.3f}" if system is not None and one else "" for one in (plan, simulation)]
    return f"| {name} | {' | '.join([*cells, *ratios])} |"


def _ratios(policies: Figures, load: float) -> list[str]:
    """Of PrfaaS-PD to the others."""
    rows = ["| **PrfaaS-PD beside the others** | | | | | | |"]
    rps = {policy: _rps(policy, figures) for policy, figures in policies.items()}
    for other in ("homogeneous", "naive"):
        if "prfaas" in policies and other in policies:
            ratios = tuple(ours / theirs for ours, theirs in zip(rps["prfaas"], rps[other], strict=True))
            rows.append(_row(f"Λ_max / {other}'s", ratios, ".2f"))
    if "prfaas" in policies and "homogeneous" in policies:
        for key, name, index in (("ttft_s_mean", "mean", 0), ("ttft_s_p90", "P90", 1)):
            ours, theirs = policies["prfaas"], policies["homogeneous"]
            empty = (
                PAPER["prfaas"]["ttft"][index] / PAPER["homogeneous"]["ttft"][index],
                ours["plan"][key] / theirs["plan"][key],
            )
            rows.append(_row(f"{name} TTFT / homogeneous's, without queues", (*empty, None, None), ".2f"))
            full = tuple(ours[how]["loaded"][key] / theirs[how]["loaded"][key] for how in ("simulation", "system"))
            rows.append(_row(f"{name} TTFT / homogeneous's, each at {load:g} of its Λ_max", (None, None, *full), ".2f"))
    return rows


def _rps(policy: str, figures: Figures) -> tuple[float, float, float, float]:
    found = (figures[how]["saturated"]["rps"] for how in ("simulation", "system"))
    simulation, system = found
    return PAPER[policy]["rps"], figures["plan"]["system_rps"], simulation, system


def with_block(page: str, block: str) -> str:
    """The page with this table in place of its last one. Raises ValueError if it has no place for it."""
    begins, ends = page.find(BEGINS), page.find(ENDS)
    if begins < 0 or ends < begins:
        raise ValueError(f"{PAGE}: the lines {BEGINS} and {ENDS} are missing; the table goes between them")
    return f"{page[: begins + len(BEGINS)]}\n\n{block}\n\n{page[ends:]}"


def picture(found: Figures) -> str:
    """An SVG."""
    policies: dict[str, Any] = found["policies"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.0, 3.4), layout="constrained")
        rates, times = figure.subplots(1, 2, width_ratios=(4, 3))
        names = [NAMES[policy].replace(": ", "\n") for policy in policies]
        for index, column in enumerate(COLUMNS):
            values = [_rps(policy, figures)[index] for policy, figures in policies.items()]
            at = [place + (index - 1.5) * 0.2 for place in range(len(policies))]
            bars = rates.bar(at, values, 0.19, color=COLOURS[index], label=column)
            rates.bar_label(bars, fmt="%.2f", fontsize=6)
        rates.set_title("requests/s at saturation")
        rates.legend(ncols=4, loc="upper right", fontsize=7)
        rates.set_ylim(top=1.2 * max(max(_rps(policy, figures)) for policy, figures in policies.items()))
        for index, column in enumerate(COLUMNS[2:], start=2):
            some = [figures[column]["loaded"] for figures in policies.values()]
            at = [place + (index - 2.5) * 0.36 for place in range(len(policies))]
            bars = times.bar(at, [one["ttft_s_mean"] for one in some], 0.34, color=COLOURS[index], label=column)
            times.bar_label(bars, fmt="%.2f", fontsize=6)
            times.plot(at, [one["ttft_s_p90"] for one in some], "_", color="black", markersize=12, zorder=3)
        times.set_title(f"first token, s, at {found['load']:g}: mean, P90 (–)")
        for axes in (rates, times):
            axes.set_xticks(
                range(len(policies)), [name.replace("heterogeneous", "heterog.") for name in names], fontsize=7
            )
        return described_svg(figure, "The case study: paper, plan, simulation, system", _about(policies))


def _about(policies: Figures) -> str:
    parts = []
    for policy, figures in policies.items():
        rates = ", ".join(f"{column} {rps:.2f}" for column, rps in zip(COLUMNS, _rps(policy, figures), strict=True))
        loaded = [figures[how]["loaded"] for how in ("simulation", "system")]
        times = ", ".join(f"{one['ttft_s_mean']:.2f} (P90 {one['ttft_s_p90']:.2f})" for one in loaded)
        parts.append(f"{NAMES[policy]}: requests/s {rates}; first token after, s, simulated and measured: {times}")
    return ". ".join(parts)
