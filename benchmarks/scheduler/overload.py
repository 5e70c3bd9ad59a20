"""`python -m benchmarks.scheduler.overload`: the simulated case study at three times what it can serve, by the bound on
the time to the first token. Follows from the seeds alone, whatever the machine.

Capacity is what is answered per second, in time or not, at a tenth more than the plan promises, with the same bound.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from benchmarks.scheduler.in_parallel import run_all
from prfaas.sim.arrivals import Arrival
from prfaas.sim.runs import open_loop
from prfaas.testing.scheduling import OUTPUT_TOKENS, deployment, steady

BOUNDS_S: Final = (5.0, 8.0, 15.0, 30.0)
SATURATED, OVERLOADED = 1.1, 3.0
WARM_UP_S, END_S = 100.0, 400.0

#: Load, bound, seed, and whether answers have lengths of an exponential distribution.
Cell = tuple[float, float, int, bool]


@dataclass(frozen=True, slots=True)
class Figures:
    """Of what ended after the warm-up; `ttfts_s` in order."""

    answered_rps: float
    in_time_rps: float
    ttfts_s: list[float]
    refused_share: float


def arrivals(load: float, seed: int, *, varies: bool) -> Iterator[Arrival]:
    rng = random.Random(seed)
    for arrival in steady(load, END_S).arrivals(seed):
        num_tokens = max(1, round(rng.expovariate(1 / OUTPUT_TOKENS))) if varies else arrival.num_output_tokens
        yield replace(arrival, num_output_tokens=num_tokens)


def simulated(cell: Cell) -> Figures:
    load, bound_s, seed, varies = cell
    run = open_loop(deployment(max_ttft_s=bound_s), arrivals(load, seed, varies=varies))
    ended = [life for life in run.ended if life.outcome == "ok" and WARM_UP_S < (life.ended_s or 0.0) <= END_S]
    ttfts_s = sorted((life.began_s or 0.0) - life.arrival.at_s for life in ended)
    num_in_time = sum(1 for ttft_s in ttfts_s if ttft_s <= bound_s)
    span_s = END_S - WARM_UP_S
    refused = sum(1 for life in run.ended if life.outcome == "unavailable")
    return Figures(len(ended) / span_s, num_in_time / span_s, ttfts_s, refused / len(run.ended))


def tell(seeds: range, processes: int, *, varies: bool) -> None:
    """One row for each bound: means over seeds."""
    cells = [
        (load, bound_s, seed, varies) for bound_s in BOUNDS_S for load in (SATURATED, OVERLOADED) for seed in seeds
    ]
    done = run_all(simulated, cells, processes)
    print("\n| bound | capacity/s | answered/s | in time/s | of the capacity (least) | TTFT p50, p90, p99 | refused |")
    print("|---:|---:|---:|---:|---:|---|---:|")
    for bound_s in BOUNDS_S:
        full = [done[SATURATED, bound_s, seed, varies] for seed in seeds]
        over = [done[OVERLOADED, bound_s, seed, varies] for seed in seeds]
        shares = [o.in_time_rps / f.answered_rps for o, f in zip(over, full, strict=True)]
        means = (statistics.fmean(of) for of in (
            [f.answered_rps for f in full], [o.answered_rps for o in over], [o.in_time_rps for o in over]))  # fmt: skip
        rates = " | ".join(f"{mean:.2f}" for mean in means)
        times = ", ".join(
            f"{statistics.fmean(o.ttfts_s[len(o.ttfts_s) * percent // 100] for o in over):.1f}"
            for percent in (50, 90, 99)
        )
        refused = statistics.fmean(o.refused_share for o in over)
        of_capacity = f"{statistics.fmean(shares):.0%} ({min(shares):.0%})"
        print(f"| {bound_s:g} s | {rates} | {of_capacity} | {times} | {refused:.0%} |", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    for varies in (False, True):
        print(f"\n{OUTPUT_TOKENS} tokens in each answer" if not varies else "\nexponential, of the same mean")
        tell(range(1, options.seeds + 1), options.processes, varies=varies)


if __name__ == "__main__":
    main()
