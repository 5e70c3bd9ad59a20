"""Pictures of simulated runs: what was so over time, side by side for a few policies, and how long answers took."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from prfaas.drawing import COLOURS, DASHES, STYLE, described_svg, png
from prfaas.sim.observed import Moment, crossing_bytes_per_s
from prfaas.simulator.results import Results
from prfaas.simulator.watched import Pictured

#: Of more policies only distributions and bars can be read.
MAX_COLUMNS: Final = 4
#: Points of a line: more cannot be told apart on a page.
_MAX_POINTS: Final = 300
_MAX_SAID: Final = 9
_GBPS: Final = 8e-9
#: Where the axis of links begins; a link that is cut is below.
_LEAST_GBPS: Final = 0.1
_GREY: Final = "#777777"

Said = Sequence[tuple[float, str]]


def picture(title: str, pictured: Sequence[Pictured], said: Said, ending: str) -> bytes:
    """A .svg, which says in words what it shows, or a .png."""
    with rc_context(STYLE):
        is_few = len(pictured) <= MAX_COLUMNS
        figure = _side_by_side(pictured, said) if is_few else _many(pictured)
        figure.suptitle(title, fontsize=10)
        if ending == ".png":
            return png(figure)
        svg = described_svg(figure, title, _about(pictured, said))
        return "\n".join(line.rstrip() for line in svg.splitlines()).encode() + b"\n"


def _about(pictured: Sequence[Pictured], said: Said) -> str:
    shown = [title for title, _ in _PANELS] if len(pictured) <= MAX_COLUMNS else []
    shown += ["time to the first token", "end to end"]
    shown += [] if len(pictured) <= MAX_COLUMNS else [title for title, _, _ in _BARS]
    parts = [f"Panels: {'; '.join(shown)}."]
    for one in pictured:
        p50, p99 = (_median(one.results, value) for value in (lambda r: r.ttft_s_p50, lambda r: r.ttft_s_p99))
        goodput = _median(one.results, lambda r: r.goodput_rps)
        parts.append(f"{one.policy}: TTFT p50 {p50:.2f} s, p99 {p99:.2f} s, {goodput:.2f} good answers a second.")
    return " ".join([*parts, *(f"At {at_s:g} s: {text}." for at_s, text in said)])


def _side_by_side(pictured: Sequence[Pictured], said: Said) -> Figure:
    """A column of time series for each policy; below, the distributions of all."""
    num = len(pictured)
    told = [f"{n}: {at_s:g} s, {text}" for n, (at_s, text) in enumerate(said[:_MAX_SAID], start=1)]
    width, over_time, below = max(8.0, 4.4 * num), 1.75 * len(_PANELS), 3.2
    figure = Figure(
        figsize=(width, over_time + below + 0.4 + 0.16 * len(told)), layout=ConstrainedLayoutEngine(h_pad=0.06)
    )
    heights = [1.75] * len(_PANELS) + [below]
    grid = figure.add_gridspec(len(heights), 2 * num, height_ratios=heights)
    first: Any = None
    for row, (title, draw) in enumerate(_PANELS):
        beside: Any = None
        for column, one in enumerate(pictured):
            axis = figure.add_subplot(grid[row, 2 * column : 2 * column + 2], sharex=first, sharey=beside)
            first, beside = first or axis, beside or axis
            draw(axis, one.moments)
            _over_time(axis, one.moments, said, is_last=row == len(_PANELS) - 1, has_numbers=row == 0)
            axis.set_title(f"{one.policy}: {title}" if num > 1 else title)
            if column:
                axis.tick_params(labelleft=False)
                axis.set_ylabel("")
        # Of all columns, so not before all are drawn.
        if beside.get_yscale() == "linear":
            beside.set_ylim(bottom=0)
    axes = [figure.add_subplot(grid[-1, :num]), figure.add_subplot(grid[-1, num:])]
    distributions(axes, pictured)
    if num > 1:
        axes[0].legend(loc="lower right")
    if told:
        figure.supxlabel("\n".join(told), fontsize=7.5, x=0.02, ha="left")
    return figure


def _over_time(axis: Any, moments: Sequence[Moment], said: Said, *, is_last: bool, has_numbers: bool) -> None:
    axis.set_xlim(0, moments[-1].at_s)
    axis.grid(visible=True, linewidth=0.3, alpha=0.6)
    axis.tick_params(labelbottom=is_last)
    if is_last:
        axis.set_xlabel("seconds since the start")
    for number, (at_s, _) in enumerate(said, start=1):
        if at_s > moments[-1].at_s:
            continue  # beside the axis it would push the panels away
        axis.axvline(at_s, color=_GREY, linewidth=0.8, linestyle=(0, (4, 2)))
        if has_numbers and number <= _MAX_SAID:
            axis.annotate(
                str(number), (at_s, 1.0), xycoords=("data", "axes fraction"), xytext=(2, -1), va="top", fontsize=7.5,
                textcoords="offset points", color=_GREY, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
            )  # fmt: skip


# What is so over time


def _threshold(axis: Any, moments: Sequence[Moment]) -> None:
    axis.set_ylabel("tokens")
    if not any(m.solved_tokens or m.now_tokens for m in moments):
        all_leave = any(m.solved_tokens == 0 for m in moments)
        text = "every prompt leaves" if all_leave else "none: nothing leaves, or another rule chooses"
        axis.text(0.5, 0.5, text, fontsize=8, transform=axis.transAxes, ha="center", color=_GREY)
        return
    seen = moments[:: _step(moments)]
    for index, name in enumerate(seen[0].now_tokens):
        points = [(m.at_s, m.now_tokens[name]) for m in seen]
        found = [(at_s, tokens) for at_s, tokens in points if tokens is not None]
        none = [at_s for at_s, tokens in points if tokens is None]
        colour = COLOURS[(index + 1) % 7]
        axis.plot(*_columns(found), linestyle="none", marker="o", markersize=1.5, color=colour, label=f"{name} now")
        if none:
            above = axis.get_xaxis_transform()
            axis.plot(none, [0.97] * len(none), linestyle="none", marker="^", markersize=2, color=colour,
                      transform=above, label=f"{name}: none would leave")  # fmt: skip
    solved = [(m.at_s, m.solved_tokens) for m in seen if m.solved_tokens is not None]
    # Of a policy without one of this moment it is fixed.
    label = "solved" if seen[0].now_tokens else "fixed"
    axis.plot(*_columns(solved), color=COLOURS[0], linewidth=1.8, label=label)
    axis.set_yscale("log", base=2)
    axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y / 1024:g}K" if y >= 1024 else f"{y:g}"))
    axis.legend(loc="best", markerscale=2)


def _waiting(axis: Any, moments: Sequence[Moment]) -> None:
    _by_name(axis, moments, {name: [m.num_waiting[name] for m in moments] for name in moments[0].num_waiting})
    axis.set_ylabel("prompts")


def _link(axis: Any, moments: Sequence[Moment]) -> None:
    axis.set_ylabel("Gbps")
    if not moments[0].links:
        axis.text(0.5, 0.5, "no link has a limit", transform=axis.transAxes, ha="center", color=_GREY)
        return
    thin = moments[:: _step(moments)]
    for index, pair in enumerate(moments[0].links):
        crosses = [value * _GBPS for value in crossing_bytes_per_s(thin, pair)]
        times = [m.at_s for m in thin]
        name = "" if len(moments[0].links) == 1 else f"{pair[0]} > {pair[1]} "
        colour = COLOURS[index % 7]
        axis.stairs(crosses, times, baseline=None, color=colour, linewidth=1.5, alpha=0.8, label=f"{name}crosses")
        carries = [(m.at_s, m.links[pair].carries_bytes_per_s * _GBPS) for m in thin]
        axis.step(
            *_columns(carries), where="post", color="black", linewidth=0.9, linestyle=":", label=f"{name}can carry"
        )
        expected = [(m.at_s, rate * _GBPS) for m in thin if (rate := m.links[pair].expected_bytes_per_s) is not None]
        if expected:
            axis.plot(*_columns(expected), color=COLOURS[1 if index == 0 else (index + 3) % 7], linewidth=1.2,
                      linestyle="--", label=f"{name}expected")  # fmt: skip
    axis.set_yscale("log", nonpositive="clip")
    most_gbps = max(link.carries_bytes_per_s for m in thin for link in m.links.values()) * _GBPS
    if most_gbps > 0:
        axis.set_ylim(min(_LEAST_GBPS, most_gbps / 100), most_gbps * 2)
    axis.yaxis.set_major_locator(LogLocator(base=10))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.legend(loc="best")


def _duties(axis: Any, moments: Sequence[Moment]) -> None:
    seen = moments[:: _step(moments)]
    for index, name in enumerate(seen[0].num_prefill):
        where = "" if len(seen[0].num_prefill) == 1 else f"{name} "
        for number, (what, counts) in enumerate(
            (("prefill", [m.num_prefill[name] for m in seen]), ("decode", [m.num_decode[name] for m in seen]))
        ):
            axis.step([m.at_s for m in seen], counts, where="post", color=COLOURS[(2 * index + number) % 7],
                      linestyle=DASHES[(2 * index + number) % 7], linewidth=1.5, label=f"{where}{what}")  # fmt: skip
    axis.set_ylabel("instances")
    axis.margins(y=0.25)
    axis.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    axis.legend(loc="best", ncols=2)


def _inside(axis: Any, moments: Sequence[Moment]) -> None:
    _by_name(axis, moments, {"": [m.num_inside for m in moments]})
    axis.set_ylabel("requests")


_PANELS: Final[tuple[tuple[str, Callable[[Any, Sequence[Moment]], None]], ...]] = (
    ("routing threshold", _threshold),
    ("prompts that wait", _waiting),
    ("links", _link),
    ("instances of PD clusters", _duties),
    ("requests inside", _inside),
)


def _by_name(axis: Any, moments: Sequence[Moment], lines: Mapping[str, Sequence[int]]) -> None:
    """Of several moments that share a point, the largest, so that no peak is lost."""
    step = _step(moments)
    for index, (name, values) in enumerate(lines.items()):
        peaks = [max(values[at : at + step]) for at in range(0, len(values), step)]
        axis.plot([m.at_s for m in moments[::step]], peaks, color=COLOURS[index % 7], linestyle=DASHES[index % 7],
                  linewidth=1.2, label=name)  # fmt: skip
    axis.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    if len(lines) > 1:
        axis.legend(loc="best")


def _step(moments: Sequence[Moment]) -> int:
    return len(moments) // _MAX_POINTS + 1


def _columns(points: Iterable[tuple[float, float]]) -> tuple[list[float], list[float]]:
    listed = list(points)
    return [x for x, _ in listed], [y for _, y in listed]


# How long answers took


def distributions(axes: Sequence[Any], pictured: Sequence[Pictured]) -> None:
    """Of the times to the first token, and to the last one, in two panels."""
    values: tuple[tuple[str, Callable[[Pictured], list[float]]], ...] = (
        ("time to the first token", lambda one: one.ttft_s),
        ("end to end", lambda one: one.e2e_s),
    )
    for axis, (title, value) in zip(axes, values, strict=True):
        for index, one in enumerate(pictured):
            xs, ys = _cdf(value(one))
            axis.plot(xs, ys, color=COLOURS[index % 7], linestyle=DASHES[index % 7], linewidth=1.4,
                      label=one.policy)  # fmt: skip
        axis.set_xscale("log")
        low, high = axis.get_xlim()
        if high > 4 * low:
            # Of less than a decade two numbers may both be outside.
            axis.xaxis.set_minor_formatter(_some_numbers("25" if high > 10 * low else "2346"))
        else:  # and of less than half of one, all
            axis.set_xscale("linear")
        axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.0%}"))
        axis.set(title=f"{title}, distribution", xlabel="seconds", ylim=(0, 1.02))
        axis.grid(visible=True, linewidth=0.3, alpha=0.6)
    axes[0].set_ylabel("answers that took at most this")


def _some_numbers(first_digits: str) -> FuncFormatter:
    return FuncFormatter(lambda x, _: f"{x:g}" if f"{x:g}".lstrip("0.")[:1] in first_digits else "")


def _cdf(values: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most _MAX_POINTS of it, more of them near the top: the slowest are what is looked for."""
    ordered = sorted(values)
    if not ordered:
        return [], []
    shares = {1 - (1 - n / _MAX_POINTS) * (1 - n / _MAX_POINTS) for n in range(_MAX_POINTS)} | {1.0}
    indices = sorted({math.ceil(share * (len(ordered) - 1)) for share in shares})
    return [ordered[index] for index in indices], [(index + 1) / len(ordered) for index in indices]


