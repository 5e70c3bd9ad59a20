"""Tables on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from prfaas.core.planning.plan import Plan
from prfaas.core.planning.scenario import ServiceTime
from prfaas.core.planning.solve import is_simple
from prfaas.core.planning.usage import Stage
from prfaas.planner import sentences

#: Rows of the table of resources; more are cut with a word, because nobody reads a hundred links.
MAX_ROWS = 40
MAX_GAINS = 12
_ORDER = (Stage.PRFAAS, Stage.PD_PREFILL, Stage.PD_DECODE, Stage.LINK)


def print_plan(console: Console, name: str, plan: Plan) -> None:
    """One plan: what to do, what holds it, the stages, the figures, where the numbers are from."""
    say = [sentences.verdict(plan), sentences.limit(plan), sentences.load(plan)]
    console.print(f"[bold]{name}[/]: policy {plan.scenario.policy}", highlight=False)
    for sentence in say:
        if sentence is not None:
            console.print(sentence, highlight=False)
    console.print()
    console.print(_resources(plan))
    console.print()
    console.print(_one_more(plan))
    console.print()
    console.print(_figures(plan))
    console.print()
    for note in plan.scenario.notes:
        console.print(f"[dim]{note}[/]", highlight=False, markup=True)


def _resources(plan: Plan) -> Table:
    table = Table(title="Resources at that rate", title_justify="left", box=None, pad_edge=False)
    for column in ("stage", "where"):
        table.add_column(column)
    for column in ("has", "uses", "full"):
        table.add_column(column, justify="right")
    several = sum(usage.stage is Stage.LINK for usage in plan.usages) > 1
    shown = [usage for usage in plan.usages if usage.used or not several or usage.stage is not Stage.LINK]
    shown.sort(key=lambda usage: (_ORDER.index(usage.stage), several and -usage.utilization))
    for usage in shown[:MAX_ROWS]:
        is_link = usage.stage is Stage.LINK
        table.add_row(
            sentences.STAGE_NAMES[usage.stage],
            usage.name.replace(">", " → "),
            sentences.gbps(usage.capacity) if is_link else f"{usage.capacity:g} instances",
            sentences.gbps(usage.used) if is_link else f"{usage.used:.2f}",
            sentences.share(usage.utilization) if usage.capacity else "–",
        )
    hidden = len(plan.usages) - len(shown[:MAX_ROWS])
    if hidden:
        table.caption = f"and {hidden} more, idle or less busy; --json has them all"
        table.caption_justify = "left"
    return table


def _one_more(plan: Plan) -> Table:
    rough = "" if is_simple(plan.scenario) else ", roughly: as if instances were divisible"
    table = Table(title=f"One more brings{rough}", title_justify="left", box=None, pad_edge=False, show_header=False)
    listed = sorted(plan.gains, key=lambda gain: -gain.extra_rps)
    for gain in listed[:MAX_GAINS]:
        what = "Gbps on" if gain.stage is Stage.LINK else "instance of"
        extra = f"+{gain.extra_rps:.3f} requests/s" if gain.extra_rps else "nothing"
        table.add_row(f"{what} {gain.name.replace('>', ' → ')}", extra)
    if len(listed) > MAX_GAINS:
        table.add_row(f"and {len(listed) - MAX_GAINS} more", "--json has them all")
    return table


def _figures(plan: Plan) -> Table:
    table = Table(title="Figures", title_justify="left", box=None, pad_edge=False, show_header=False)
    for label, value in [*figures(plan), *_bands(plan), *_money(plan)]:
        table.add_row(label, value)
    return table


def figures(plan: Plan) -> list[tuple[str, str]]:
    """Label and value of the figures of the paper's Table 6, and egress."""
    answer = plan.to_json()
    number = {key: value for key, value in answer.items() if isinstance(value, int | float)}
    counts = [number.get(key) for key in ("num_prfaas", "num_pd_prefill", "num_pd_decode")]
    stages = [plan.prfaas_rps, plan.pd_prefill_rps, plan.pd_decode_rps]
    return [
        ("threshold t, tokens", sentences.tokens(number.get("routing_threshold_tokens"))),
        ("instances: PrfaaS / prefill / decode", " / ".join("–" if c is None else f"{c:g}" for c in counts)),
        ("offloaded", sentences.share(number.get("offload_fraction"))),
        ("mean tokens: offloaded / local", _lengths(plan)),
        ("stages, requests/s: PrfaaS / prefill / decode", " / ".join(map(sentences.rps, stages))),
        ("system, requests/s", f"{plan.solution.system_rps:.3f}"),
        (
            "TTFT without queueing: mean / P90",
            " / ".join(map(sentences.seconds, (plan.ttft_s_mean, plan.ttft_s_p90))),
        ),
        ("egress", sentences.gbps(plan.egress_bytes_per_s)),
        ("egress, share of links", sentences.share(plan.egress_utilization)),
    ]


