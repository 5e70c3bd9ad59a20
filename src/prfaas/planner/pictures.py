"""Pictures of a plan."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from prfaas.core.planning.plan import Plan
from prfaas.core.planning.usage import GBPS
from prfaas.drawing import COLOURS, DASHES, STYLE, described_svg, png
from prfaas.planner import curves, sentences
from prfaas.planner.report import figures, ratios
from prfaas.whole_file import written_whole

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:#111}}
table{{border-collapse:collapse;margin:1rem 0}}
td,th{{padding:.25rem .75rem;border-bottom:1px solid #ccc;text-align:left}}
svg{{max-width:100%;height:auto}}</style></head><body>
{body}
</body></html>
"""


def write_picture(path: Path, named: Sequence[tuple[str, Plan]]) -> None:
    """Write the plans' pictures, in the format of the file's ending: png, svg, or an HTML page with the figures too.
    The file appears whole or not at all. Raises OSError."""
    with rc_context(STYLE):
        kind = path.suffix.lower()
        if kind == ".html":
            content = _page(named).encode()
        else:
            figure = _figure(named)
            content = _svg(figure, named).encode() if kind == ".svg" else png(figure)
    with written_whole(path) as file:
        file.write(content)


def _svg(figure: Figure, named: Sequence[tuple[str, Plan]]) -> str:
    about = " ".join(f"{name}: {sentences.verdict(plan)} {sentences.limit(plan)}" for name, plan in named)
    return described_svg(figure, f"Plan of {', '.join(name for name, _ in named)}", about)


def _page(named: Sequence[tuple[str, Plan]]) -> str:
    parts = []
    for name, plan in named:
        parts.append(f"<h1>{html.escape(name)}</h1>")
        for sentence in (sentences.verdict(plan), sentences.limit(plan), sentences.load(plan)):
            parts.append(f"<p>{html.escape(sentence)}</p>" if sentence else "")
        rows = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in figures(plan))
        parts.append(f"<table>{rows}</table>")
        picture = _svg(_figure([(name, plan)]), [(name, plan)])
        parts.append(picture[picture.index("<svg") :])
        parts.append("".join(f"<p><small>{html.escape(note)}</small></p>" for note in plan.scenario.notes))
    if len(named) > 1:
        parts.append(f"<h1>Side by side</h1>{_ratio_table(named)}")
    title = html.escape("Plan of " + ", ".join(name for name, _ in named))
    return _PAGE.format(title=title, body="\n".join(part for part in parts if part))


def _ratio_table(named: Sequence[tuple[str, Plan]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name, _ in named)
    rows = [f"<tr><th></th>{head}</tr>"]
    for label, values in ratios(named).items():
        cells = "".join("<td>–</td>" if value is None else f"<td>{value:.3g}×</td>" for value in values)
        rows.append(f"<tr><th>{html.escape(label)}</th>{cells}</tr>")
    return f"<table>{''.join(rows)}</table>"


def _figure(named: Sequence[tuple[str, Plan]]) -> Figure:
    """Two by two panels of one plan; for several, one panel of bars for each ratio's figure."""
    if len(named) > 1:
        return _compared(named)
    name, plan = named[0]
    panels = _panels(plan)
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5.2 * columns, 3.7 * rows + 0.3), layout="constrained")
    figure.suptitle(f"{name}: {sentences.verdict(plan)}", fontsize=10)
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for index, axis in enumerate(axes):
        if index < len(panels):
            panels[index](axis, plan)
        else:
            axis.set_visible(False)
    return figure


def _panels(plan: Plan) -> list[Any]:
    if curves.is_simple(plan):
        if not curves.may_offload(plan):
            return [_over_count]
        return [_over_threshold, _over_count, _stages, _kv]
    return [_many_over_threshold, _utilization, _kv] if curves.may_offload(plan) else [_utilization]


def _over_threshold(axis: Any, plan: Plan) -> None:
    best = next(iter(plan.solution.num_pd_prefill.values()))
    search = curves.threshold_search(plan)
    for index, (count, line) in enumerate(search.by_count.items()):
        chosen = count == best
        axis.plot(line.x, line.y, label=line.label, color=COLOURS[index % 7], linestyle=DASHES[index % 7],
                  linewidth=2.2 if chosen else 1.0)  # fmt: skip
    _mark_best(axis, plan)
    _length_axis(axis, "routing threshold t (tokens)")
    axis.set(title="Search over t", ylabel="system throughput (requests/s)", ylim=(0, None))
    axis.legend(loc="best", ncols=2)


def _over_count(axis: Any, plan: Plan) -> None:
    prefill, decode, system = curves.count_search(plan)
    for index, line in enumerate((prefill, decode)):
        axis.plot(line.x, line.y, label=line.label, color=COLOURS[index], linestyle=DASHES[index], marker="os"[index],
                  markersize=4)  # fmt: skip
    axis.plot(system.x, system.y, label="system: the least of both", color=COLOURS[6], linewidth=2.2)
    best = sum(plan.solution.num_pd_prefill.values())
    axis.plot([best], [plan.solution.system_rps], "k*", markersize=12)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    top = max(y for y in [*decode.y, *system.y] if y is not None)
    title = "Search over the split of the PD cluster"
    axis.set(title=title, xlabel="prefill instances N_p", ylabel="requests/s", ylim=(0, top * 1.1))
    axis.legend(loc="best")