# Many policies

_BARS: Final[tuple[tuple[str, Callable[[Results], float | None], str], ...]] = (
    ("TTFT p50, s", lambda r: r.ttft_s_p50, ".2f"),
    ("TTFT p99, s", lambda r: r.ttft_s_p99, ".1f"),
    ("good answers a second", lambda r: r.goodput_rps, ".2f"),
)


def _median(results: Sequence[Results], value: Callable[[Results], float | None]) -> float:
    known = [number for result in results if (number := value(result)) is not None]
    return statistics.median(known) if known else math.nan


def _drawn(pictured: Sequence[Pictured]) -> list[Pictured]:
    """Of those whose curves can be told apart by colour: the first, and the best; in the order of all."""
    first, *others = pictured
    others.sort(key=lambda one: (-_median(one.results, lambda r: r.goodput_rps), _median(one.results, _BARS[0][1])))
    return [one for one in pictured if one is first or one in others[: len(COLOURS) - 1]]


def _many(pictured: Sequence[Pictured]) -> Figure:
    """Distributions one over the other; below, bars of each policy's medians over the seeds."""
    below = 0.24 * len(pictured) + 0.8
    figure = Figure(figsize=(11, 4.4 + below), layout="constrained")
    grid = figure.add_gridspec(2, 6, height_ratios=[4.0, below])
    axes = [figure.add_subplot(grid[0, :3]), figure.add_subplot(grid[0, 3:])]
    drawn = _drawn(pictured)
    distributions(axes, drawn)
    legend = axes[1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    if len(drawn) < len(pictured):
        legend.set_title(f"{drawn[0].policy}, and those\nwith the most\ngood answers")
    colours = [COLOURS[drawn.index(one)] if one in drawn else _GREY for one in pictured]
    for column, (title, value, form) in enumerate(_BARS):
        axis: Any = figure.add_subplot(grid[1, 2 * column : 2 * column + 2])
        known = [_median(one.results, value) for one in pictured]
        bars = axis.barh(range(len(known)), known, color=colours, alpha=0.8)
        axis.bar_label(bars, [f"{number:{form}}" for number in known], padding=3, fontsize=8)
        axis.set_yticks(range(len(known)), [one.policy for one in pictured] if column == 0 else [""] * len(known))
        axis.invert_yaxis()
        finite = [number for number in known if math.isfinite(number)] or [1.0]
        axis.set_title(title)
        if max(finite) > 10 * min(finite) > 0:
            axis.set(title=f"{title}, log scale", xscale="log")
            axis.set_xlim(min(finite) / 2, max(finite) * 4)
            axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        else:
            axis.set_xlim(0, max(finite) * 1.2 or 1.0)
    return figure
