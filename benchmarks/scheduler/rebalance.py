"""`python -m benchmarks.scheduler.rebalance`: what the slow timescale is worth when other requests come than were
planned for.

Prints a table of docs/benchmarks/scheduler.md and draws docs/images/scheduler-rebalance.svg. All of it is simulated and
follows from the seeds alone.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Final

from benchmarks.scheduler.conditions import save
from benchmarks.scheduler.in_parallel import run_all
from prfaas.testing.scheduling import SHIFTS, Outcome, Split, outcome_of

#: Of eight instances, at least one has each duty.
SPLITS: Final = tuple(Split(num_prefill) for num_prefill in range(1, 8))
OURS: Final = Split(is_convertible=True)
STANDS: Final = Split()

Cell = tuple[str, int, Split]


def simulated(cell: Cell) -> tuple[Outcome, int]:
    """And how many instances were converted."""
    name, seed, split = cell
    run = SHIFTS[name].run(seed, split=split)
    return outcome_of(run), len(run.simulation.conversions)


def table(seeds: range, processes: int) -> None:
    """Medians over the seeds. The best split is the one with the lowest mean time to the last token."""
    cells = [(name, seed, split) for name in SHIFTS for seed in seeds for split in (OURS, STANDS, *SPLITS)]
    done = run_all(simulated, cells, processes)

    def median(name: str, split: Split, value: Callable[[Outcome], float]) -> float:
        return statistics.median(value(done[name, seed, split][0]) for seed in seeds)

    print("| | | TTFT mean | p50 | p99 | end to end, mean | conversions |")
    print("|---|---|---|---|---|---|---|")
    for name in SHIFTS:
        best = min(SPLITS, key=lambda split: median(name, split, lambda o: o.e2e_s_mean))
        rows = (
            ("converted", OURS),
            ("as planned", STANDS),
            (f"best in hindsight: {best.num_prefill} and {8 - (best.num_prefill or 0)}", best),
        )
        for label, split in rows:
            values = (lambda o: o.ttft_s_mean, lambda o: o.ttft_s_p50, lambda o: o.ttft_s_p99, lambda o: o.e2e_s_mean)
            figures = " | ".join(f"{median(name, split, value):.1f}" for value in values)
            num = statistics.median(done[name, seed, split][1] for seed in seeds)
            print(f"| {name if split is OURS else ''} | {label} | {figures} | {num:g} |")


def draw(seed: int = 1) -> None:
    """Requests inside, and duties, while many more come with shorter prompts."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.2), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    for split, label, style in ((OURS, "with conversions", "-"), (STANDS, "without", "--")):
        run = SHIFTS["many more, with shorter prompts"].run(seed, split=split)
        times = [sample.at_s for sample in run.samples]
        top.plot(times, [sample.num_inside for sample in run.samples], style, color="tab:blue", label=label)
        num_decode, steps = 5, [(0.0, 5)]
        for conversion in run.simulation.conversions:
            # What drains still answers, and takes nothing new.
            num_decode += 1 if conversion.to_duty == "decode" else -1
            steps.append((conversion.ended_s or 0.0, num_decode))
        steps.append((1_800.0, num_decode))
        xs, ys = zip(*steps, strict=True)
        bottom.step(xs, ys, style, where="post", color="tab:green", label=label)
    top.axvline(300.0, color="black", linewidth=0.8)
    top.set(ylabel="requests inside")
    top.legend(fontsize=8)
    bottom.set(ylabel="instances that decode", xlabel="seconds", ylim=(0, 8.5))
    bottom.legend(fontsize=8, loc="lower right")
    save(
        figure, "scheduler-rebalance", "Many more requests, with shorter prompts",
        "Requests inside, and instances that decode, over 1,800 seconds, with conversions and without.",
    )  # fmt: skip


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", choices=["table", "picture"])
    options = parser.parse_args()
    if options.only != "picture":
        table(range(1, options.seeds + 1), options.processes)
    if options.only != "table":
        draw()


if __name__ == "__main__":
    main()
