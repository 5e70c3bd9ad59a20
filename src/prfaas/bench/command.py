"""`prfaas bench transport`: what two nodes on this machine move, plain and encrypted."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from prfaas.bench.nodes import SINK, SOURCE, BenchError, Moved, NodeBench
from prfaas.certs.throwaway import issue_throwaway

MODES: Final = {"encrypted": True, "plain": False}


@dataclass(frozen=True, slots=True)
class TransportBench:
    """What to measure. `num_lanes` None is the default of a node."""

    num_bytes: int
    num_layers: int
    rounds: int
    modes: tuple[str, ...]
    num_lanes: int | None = None


def run(wanted: TransportBench, *, as_json: bool) -> int:
    """Measure and print: a table, or one JSON object. Returns the exit status."""
    try:
        with Progress(console=Console(stderr=True), disable=as_json or not sys.stderr.isatty()) as progress:
            moves = measure(wanted, progress)
    except BenchError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    report = summary(wanted, moves)
    if as_json:
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
    else:
        _print(report)
    return 0


def measure(wanted: TransportBench, progress: Progress) -> dict[str, list[Moved]]:
    """The modes take turns, so that a busy machine is unjust to none; a first round warms up and is left out. Raises
    BenchError."""
    limits = {} if wanted.num_lanes is None else {"num_lanes": wanted.num_lanes}
    moves: dict[str, list[Moved]] = {mode: [] for mode in wanted.modes}
    task = progress.add_task("moving", total=(wanted.rounds + 1) * len(wanted.modes))
    with ExitStack() as stack:
        benches = {}
        for mode in wanted.modes:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="prfaas-bench-")))
            tls = issue_throwaway(directory, (SOURCE, SINK)) if MODES[mode] else None
            bench = NodeBench(wanted.num_bytes, limits=limits, tls=tls)
            stack.callback(bench.stop)
            bench.start()
            benches[mode] = bench
        for number in range(wanted.rounds + 1):
            for mode, bench in benches.items():
                moved = bench.move(wanted.num_layers)
                if number:
                    moves[mode].append(moved)
                progress.advance(task)
    return moves


def summary(wanted: TransportBench, moves: dict[str, list[Moved]]) -> dict[str, Any]:
    """What `--json` prints. Rates in 10^9 bits per second of payload; CPU of both ends per 10^9 bytes."""
    return {
        "machine": {"cpus": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()},
        "wanted": dataclasses.asdict(wanted),
        "modes": {
            mode: {
                "gbps_median": statistics.median(moved.gbps for moved in found),
                "gbps_min": min(moved.gbps for moved in found),
                "gbps_max": max(moved.gbps for moved in found),
                "cpu_s_per_gb_median": statistics.median(moved.cpu_s_per_gb for moved in found),
            }
            for mode, found in moves.items()
        },
    }


def _print(report: dict[str, Any]) -> None:
    wanted, machine = report["wanted"], report["machine"]
    size = f"{wanted['num_bytes'] / 2**20:g} MiB in {wanted['num_layers']} layers"
    title = f"{size} over loopback, {wanted['rounds']} rounds"
    table = Table(title=title, caption=f"{machine['cpus']} CPUs, Linux {machine['kernel']}, Python {machine['python']}")
    table.add_column("lanes")
    for column in ("Gbit/s", "from", "to", "CPU s/GB, both ends"):
        table.add_column(column, justify="right")
    for mode, figures in report["modes"].items():
        rates = [f"{figures[name]:.1f}" for name in ("gbps_median", "gbps_min", "gbps_max")]
        table.add_row(mode, *rates, f"{figures['cpu_s_per_gb_median']:.2f}")
    Console().print(table)
