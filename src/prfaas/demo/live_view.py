"""What a running deployment looks like on a terminal, a few times a second. Pure: numbers in, a table out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

_BAR: Final = 24


@dataclass
class Seen:
    """`scheduler` is GET /prfaas/scheduler, `link` one entry of `prfaas wan`. `busy`: engines' requests by cluster and
    duty, running and waiting. Seconds are those of the profiles."""

    clock_s: float = 0.0
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    link: Mapping[str, Any] = field(default_factory=dict)
    busy: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    num_sent: int = 0
    num_answered: int = 0
    num_failed: int = 0
    routes: Mapping[str, int] = field(default_factory=dict)
    ttft_s_mean: float | None = None
    ttft_s_p90: float | None = None
    event: str = ""


def table_of(seen: Seen, title: str) -> RenderableType:
    """For a live display."""
    table = Table(title=title, show_header=False, box=None, padding=(0, 2), title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    scheduler = seen.scheduler
    threshold = scheduler.get("threshold_tokens")
    fraction = scheduler.get("offload_fraction")
    told = "–" if threshold is None else f"{threshold:,} tokens"
    told += "" if fraction is None else f", {fraction:.0%} of the requests are longer"
    table.add_row("threshold", told)
    for name, cluster in scheduler.get("clusters", {}).items():
        table.add_row(f"{name} waits", f"{cluster['num_waiting']} prompts, {cluster['waiting_s']:.1f} s of prefill")
    for name, (running, waiting, places) in seen.busy.items():
        share = min(1.0, running / places) if places else 0.0
        table.add_row(name, f"{_bar(share)} {running} of {places}" + (f", {waiting} wait" if waiting else ""))
    table.add_row("link", _link(seen.link))
    mean, p90 = (("–" if value is None else f"{value:.2f} s") for value in (seen.ttft_s_mean, seen.ttft_s_p90))
    table.add_row("first token", f"mean {mean}, P90 {p90} of the last ten seconds")
    routes = ", ".join(f"{number} {name}" for name, number in seen.routes.items())
    table.add_row("requests", f"{seen.num_sent} sent, {seen.num_answered} answered, {seen.num_failed} failed; {routes}")
    return Group(table, Text(seen.event, style="yellow"))


def _link(link: Mapping[str, Any]) -> str:
    if not link:
        return "–"
    if link["cut"]:
        return "CUT"
    bits = float(str(link["bandwidth"]).removesuffix("Mbps")) * 1e6
    used = link["bytes_per_s"] * 8 / bits if bits else 0.0
    return f"{_bar(min(1.0, used))} {used:.0%} of {link['bandwidth']}, {link['queue_bytes'] / 1e6:.2f} MB wait"


def _bar(share: float) -> str:
    full = round(share * _BAR)
    return "█" * full + "·" * (_BAR - full)
