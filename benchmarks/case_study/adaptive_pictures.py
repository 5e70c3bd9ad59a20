"""One picture for each adaptive run: the system's curves laid over the simulator's. Times are those of the served
deployment, but for rates of links, which are those of the real one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from benchmarks.case_study.adaptive_samples import Done, Seen, crossing_bytes_per_s, windows
from prfaas.demo.case_study import BYTES_SCALE
from prfaas.drawing import COLOURS, STYLE, described_svg

#: Of the rate at which bytes cross.
RATE_EVERY_S: Final = 5.0
_GREY: Final = "#777777"
#: By who is shown: colours, widths and dashes that can be told apart where one curve covers the other.
_LINES: Final = {
    "processes": {"color": COLOURS[0], "linewidth": 1.8},
    "simulated": {"color": COLOURS[1], "linewidth": 1.3, "linestyle": "--"},
}
_SECOND: Final = {
    "processes": {"color": COLOURS[2], "linewidth": 1.8},
    "simulated": {"color": COLOURS[3], "linewidth": 1.3, "linestyle": "--"},
}
Panel = Callable[[Any, Done], None]


def picture(name: str, stories: Sequence[Done], about: str) -> str:
    """As SVG: a column for each story. `about` says in words what it shows."""
    panels = PANELS[name]
    with rc_context({**STYLE, "svg.hashsalt": f"adaptive-{name}"}):
        width = max(8.0, 4.6 * len(stories))
        figure = Figure(figsize=(width, 1.75 * len(panels) + 0.5), layout="constrained")
        grid = figure.subplots(len(panels), len(stories), sharex="col", sharey="row", squeeze=False)
        for column, done in enumerate(stories):
            for row, (title, draw) in enumerate(panels):
                axis = grid[row][column]
                draw(axis, done)
                axis.set_title(f"{done.story.about}\n{title}" if row == 0 and len(stories) > 1 else title)
                axis.grid(visible=True, linewidth=0.3, alpha=0.6)
                axis.set_xlim(0, done.until_s)
                for at_s in done.change_s:
                    axis.axvline(at_s, color=_GREY, linewidth=0.8, linestyle=(0, (4, 2)))
                if column:
                    axis.set_ylabel("")
            grid[-1][column].set_xlabel("seconds since the load began")
        for axis in grid[:, 0]:
            axis.legend(loc="best", ncols=2 if axis.get_title(loc="left").endswith(("link", "duties")) else 1)
        svg = described_svg(figure, TITLES[name], about)
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


def _threshold(axis: Any, done: Done) -> None:
    for label, seen in done.ends:
        xs = [sample.at_s for sample in seen.samples]
        ys = [math.nan if s.threshold_tokens is None else s.threshold_tokens / 1_000 for s in seen.samples]
        axis.plot(xs, ys, label=label, **_LINES[label])
    axis.axhline(done.planned_threshold_tokens / 1_000, color=_GREY, linewidth=0.8, linestyle=":", label="planned")
    axis.set_ylabel("thousand tokens")
    if done.story.mu is not None or done.story.is_convertible:
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axis.yaxis.set_minor_formatter(FuncFormatter(lambda y, _: f"{y:g}" if f"{y:g}"[0] in "25" else ""))


def _duties(axis: Any, done: Done) -> None:
    for label, seen in done.ends:
        xs = [sample.at_s for sample in seen.samples]
        axis.step(xs, [s.num_prefill for s in seen.samples], where="post", label=f"{label}: prefill", **_LINES[label])
        axis.step(xs, [s.num_decode for s in seen.samples], where="post", label=f"{label}: decode", **_SECOND[label])
    axis.set_ylabel("instances of pd-east")
    axis.set_ylim(0, 8)
    axis.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))


def _waiting(axis: Any, done: Done) -> None:
    for label, seen in done.ends:
        axis.plot(*_xy(seen, lambda sample: sum(sample.num_waiting.values())), label=label, **_LINES[label])
    axis.set_ylabel("prompts")


def _answers(axis: Any, done: Done) -> None:
    for label, seen in done.ends:
        axis.plot(*_xy(seen, lambda sample: sample.num_answers), label=label, **_LINES[label])
    axis.set_ylabel("requests")


def _ttft(axis: Any, done: Done) -> None:
    _windowed(axis, done, lambda window: window.ttft_s_mean)
    axis.set_ylabel("seconds")
    axis.set_ylim(bottom=0)


def _offload(axis: Any, done: Done) -> None:
    _windowed(axis, done, lambda window: 100 * window.offload_fraction)
    axis.set_ylabel("percent")
    axis.set_ylim(0, 105)


def _link(axis: Any, done: Done) -> None:
    gbps = 8e-9 * done.time_scale / BYTES_SCALE
    for label, seen in done.ends:
        points = crossing_bytes_per_s(seen.samples, RATE_EVERY_S)
        axis.plot([at_s for at_s, _ in points], [rate * gbps for _, rate in points], label=f"{label}: crosses",
                  **_LINES[label])  # fmt: skip
    if done.story.conditions:
        for label, seen in done.ends:
            axis.plot(*_xy(seen, lambda sample: sample.link_bytes_per_s * gbps), label=f"{label}: expected",
                      **_SECOND[label])  # fmt: skip
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axis.set_ylim(bottom=1)
    axis.set_ylabel("Gbps")


def _windowed(axis: Any, done: Done, value: Callable[[Any], float]) -> None:
    width_s = done.story.window_s * done.time_scale
    edges_s = [number * width_s for number in range(int(done.until_s / width_s) + 1)]
    for label, seen in done.ends:
        found = windows(seen.asked, edges_s)
        axis.stairs([value(window) for window in found], edges_s, baseline=None, label=label, **_LINES[label])


def _xy(seen: Seen, value: Callable[[Any], float]) -> tuple[list[float], list[float]]:
    return [sample.at_s for sample in seen.samples], [value(sample) for sample in seen.samples]


_TTFT: Final[tuple[str, Panel]] = ("mean time to the first token", _ttft)
PANELS: Final[dict[str, tuple[tuple[str, Panel], ...]]] = {
    "duties": (
        ("duties", _duties),
        ("prompts that wait", _waiting),
        ("requests at instances that decode", _answers),
        ("routing threshold", _threshold),
        ("link", _link),
        _TTFT,
    ),
    "threshold": (
        ("routing threshold", _threshold),
        ("share prefilled in prfaas-west", _offload),
        ("prompts that wait", _waiting),
        ("link", _link),
        _TTFT,
    ),
    "link": (
        ("link", _link),
        ("routing threshold", _threshold),
        ("share prefilled in prfaas-west", _offload),
        ("prompts that wait", _waiting),
        _TTFT,
    ),
}
TITLES: Final = {
    "duties": "Duties from two wrong splits, on processes and simulated",
    "threshold": "A threshold from two wrong starts, on processes and simulated",
    "link": "A link that falls to a tenth and comes back, on processes and simulated",
}
