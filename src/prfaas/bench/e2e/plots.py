"""A picture of a run: when requests came and how long each waited, how many were inside, and distributions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from prfaas.bench.e2e.results import E2eResults, inside
from prfaas.bench.e2e.sent import CANCELLED, Sent
from prfaas.drawing import COLOURS, STYLE, described_svg, png
from prfaas.simulator.plots import distributions
from prfaas.simulator.watched import Pictured

_ORDER: Final = ("local", "remote", "pd_prefill", "none", "unknown")
_MAX_POINTS: Final = 300


def picture(title: str, some: Sequence[Sent], result: E2eResults, ending: str) -> bytes:
    """Of the counted requests. A .svg, which says in words what it shows, or a .png."""
    with rc_context(STYLE):
        figure = _figure(some)
        figure.suptitle(title, fontsize=10)
        if ending == ".png":
            return png(figure)
        svg = described_svg(figure, title, _about(result))
        return "\n".join(line.rstrip() for line in svg.splitlines()).encode() + b"\n"


def _figure(some: Sequence[Sent]) -> Figure:
    figure = Figure(figsize=(9, 8), layout="constrained")
    grid = figure.add_gridspec(3, 2, height_ratios=[3.0, 1.6, 3.0])
    over_time: Any = figure.add_subplot(grid[0, :])
    _first_tokens(over_time, some)
    crowd: Any = figure.add_subplot(grid[1, :], sharex=over_time)
    _inside(crowd, some)
    axes: list[Any] = [figure.add_subplot(grid[2, 0]), figure.add_subplot(grid[2, 1])]
    routes = _routes(some)
    pictured = [
        Pictured(name, ttft_s=[one.ttft_s for one in of], e2e_s=[one.e2e_s for one in of])
        for name, of in routes.items()
    ]
    distributions(axes, pictured)
    if len(pictured) > 1:
        axes[0].legend(loc="lower right")
    return figure


def _routes(some: Sequence[Sent]) -> dict[str, list[Sent]]:
    """The answered ones, by route."""
    found: dict[str, list[Sent]] = {name: [] for name in _ORDER}
    for one in some:
        if one.is_ok:
            found.setdefault(one.route, []).append(one)
    return {name: of for name, of in found.items() if of}


def _first_tokens(axis: Any, some: Sequence[Sent]) -> None:
    for index, (name, of) in enumerate(_routes(some).items()):
        axis.plot([one.arrival_s for one in of], [one.ttft_s for one in of], linestyle="none", marker="o", markersize=2,
                  alpha=0.7, color=COLOURS[index % 7], label=name)  # fmt: skip
    lost = [one for one in some if not one.is_ok and one.outcome != CANCELLED]
    if lost:
        axis.plot([one.arrival_s for one in lost], [0.97] * len(lost), linestyle="none", marker="x", markersize=4,
                  color="black", transform=axis.get_xaxis_transform(), label="refused or failed")  # fmt: skip
    axis.set(title="time to the first token, by when the request was to be sent", ylabel="seconds")
    if any(one.is_ok for one in some):
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axis.legend(loc="best", markerscale=2)
    axis.grid(visible=True, linewidth=0.3, alpha=0.6)
    axis.tick_params(labelbottom=False)


def _inside(axis: Any, some: Sequence[Sent]) -> None:
    if some:
        from_s = some[0].arrival_s
        to_s = max([one.over_s for one in some if one.over_s == one.over_s] + [some[-1].arrival_s])
        times_s = [from_s + (to_s - from_s) * n / _MAX_POINTS for n in range(_MAX_POINTS + 1)]
        axis.plot(times_s, inside(some, times_s), color=COLOURS[0], linewidth=1.2)
    axis.set(title="requests inside", ylabel="requests", xlabel="seconds since the run began")
    axis.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    axis.set_ylim(bottom=0)
    axis.grid(visible=True, linewidth=0.3, alpha=0.6)


def _about(result: E2eResults) -> str:
    parts = ["Panels: time to the first token over time; requests inside; distributions of first and last tokens."]
    for name, figures in result.routes.items():
        if figures.ttft_s_p50 is not None and figures.ttft_s_p99 is not None:
            text = f"TTFT p50 {figures.ttft_s_p50:.3f} s, p99 {figures.ttft_s_p99:.3f} s"
            parts.append(f"{name}: {figures.num_completed} answers, {text}.")
    return " ".join(parts)