def _stages(axis: Any, plan: Plan) -> None:
    search = curves.threshold_search(plan)
    for index, line in enumerate(search.stages):
        axis.plot(line.x, line.y, label=line.label, color=COLOURS[index], linestyle=DASHES[index], linewidth=1.8)
    _mark_best(axis, plan)
    _length_axis(axis, "routing threshold t (tokens)")
    count = sum(plan.solution.num_pd_prefill.values())
    ceiling = 3 * plan.solution.system_rps
    axis.set(title=f"What each stage allows, N_p = {count}", ylabel="system throughput (requests/s)", ylim=(0, ceiling))
    axis.legend(loc="best")


def _kv(axis: Any, plan: Plan) -> None:
    lines, limits = curves.kv_throughput(plan)
    if len(lines) > 1:
        _kv_shares(axis, lines, [value for _, value in limits])
        return
    (line,), ((label, value),) = lines, limits
    axis.plot(line.x, line.y, label=line.label, color=COLOURS[0], linewidth=1.8)
    axis.axhline(value, color=COLOURS[1], linewidth=1.2, linestyle="--")
    axis.annotate(label, (0.02, value), xycoords=("axes fraction", "data"), va="bottom", fontsize=8)
    if plan.egress_bytes_per_s and plan.solution.mean_long_tokens:
        point = [plan.solution.mean_long_tokens], [plan.egress_bytes_per_s / GBPS]
        axis.plot(*point, "k*", markersize=12, label="this plan, at E[L | L > t]", linestyle="none")
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axis.yaxis.set_minor_formatter(FuncFormatter(lambda y, _: f"{y:g}" if f"{y:g}"[0] in "25" else ""))
    _length_axis(axis, "prompt length (tokens)")
    axis.set(title="KV that the busy cluster sends, against its links", ylabel="Gbps")
    axis.legend(loc="best")


def _kv_shares(axis: Any, lines: Sequence[curves.Line], limits: Sequence[float]) -> None:
    for index, (line, limit) in enumerate(zip(lines, limits, strict=True)):
        axis.plot(line.x, [None if y is None else y / limit * 100 for y in line.y], label=line.label, linewidth=1.5,
                  color=COLOURS[index % 7], linestyle=DASHES[index % 7])  # fmt: skip
    axis.axhline(100, color="black", linewidth=1)
    axis.annotate("links full", (0.02, 100), xycoords=("axes fraction", "data"), va="bottom", fontsize=8)
    _length_axis(axis, "prompt length (tokens)")
    axis.set(title="KV that a busy cluster sends, of its links", ylabel="%", ylim=(0, None))
    axis.legend(loc="best", ncols=2)


def _many_over_threshold(axis: Any, plan: Plan) -> None:
    line = curves.system_over_threshold(plan)
    axis.plot(line.x, line.y, color=COLOURS[0], marker="o", markersize=3)
    _mark_best(axis, plan)
    _length_axis(axis, "lowest routing threshold (tokens)")
    axis.set(title="Search over the threshold", ylabel="system throughput (requests/s)", ylim=(0, None))


def _utilization(axis: Any, plan: Plan) -> None:
    stages = list(sentences.STAGE_NAMES)
    busiest = sorted((u for u in plan.usages if u.used > 0), key=lambda u: u.utilization, reverse=True)
    shown = [usage for stage in stages for usage in [u for u in busiest if u.stage is stage][:6]]
    for index, usage in enumerate(shown):
        kind = stages.index(usage.stage)
        axis.barh(index, usage.utilization * 100, color=COLOURS[kind], hatch=("", "//", "..", "xx")[kind], alpha=0.75,
                  edgecolor="black", linewidth=0.4)  # fmt: skip
    labels = [f"{sentences.STAGE_NAMES[usage.stage]} {usage.name.replace('>', ' → ')}" for usage in shown]
    axis.set_yticks(range(len(shown)), labels, fontsize=6)
    axis.invert_yaxis()
    axis.set(title="Busiest resources", xlabel="utilization (%)", xlim=(0, 100))


def _compared(named: Sequence[tuple[str, Plan]]) -> Figure:
    panels = (
        ("System throughput (requests/s)", [plan.solution.system_rps for _, plan in named]),
        ("TTFT mean (s)", [plan.ttft_s_mean for _, plan in named]),
        ("TTFT P90 (s)", [plan.ttft_s_p90 for _, plan in named]),
    )
    figure = Figure(figsize=(3.6 * len(panels), 0.5 * len(named) + 1.3), layout="constrained")
    for number, (axis, (title, values)) in enumerate(zip(figure.subplots(1, len(panels)), panels, strict=True)):
        bars = axis.barh(
            range(len(named)), values, color=[COLOURS[index % 7] for index in range(len(named))], alpha=0.8
        )
        axis.bar_label(bars, [f"{value:.2f}" for value in values], padding=3)
        axis.set_yticks(range(len(named)), [name for name, _ in named] if number == 0 else [""] * len(named))
        axis.invert_yaxis()
        axis.set(title=title, xlim=(0, max(values) * 1.18))
    return figure


def _mark_best(axis: Any, plan: Plan) -> None:
    t = plan.solution.threshold_tokens
    low, high = max(64.0, plan.scenario.workload.min_tokens), plan.scenario.workload.max_tokens
    if low <= t < high:
        axis.axvline(t, color="black", linewidth=0.7, linestyle=":")
        axis.annotate(f"t = {t:,.0f}", (t, 0.02), xycoords=("data", "axes fraction"), fontsize=8, rotation=90,
                      xytext=(-9, 0), textcoords="offset points")  # fmt: skip
    axis.plot([min(max(t, low), high)], [plan.solution.system_rps], "k*", markersize=12)


def _length_axis(axis: Any, label: str) -> None:
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1024:g}K" if x >= 1024 else f"{x:g}"))
    axis.set_xlabel(label)
    axis.grid(visible=True, axis="both", linewidth=0.3, alpha=0.6)
