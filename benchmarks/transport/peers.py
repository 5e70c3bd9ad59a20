"""The other transports, side by side: every one that is installed, in turn, several rounds.

    python -m benchmarks.transport.peers [--net loopback|wan] [--peers-python PATH] [--rounds 5]

Mooncake's Transfer Engine and NIXL run in a Python of their own, so that their dependencies stay out of ours. With wan
(root) the ends are in two namespaces joined by the emulator of `wan.py`; --rate-mbit, --one-way-ms, --loss-percent,
--queue-ms, --congestion and --stock-buffers describe the link.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import signal
import statistics
import sys
from collections.abc import Iterator, Sequence

from benchmarks.transport.iperf import Iperf
from benchmarks.transport.mooncake import Mooncake
from benchmarks.transport.movers import Mover
from benchmarks.transport.nixl import Nixl
from benchmarks.transport.wan import LARGE, STOCK, LoopbackNet, Net, WanSettings, available, wan
from prfaas.bench.nodes import Moved

MANY_LANES = 8


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers-python", default=sys.executable, help="a Python with mooncake and nixl_cu12")
    add_net_arguments(parser)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _leave)
    with chosen_net(parser, options) as net:
        streams = (4,) if net.name == "loopback" else (2, MANY_LANES)
        congestion = options.congestion if net.name == "wan" else None
        movers: list[Mover] = [Iperf(number, congestion) for number in streams]
        python = options.peers_python
        movers += [Mooncake(python), Mooncake(python, MANY_LANES), Nixl(python)]
        num_bytes = (options.mib or (512 if net.name == "loopback" else 256)) << 20
        print_table(run_in_turn(movers, net, num_bytes, options.pieces, options.rounds))


def machine() -> str:
    """A line that says where figures come from."""
    return f"machine: {os.cpu_count()} CPUs, Linux {platform.release()}, Python {platform.python_version()}"


def add_net_arguments(parser: argparse.ArgumentParser) -> None:
    """What to move, how often and over which net."""
    parser.add_argument("--net", choices=("loopback", "wan"), default="loopback")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mib", type=int, help="bytes of a move, MiB: 512 on loopback, 256 on the WAN")
    parser.add_argument("--pieces", type=int, default=64)
    parser.add_argument("--rate-mbit", type=float, default=2000)
    parser.add_argument("--one-way-ms", type=float, default=10)
    parser.add_argument("--loss-percent", type=float, default=0.01)
    parser.add_argument("--queue-ms", type=float, default=20)
    parser.add_argument("--congestion", help="bbr or cubic; the machine's default otherwise")
    parser.add_argument("--stock-buffers", action="store_true", help="the kernel's TCP buffers: 4 MiB to send")


@contextlib.contextmanager
def chosen_net(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Iterator[Net]:
    """The net that the arguments describe, for as long as the block runs; prints what it is."""
    print(machine())
    if options.net == "loopback":
        print("loopback")
        yield LoopbackNet()
        return
    if reason := available():
        parser.exit(1, f"no WAN here: {reason}\n")
    settings = WanSettings(
        rate_mbit=options.rate_mbit,
        one_way_ms=options.one_way_ms,
        loss_percent=options.loss_percent,
        queue_ms=options.queue_ms,
        buffers=STOCK if options.stock_buffers else LARGE,
        congestion=options.congestion,
    )
    print(settings)
    with wan(settings) as net:
        yield net
        print(net.stats())


def run_in_turn(
    movers: Sequence[Mover], net: Net, num_bytes: int, num_pieces: int, num_rounds: int, *, warm_up: bool = False
) -> dict[str, tuple[Moved, list[Moved]]]:
    """By name, the first move (cold) and those of the rounds (warm); the movers take turns within a round, another one
    first each time. With `warm_up` each makes a move that does not count right before every one that does.

    One that is not available, or fails, is named with the reason and left out.
    """
    running: dict[str, Mover] = {}
    samples: dict[str, tuple[Moved, list[Moved]]] = {}
    try:
        for mover in movers:
            if reason := mover.available():
                print(f"left out: {mover.name}: {reason}")
                continue
            running[mover.name] = mover
            mover.start(net, num_bytes, num_pieces)
            samples[mover.name] = mover.move(), []
        for number in range(num_rounds):
            for name in _from(number, list(running)):
                mover = running[name]
                if warm_up:
                    mover.move()
                samples[name][1].append(mover.move())
    except BaseException:
        for mover in running.values():
            with contextlib.suppress(Exception):  # the first failure is the one to report
                mover.stop()
        raise
    for mover in running.values():
        mover.stop()
    return samples


def _from(number: int, names: list[str]) -> list[str]:
    """Another one begins every round: what ran before leaves caches and free pages as they are."""
    first = number % max(1, len(names))
    return names[first:] + names[:first]


def print_table(samples: dict[str, tuple[Moved, list[Moved]]]) -> None:
    """Medians of the warm moves, with the range of the rates."""
    if not samples:
        print("nothing to measure: neither iperf3 nor a Python with the other transports was found")
        return
    width = max(map(len, samples))
    print(f"{'':{width}}  {'Gbit/s':>8}  {'from':>8}  {'to':>8}  {'cold':>8}  {'CPU s/GB':>8}")
    for name, (cold, warm) in samples.items():
        rates = [sample.gbps for sample in warm]
        cpu = statistics.median(sample.cpu_s_per_gb for sample in warm)
        figures = (statistics.median(rates), min(rates), max(rates), cold.gbps, cpu)
        print(f"{name:{width}}  " + "  ".join(f"{figure:8.2f}" for figure in figures))


def _leave(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    main()
