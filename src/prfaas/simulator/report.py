"""Results as a table: the figures of each policy, over its seeds."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from prfaas.simulator.results import Results
from prfaas.simulator.stability import GROWS

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
#: Only where some requests were tried on all of their ways.
_HINDSIGHT: Sequence[tuple[str, Callable[[Results], float | None], str]] = (
    ("went the best way", lambda r: r.best_chosen_fraction, ".0%"),
    ("regret mean, s", lambda r: r.regret_s_mean, ".2f"),
)

#: Of many policies: one row each.
_COLUMNS: Sequence[tuple[str, Callable[[Results], float | None], str]] = (
    ("answered/s", lambda r: r.system_rps, ".2f"),
    ("in SLO/s", lambda r: r.goodput_rps, ".2f"),
    ("TTFT mean", lambda r: r.ttft_s_mean, ".2f"),
    ("p50", lambda r: r.ttft_s_p50, ".2f"),
    ("p90", lambda r: r.ttft_s_p90, ".2f"),
    ("p99, s", lambda r: r.ttft_s_p99, ".2f"),
    ("e2e p50", lambda r: r.e2e_s_p50, ".1f"),
    ("p99, s", lambda r: r.e2e_s_p99, ".1f"),
    ("offloaded", lambda r: r.offload_fraction, ".0%"),
    ("fell back", lambda r: float(r.num_fallbacks), ".0f"),
    ("refused", lambda r: float(r.num_refused + r.num_failed), ".0f"),
)
#: More policies than this are rows, not columns.
MAX_COLUMNS = 4

_WORDS = {
    "stable": "stable (queues do not grow)",
    "backlogged": "backlogged (queues grow)",
    "overloaded": "overloaded (more comes than can be served)",
    "too_short": "too short to say whether queues grow",
    "refusing": "refusing (queues do not grow)",
    "closed_loop": "a closed loop (clients wait for their answers, so queues cannot grow)",
}


def print_results(name: str, load: str, results: Sequence[Results]) -> None:
    """Medians over the seeds, and the range where there are several."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    by_policy: dict[str, list[Results]] = {}
    for one in results:
        by_policy.setdefault(one.policy, []).append(one)
    console.print(f"[bold]{escape(name)}[/]: {escape(load)}", highlight=False)
    alike: dict[tuple[str, str, str], list[str]] = {}
    for policy, runs in by_policy.items():
        alike.setdefault((_setup(runs[0]), _stability(runs), _share_of_plan(by_policy, policy)), []).append(policy)
    for (setup, words, share), policies in alike.items():
        enough = _enough([run for policy in policies for run in by_policy[policy]])
        console.print(f"{', '.join(policies)}: {setup}; {words}{enough}{share}", highlight=False)
    console.print()
    console.print(_table(console, by_policy))
    num_seeds = max(len(runs) for runs in by_policy.values())
    if num_seeds > 1:
        brackets = ", lowest and highest in brackets" if len(by_policy) <= MAX_COLUMNS else ""
        console.print(f"\nMedians over {num_seeds} seeds{brackets}.", highlight=False)


def _share_of_plan(by_policy: dict[str, list[Results]], policy: str) -> str:
    """All policies meet the same requests, which is not the same share of what each is planned to serve."""
    run = by_policy[policy][0]
    if len({round(runs[0].planned_rps, 6) for runs in by_policy.values()}) == 1 or run.stability == "closed_loop":
        return ""
    return (
        f"; {run.offered_rps / run.planned_rps:.2f} of the {run.planned_rps:.2f} requests/s that it is planned to serve"
    )


def _table(console: Console, by_policy: dict[str, list[Results]]) -> Table:
    if len(by_policy) > MAX_COLUMNS:
        return _one_below_the_other(by_policy)
    wide = _side_by_side(by_policy)
    is_too_wide = Measurement.get(console, console.options.update(max_width=10_000), wide).maximum > console.width
    return _side_by_side(by_policy, before_range="\n") if is_too_wide else wide


def _side_by_side(by_policy: dict[str, list[Results]], before_range: str = " ") -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for policy in by_policy:
        table.add_column(policy, justify="right", no_wrap=True)
    judged = any(run.regret_s_mean is not None for runs in by_policy.values() for run in runs)
    for label, value, form in (*_ROWS, *_HINDSIGHT) if judged else _ROWS:
        table.add_row(label, *(_cell([value(run) for run in runs], form, before_range) for runs in by_policy.values()))
    return table


def _one_below_the_other(by_policy: dict[str, list[Results]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True, min_width=max(map(len, by_policy)))
    judged = any(run.regret_s_mean is not None for runs in by_policy.values() for run in runs)
    columns = (*_COLUMNS, ("regret, s", lambda r: r.regret_s_mean, ".2f")) if judged else _COLUMNS
    for label, _, _ in columns:
        table.add_column(label, justify="right")
    for policy, runs in by_policy.items():
        cells = (_cell([value(run) for run in runs], form, None) for _, value, form in columns)
        table.add_row(policy, *cells)
    return table


def _setup(result: Results) -> str:
    threshold = result.routing_threshold_tokens_final
    split = f"{result.num_pd_prefill_final} prefill and {result.num_pd_decode_final} decode instances"
    return split if threshold is None else f"{split}, threshold {threshold:,} tokens at the end"


def _stability(runs: Sequence[Results]) -> str:
    words = " or ".join(_WORDS[name] for name in sorted({run.stability for run in runs}))
    share = statistics.median((run.num_refused + run.num_failed) / run.num_requests for run in runs)
    return f"{words}, {share:.0%} refused or failed" if share > GROWS else words


def _enough(runs: Sequence[Results]) -> str:
    num = max((run.num_requests_enough or 0 for run in runs), default=0)
    return f" (about {num:,} requests would be enough)" if num else ""


def _cell(values: Sequence[float | None], form: str, before_range: str | None) -> str:
    """The median, and behind `before_range` the range; None: without."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    middle = f"{statistics.median(known):{form}}"
    if len(known) == 1 or before_range is None:
        return middle
    return f"{middle}{before_range}[{min(known):{form}}, {max(known):{form}}]"
