"""Results as a table: the figures of each policy, over its seeds."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from prfaas.simulator.results import Results

_ROWS: Sequence[tuple[str, Callable[[Results], float | None], str]] = (
    ("answered, requests/s", lambda r: r.system_rps, ".3f"),
    ("within the SLO, requests/s", lambda r: r.goodput_rps, ".3f"),
    ("TTFT mean, s", lambda r: r.ttft_s_mean, ".3f"),
    ("TTFT p50, s", lambda r: r.ttft_s_p50, ".3f"),
    ("TTFT p90, s", lambda r: r.ttft_s_p90, ".3f"),
    ("TTFT p99, s", lambda r: r.ttft_s_p99, ".3f"),
    ("end to end p50, s", lambda r: r.e2e_s_p50, ".2f"),
    ("end to end p99, s", lambda r: r.e2e_s_p99, ".2f"),
    ("offloaded", lambda r: r.offload_fraction, ".1%"),
    ("egress mean, Gbps", lambda r: r.egress_bytes_per_s_mean * 8e-9, ".2f"),
    ("egress in the busiest second, Gbps", lambda r: r.egress_bytes_per_s_max * 8e-9, ".2f"),
    ("fell back", lambda r: float(r.num_fallbacks), ".0f"),
    ("refused or failed", lambda r: float(r.num_refused + r.num_failed), ".0f"),
)

_WORDS = {
    "stable": "stable (queues do not grow)",
    "backlogged": "backlogged (queues grow)",
    "overloaded": "overloaded (more comes than can be served)",
    "too_short": "too short to say whether queues grow (more --num-requests)",
}


def print_results(name: str, load: str, results: Sequence[Results]) -> None:
    """Medians over the seeds, and the range where there are several."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    by_policy: dict[str, list[Results]] = {}
    for one in results:
        by_policy.setdefault(one.policy, []).append(one)
    console.print(f"[bold]{escape(name)}[/]: {escape(load)}", highlight=False)
    for policy, runs in by_policy.items():
        console.print(f"{policy}: {_setup(runs[0])}; {_stability(runs)}", highlight=False)
    console.print()
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for policy in by_policy:
        table.add_column(policy, justify="right")
    for label, value, form in _ROWS:
        table.add_row(label, *(_cell([value(run) for run in runs], form) for runs in by_policy.values()))
    console.print(table)
    num_seeds = max(len(runs) for runs in by_policy.values())
    if num_seeds > 1:
        console.print(f"\nMedians over {num_seeds} seeds, lowest and highest in brackets.", highlight=False)


def _setup(result: Results) -> str:
    threshold = result.routing_threshold_tokens_final
    split = f"{result.num_pd_prefill_final} prefill and {result.num_pd_decode_final} decode instances"
    return f"{split}, nothing offloaded" if threshold is None else f"{split}, threshold {threshold:,} tokens"


def _stability(runs: Sequence[Results]) -> str:
    return " or ".join(_WORDS[name] for name in sorted({run.stability for run in runs}))


def _cell(values: Sequence[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    middle = f"{statistics.median(known):{form}}"
    return middle if len(known) == 1 else f"{middle} [{min(known):{form}}, {max(known):{form}}]"