def _lengths(plan: Plan) -> str:
    long = sentences.tokens(plan.solution.mean_long_tokens)
    return f"{long} / {sentences.tokens(plan.solution.local.mean_tokens or None)}"


def _bands(plan: Plan) -> list[tuple[str, str]]:
    rows = []
    for tier in plan.solution.remote if len(plan.solution.remote) > 1 else ():
        low, high = sentences.tokens(max(0.0, tier.band.low_tokens)), sentences.tokens(tier.band.high_tokens)
        rows.append(
            (f"band of {', '.join(tier.clusters)}", f"{low} to {high} tokens, {sentences.share(tier.band.fraction)}")
        )
    if len(plan.solution.num_pd_prefill) > 1:
        splits = ", ".join(f"{name} {count}" for name, count in plan.solution.num_pd_prefill.items())
        rows.append(("PD prefill instances", splits))
    if plan.scenario.service_time is ServiceTime.EXPECTED:
        rows.append(("service times", "expectations over each band"))
    return rows


def _money(plan: Plan) -> list[tuple[str, str]]:
    cost = plan.cost
    if cost is None:
        return []
    unit = cost.currency
    per_million = sentences.money(cost.per_million_tokens, unit)
    rows = [
        (
            "cost per hour",
            f"{sentences.money(cost.per_hour, unit)}, {sentences.money(cost.egress_per_hour, unit)} of it egress",
        ),
        ("cost per request / million tokens", f"{sentences.money(cost.per_request, unit)} / {per_million}"),
    ]
    best = cost.cheapest
    if best.per_request < cost.per_request * (1 - 1e-3):
        price = sentences.money(best.per_million_tokens, unit)
        text = f"{sentences.tokens(best.threshold_tokens)} tokens: {price} per million"
        rows.append(("cheapest threshold", f"{text} tokens, {best.system_rps:.2f} requests/s"))
    elif best.threshold_tokens is not None:
        rows.append(("cheapest threshold", "the one above"))
    if cost.without_offload is not None:
        alone = cost.without_offload
        text = (
            f"{sentences.money(alone.per_million_tokens, unit)} per million tokens, {alone.system_rps:.2f} requests/s"
        )
        rows.append(("the PD clusters alone", text))
    return rows


def print_comparison(console: Console, named: Sequence[tuple[str, Plan]]) -> None:
    """Plans side by side; the first is the baseline of the ratios."""
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name, _ in named:
        table.add_column(name, justify="right")
    columns = [dict(figures(plan)) for _, plan in named]
    for label in columns[0]:
        table.add_row(label, *(column[label] for column in columns))
    table.add_row("limit", *(" + ".join(sentences.STAGE_NAMES[s] for s in plan.bottlenecks) for _, plan in named))
    if all(plan.cost is not None for _, plan in named):
        costs = [(plan.cost.per_million_tokens, plan.cost.currency) for _, plan in named if plan.cost is not None]
        table.add_row("cost per million tokens", *(sentences.money(*cost) for cost in costs))
    table.add_section()
    for label, values in ratios(named).items():
        table.add_row(f"[bold]{label}[/]", *("–" if value is None else f"{value:.3g}×" for value in values))
    console.print(table)


def ratios(named: Sequence[tuple[str, Plan]]) -> dict[str, list[float | None]]:
    """Ratios to the first plan. At equal cost: requests per money spent, relative to the first's."""
    base = named[0][1]
    plans = [plan for _, plan in named]
    found: dict[str, list[float | None]] = {
        "throughput": [plan.solution.system_rps / base.solution.system_rps for plan in plans],
        "mean TTFT": [plan.ttft_s_mean / base.ttft_s_mean for plan in plans],
        "P90 TTFT": [plan.ttft_s_p90 / base.ttft_s_p90 for plan in plans],
    }
    if base.cost is not None:
        found["throughput at equal cost"] = [
            None if plan.cost is None else base.cost.per_request / plan.cost.per_request for plan in plans
        ]
    return found
