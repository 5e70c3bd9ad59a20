"""This transport, iperf3, Mooncake's Transfer Engine and NIXL side by side, in turn, on loopback and an emulated WAN.

    python -m benchmarks.transport.compare [--peers-python PATH] [--only loopback|bbr|cubic|stock] [--json FILE]

Groups: `loopback`; `bbr` and `cubic`, a link of 2 Gbit/s at 20 and 80 ms with 0, 0.01 and 0.1% loss (root); `stock`,
80 ms with the buffers that a kernel comes with. Takes about 25 minutes in all.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.transport.iperf import Iperf
from benchmarks.transport.mooncake import Mooncake
from benchmarks.transport.movers import Mover
from benchmarks.transport.nixl import Nixl
from benchmarks.transport.ours import Prfaas
from benchmarks.transport.peers import MANY_LANES, machine, print_table, run_in_turn
from benchmarks.transport.wan import GOODPUT_SHARE, LARGE, STOCK, LoopbackNet, Net, WanSettings, available, wan
from prfaas.bench.nodes import Moved

PIECES = 64
RATE_MBIT = 2000
GOODPUT_LIMIT_GBPS = RATE_MBIT / 1000 * GOODPUT_SHARE


@dataclass(frozen=True)
class Cell:
    """One link. `congestion` holds for everyone."""

    group: str
    rtt_ms: float
    loss_percent: float
    congestion: str
    stock_buffers: bool = False

    @property
    def title(self) -> str:
        buffers = ", stock buffers" if self.stock_buffers else ""
        return f"{RATE_MBIT} Mbit/s, RTT {self.rtt_ms:g} ms, loss {self.loss_percent:g}%, {self.congestion}{buffers}"


CELLS = [
    *(Cell("bbr", rtt, loss, "bbr") for rtt in (20, 80) for loss in (0, 0.01, 0.1)),
    *(Cell("cubic", rtt, loss, "cubic") for rtt in (20, 80) for loss in (0, 0.01, 0.1)),
    Cell("stock", 80, 0, "bbr", stock_buffers=True),
]


def main() -> None:
    """Measure and print; figures of every move go to --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers-python", default=sys.executable, help="a Python with mooncake and nixl_cu12")
    parser.add_argument("--only", choices=("loopback", "bbr", "cubic", "stock"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(machine())
    print(
        f"{options.mib} MiB in {PIECES} pieces, medians of {options.rounds} rounds after one that is left out (cold)\n"
    )
    report = {}
    if options.only in (None, "loopback"):
        report["loopback"] = loopback(options)
    if reason := available():
        print(f"no WAN here: {reason}")
    else:
        for cell in CELLS:
            if options.only in (None, cell.group):
                report[cell.title] = on_wan(cell, options)
    if options.json:
        figures = {
            title: {name: [(s.num_bytes, s.seconds, s.cpu_s) for s in moves] for name, (_, moves) in samples.items()}
            for title, samples in report.items()
        }
        options.json.write_text(json.dumps(figures, indent=1))


def loopback(options: argparse.Namespace) -> dict[str, tuple[Moved, list[Moved]]]:
    """Everyone with its defaults; ours encrypted and plain."""
    print("loopback")
    movers: list[Mover] = [
        Iperf(4),
        Prfaas("PrfaaS plain", encrypted=False),
        Prfaas("PrfaaS encrypted", encrypted=True),
        Mooncake(options.peers_python),
        Nixl(options.peers_python),
    ]
    return _measure(movers, LoopbackNet(), options)


def on_wan(cell: Cell, options: argparse.Namespace) -> dict[str, tuple[Moved, list[Moved]]]:
    """Everyone over the same emulated link, with the same congestion control."""
    print(cell.title)
    python = options.peers_python
    movers: list[Mover] = [
        Iperf(MANY_LANES, cell.congestion),
        Prfaas("PrfaaS encrypted", encrypted=True, limits={"congestion": cell.congestion}),
    ]
    if cell.group != "cubic":
        movers += [Mooncake(python), Mooncake(python, MANY_LANES), Nixl(python)]
    settings = WanSettings(
        rate_mbit=RATE_MBIT,
        one_way_ms=cell.rtt_ms / 2,
        loss_percent=cell.loss_percent,
        queue_ms=cell.rtt_ms,
        buffers=STOCK if cell.stock_buffers else LARGE,
        congestion=cell.congestion,
    )
    with wan(settings) as net:
        # After an idle time of a few round trips the kernel makes cubic begin anew, and not BBR. Warm lanes are the
        # question here, so every move that counts follows another one at once.
        samples = _measure(movers, net, options, warm_up=cell.congestion == "cubic")
    ours = statistics.median(sample.gbps for sample in samples["PrfaaS encrypted"][1])
    print(f"PrfaaS: {ours / GOODPUT_LIMIT_GBPS:.3f} of the link's goodput limit of {GOODPUT_LIMIT_GBPS:.3f} Gbit/s\n")
    return samples


def _measure(
    movers: list[Mover], net: Net, options: argparse.Namespace, *, warm_up: bool = False
) -> dict[str, tuple[Moved, list[Moved]]]:
    started_s = time.monotonic()
    samples = run_in_turn(movers, net, options.mib << 20, PIECES, options.rounds, warm_up=warm_up)
    print_table(samples)
    medians = {name: statistics.median(s.gbps for s in warm) for name, (_, warm) in samples.items()}
    for name in (name for name in medians if name.startswith("PrfaaS")):
        others = (f"{medians[name] / value:.2f} x {other}" for other, value in medians.items() if "PrfaaS" not in other)
        print(f"{name}: {', '.join(others)}")
    print(f"({time.monotonic() - started_s:.0f} s)", flush=True)
    return samples


if __name__ == "__main__":
    main()
