"""What this transport does on a link that changes: pacing, neighbours, steps, loss, layers, order, pauses.

    python -m benchmarks.transport.link [--only pacing|neighbour|steps|loss|layers|order|pauses] [--rtt-ms 20]

Over the emulated WAN of `wan.py` (root), 2 Gbit/s, encrypted lanes as in service. Takes about five minutes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.transport.iperf import Iperf
from benchmarks.transport.peers import machine
from benchmarks.transport.wan import GOODPUT_SHARE, WanNet, WanSettings, available, wan
from prfaas.bench.nodes import SINK, SOURCE, NodeBench, Place
from prfaas.certs.throwaway import issue_throwaway

RATE_MBIT = 2000.0
LOOK_EVERY_S = 0.1
PAUSE_S = 3.0
MIB = 1 << 20


@dataclass(frozen=True)
class Look:
    """The link at one moment of a transfer; `at_s` since it began, rates in Gbit/s of payload."""

    at_s: float
    delivered_gbps: float
    capacity_gbps: float
    rtt_ratio: float
    verdict: str


@contextmanager
def nodes(net: WanNet, num_bytes: int, num_images: int = 1, *, warm_up: int = 2, **limits: Any) -> Iterator[NodeBench]:
    """Two nodes on the link, encrypted; `warm_up` transfers have gone before."""
    with tempfile.TemporaryDirectory(prefix="prfaas-bench-") as directory:
        tls = issue_throwaway(Path(directory), (SOURCE, SINK))
        places = Place(net.a_address, net.a_prefix), Place(net.b_address, net.b_prefix)
        bench = NodeBench(num_bytes, *places, limits=limits, tls=tls, num_images=num_images)
        bench.start()
        try:
            for _ in range(warm_up):
                bench.move(64)
            yield bench
        finally:
            bench.stop()


def watched(bench: NodeBench, events: list[tuple[float, Callable[[], None]]] | None = None) -> list[Look]:
    """One transfer, looked at ten times a second; `events` happen at their times."""
    name, checksum = bench.prepare()
    bench.source.ask("stage", transfer_id=name, num_pieces=64)
    started_s, looks, due = time.monotonic(), [], list(events or [])
    while True:
        record = bench.source.ask("record", transfer_id=name)
        if record["state"] in ("committed", "aborted"):
            break
        looks.append(_look(bench, time.monotonic() - started_s))
        while due and time.monotonic() - started_s >= due[0][0]:
            due.pop(0)[1]()
        time.sleep(LOOK_EVERY_S)
    bench.finish(name, checksum)
    return looks


def _look(bench: NodeBench, at_s: float) -> Look:
    link = bench.source.ask("look")["links"][SINK]
    return Look(
        at_s,
        link["delivered_bytes_per_s"] * 8e-9,
        (link["capacity_bytes_per_s"] or 0.0) * 8e-9,
        link["rtt_ratio"] or 1.0,
        link["verdict"],
    )


def settled(looks: list[Look]) -> list[Look]:
    """Without the first second and the last half, in which the transfer ends."""
    return [look for look in looks if 1.0 < look.at_s < looks[-1].at_s - 0.5]


def pacing(net: WanNet) -> None:
    """Goodput, round trip and what the link dropped, paced and not, in turn."""
    print("pacing, full load for about ten seconds")
    for number in range(2):
        for paced in (True, False):
            with nodes(net, 2048 * MIB, pacing=paced) as bench:
                before = net.stats().a_to_b
                looks = settled(watched(bench))
                after = net.stats().a_to_b
            goodput = statistics.mean(look.delivered_gbps for look in looks)
            ratios = sorted(look.rtt_ratio for look in looks)
            dropped = (after.dropped + after.lost - before.dropped - before.lost) / (after.segments - before.segments)
            kind = "paced" if paced else "unpaced"
            print(
                f"  {kind:8} run {number + 1}: {goodput:.3f} Gbit/s, dropped {dropped:.2%}, round trip"
                f" {statistics.median(ratios):.2f} x base (90%: {ratios[int(len(ratios) * 0.9)]:.2f} x)"
            )


def neighbour(net: WanNet) -> None:
    """Four iperf3 streams come for eight seconds and go again."""
    print("a neighbour: four iperf3 streams of the same congestion control, from second 4 on")
    if reason := Iperf(4, "bbr").available():
        print(f"  left out: {reason}")
        return
    server = subprocess.Popen([*net.b_prefix, "iperf3", "-s", "-p", "5999", "-1"], stdout=subprocess.DEVNULL)
    clients: list[subprocess.Popen[str]] = []
    argv = [*net.a_prefix, "iperf3", "-c", net.b_address, "-p", "5999", "-P", "4", "-C", "bbr", "-t", "8", "-J"]

    def begin() -> None:
        clients.append(subprocess.Popen(argv, stdout=subprocess.PIPE, text=True))

    with nodes(net, 3072 * MIB) as bench:
        looks = watched(bench, [(4.0, begin)])
    out, _ = clients[0].communicate(timeout=60)
    server.wait(10)
    theirs = json.loads(out)["end"]["sum_received"]["bits_per_second"] * 1e-9
    for label, low, high in (("alone", 1, 4), ("together", 6, 12), ("alone again", 14, 99)):
        part = [look.delivered_gbps for look in settled(looks) if low <= look.at_s < high]
        if part:
            print(f"  {label}: {statistics.mean(part):.2f} Gbit/s")
    print(f"  theirs: {theirs:.2f} Gbit/s")


def steps(net: WanNet) -> None:
    """2 Gbit/s to 0.5 and back, under load."""
    print("steps of the link, 2 Gbit/s to 0.5 at second 4 and back at second 9")
    events: list[tuple[float, Callable[[], None]]] = [
        (4.0, lambda: net.set(rate_mbit=500)),
        (9.0, lambda: net.set(rate_mbit=RATE_MBIT)),
    ]
    with nodes(net, 3072 * MIB) as bench:
        looks = watched(bench, events)
    for at_s, rate in ((4.0, 0.5), (9.0, 2.0)):
        true = rate * GOODPUT_SHARE
        near = [look for look in looks if look.at_s >= at_s and abs(look.capacity_gbps / true - 1) <= 0.1]
        at_two = min(looks, key=lambda look, at=at_s: abs(look.at_s - at - 2.0))  # type: ignore[misc]
        first = f"{near[0].at_s - at_s:.1f} s" if near else "never"
        error = at_two.capacity_gbps / true - 1
        estimate = f"capacity {at_two.capacity_gbps:.3f} after 2 s ({error:+.1%})"
        print(f"  to {rate} Gbit/s: {estimate}; within 10% after {first}")


def loss(net: WanNet) -> None:
    """Sustained loss under load, then an idle link."""
    print("5% loss from second 3 on, then an idle link for 10 s")
    with nodes(net, 1024 * MIB) as bench:
        looks = watched(bench, [(3.0, lambda: net.set(loss_percent=5))])
        net.set(loss_percent=0)
        told = [look.at_s - 3.0 for look in looks if look.at_s > 3.0 and look.verdict == "congested"]
        print(f"  congested after {told[0]:.1f} s" if told else "  never congested")
        bench.move(64)
        time.sleep(3)
        verdicts = []
        for _ in range(100):
            verdicts.append(_look(bench, 0.0).verdict)
            time.sleep(LOOK_EVERY_S)
        changes = sum(a != b for a, b in itertools.pairwise(verdicts))
        print(f"  idle: {changes} changes of the verdict in 10 s, at the end {verdicts[-1]}")


def layers(net: WanNet) -> None:
    """Transfer time equals prefill time: how long from the first layer's computation to the last byte."""
    print("layer by layer, prefill as long as the transfer")
    with nodes(net, 512 * MIB) as bench:
        alone_s = statistics.median(bench.move(64).seconds for _ in range(3))
        interval_s = alone_s / 64
        ratios = [bench.move(64, interval_s).seconds / (64 * interval_s) for _ in range(5)]
    spread = f"from {min(ratios):.3f} to {max(ratios):.3f}"
    print(f"  {statistics.median(ratios):.3f} x prefill ({spread}); alone {alone_s:.2f} s")


