"""Results for people: a table of figures, one of routes, and what makes figures doubtful."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from prfaas.bench.e2e.results import LATE_S, E2eResults, RouteResults, Slo

_ROWS: Sequence[tuple[str, Callable[[E2eResults], float | None], str]] = (
    ("sent, requests/s", lambda r: r.offered_rps, ".3f"),
    ("answered, requests/s", lambda r: r.system_rps, ".3f"),
    ("within the SLO, requests/s", lambda r: r.goodput_rps, ".3f"),
    ("within the SLO, of all", lambda r: r.slo_fraction, ".1%"),
    ("prompt tokens/s", lambda r: r.input_tokens_per_s, ",.0f"),
    ("answered tokens/s", lambda r: r.output_tokens_per_s, ",.0f"),
    ("TTFT mean, s", lambda r: r.ttft_s_mean, ".4f"),
    ("TTFT p50, s", lambda r: r.ttft_s_p50, ".4f"),
    ("TTFT p90, s", lambda r: r.ttft_s_p90, ".4f"),
    ("TTFT p99, s", lambda r: r.ttft_s_p99, ".4f"),
    ("end to end p50, s", lambda r: r.e2e_s_p50, ".3f"),
    ("end to end p99, s", lambda r: r.e2e_s_p99, ".3f"),
    ("TPOT mean, s", lambda r: r.tpot_s_mean, ".5f"),
    ("TPOT p99, s", lambda r: r.tpot_s_p99, ".5f"),
    ("ITL p99, s", lambda r: r.itl_s_p99, ".5f"),
    ("offloaded", lambda r: r.offload_fraction, ".1%"),
    ("fell back", lambda r: r.num_fallbacks, ".0f"),
    ("sent late: p99, s", lambda r: r.send_late_s_p99, ".4f"),
    ("sent late: most, s", lambda r: r.send_late_s_max, ".4f"),
)
_ROUTE_COLUMNS: Sequence[tuple[str, Callable[[RouteResults], float | None], str]] = (
    ("requests", lambda r: r.num_requests, ".0f"),
    ("answered", lambda r: r.num_completed, ".0f"),
    ("TTFT mean", lambda r: r.ttft_s_mean, ".4f"),
    ("p50", lambda r: r.ttft_s_p50, ".4f"),
    ("p99, s", lambda r: r.ttft_s_p99, ".4f"),
    ("e2e p50", lambda r: r.e2e_s_p50, ".3f"),
    ("p99, s", lambda r: r.e2e_s_p99, ".3f"),
)
_STABILITY = {
    "stable": "stable (queues do not grow)",
    "backlogged": "backlogged (queues grow)",
    "overloaded": "overloaded (more comes than is served)",
    "too_short": "too short to say whether queues grow, and for rates (more --num-requests)",
}


def print_results(url: str, load: str, result: E2eResults, slo: Slo) -> None:
    """On standard output."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(f"[bold]{escape(url)}[/]: {escape(load)}", highlight=False)
    for line in _said(result, slo):
        console.print(line, highlight=False, markup=False)
    table = Table(box=None)
    table.add_column("")
    table.add_column("", justify="right")
    for name, value, form in _ROWS:
        if (figure := value(result)) is not None:
            table.add_row(name, f"{figure:{form}}")
    console.print(table)
    if set(result.routes) - {"unknown"}:
        console.print(_routes(result))
    cost_s = result.client_cpu_s_per_event
    if cost_s is not None:
        share = result.client_cpu_s / result.wall_s if result.wall_s else 0.0
        text = f"this client took {result.client_cpu_s:.2f} s of a core ({share:.0%}), {cost_s * 1e6:.0f} µs an event"
        console.print(text, highlight=False, markup=False)


def _said(result: E2eResults, slo: Slo) -> list[str]:
    failures = ", ".join(f"{number} {kind}" for kind, number in result.failures.items())
    lines = [
        f"{result.num_completed} of {result.num_requests} answered, {result.num_refused} refused,"
        f" {result.num_failed} failed" + (f" ({failures})" if failures else "")
        + (f", {result.num_unfinished} given up" if result.num_unfinished else "")
        + f"; {result.num_warm_up} before them to warm up; {_STABILITY[result.stability]}"
    ]  # fmt: skip
    kept = [] if slo.ttft_s is None else [f"TTFT {slo.ttft_s:g} s"]
    kept += [] if slo.tpot_s is None else [f"TPOT {slo.tpot_s:g} s"]
    lines.append(f"SLO: {' and '.join(kept) or 'none'}")
    return lines + doubts(result)


def doubts(result: E2eResults) -> list[str]:
    """What makes the figures mean less than they seem to, one sentence each."""
    found = []
    if result.was_interrupted:
        found.append("interrupted: the figures are of the requests so far")
    if result.num_sent_late:
        found.append(
            f"{result.num_sent_late} requests were sent more than {LATE_S * 1e3:.0f} ms late, up to"
            f" {result.send_late_s_max:.3f} s: this machine was too busy; times count from when they should have been"
            " sent"
        )
    if result.num_other_length:
        text = "answers have another number of tokens than was asked for"
        found.append(f"{result.num_other_length} {text}; does the server take ignore_eos?")
    others = {name: number for name, number in result.tokens_counted_by.items() if name != "usage"}
    if others:
        text = "the server does not count tokens (stream_options.include_usage)"
        found.append(f"{text}; {sum(others.values())} answers were counted by {', '.join(others)}")
    return found


def _routes(result: E2eResults) -> Table:
    table = Table(box=None)
    table.add_column("route")
    for name, _, _ in _ROUTE_COLUMNS:
        table.add_column(name, justify="right")
    for route, figures in result.routes.items():
        cells = [(value(figures), form) for _, value, form in _ROUTE_COLUMNS]
        table.add_row(route, *("–" if figure is None else f"{figure:{form}}" for figure, form in cells))
    return table