def order(net: WanNet) -> None:
    """Eight transfers of different sizes at once."""
    print("eight transfers of 32 to 256 MiB at once")
    sizes = [MIB * 32 * (1 + (3 * index) % 8) for index in range(8)]
    with nodes(net, 1152 * MIB, num_images=2) as bench:
        single = statistics.median(bench.move(64).gbps for _ in range(3))
        prepared = [(*bench.prepare(size), size) for size in sizes]
        started_s = time.monotonic()
        for name, _, _ in prepared:
            bench.source.ask("stage", transfer_id=name, num_pieces=16)
        bench.source.ask("finished", transfer_ids=[name for name, _, _ in prepared])
        seconds = time.monotonic() - started_s
        records = bench.source.ask("finished", transfer_ids=[name for name, _, _ in prepared])
        for name, checksum, _ in prepared:
            bench.finish(name, checksum)
    ends = sorted((records[name]["finished_s"] + 0.0, size // MIB) for name, _, size in prepared)
    together = sum(sizes) * 8e-9 / seconds
    print(f"  finished in the order {[size for _, size in ends]} MiB")
    print(f"  {together:.3f} Gbit/s together, {together / single:.3f} of one transfer of as much ({single:.3f})")


def pauses(net: WanNet) -> None:
    """The first moves over new lanes, each after a pause, beside moves that follow each other."""
    print(f"moves of 256 MiB over new lanes, {PAUSE_S:g} s apart, and then without a pause")
    for number in range(3):
        with nodes(net, 256 * MIB, warm_up=0) as bench:
            first = bench.move(64).gbps
            after = []
            for _ in range(5):
                time.sleep(PAUSE_S)
                after.append(bench.move(64).gbps)
            warm = statistics.median(bench.move(64).gbps for _ in range(3))
        shares = ", ".join(f"{gbps / warm:.2f}" for gbps in after)
        print(f"  run {number + 1}: first of all {first:.2f}, warm {warm:.2f} Gbit/s; after pauses x warm: {shares}")


CASES = {
    "pacing": pacing,
    "neighbour": neighbour,
    "steps": steps,
    "loss": loss,
    "layers": layers,
    "order": order,
    "pauses": pauses,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=tuple(CASES))
    parser.add_argument("--rtt-ms", type=float, default=20)
    options = parser.parse_args()
    if reason := available():
        parser.exit(1, f"no WAN here: {reason}\n")
    print(machine())
    print(f"{RATE_MBIT:g} Mbit/s, RTT {options.rtt_ms:g} ms, queue of one RTT")
    for name, case in CASES.items():
        if options.only in (None, name):
            settings = WanSettings(rate_mbit=RATE_MBIT, one_way_ms=options.rtt_ms / 2, queue_ms=options.rtt_ms)
            with wan(settings) as net:
                case(net)


if __name__ == "__main__":
    main()
