"""`python -m benchmarks.scheduler.caches [--trace FILE]`: policies where prompts repeat, with caches that forget.

Conversations in closed loop on the case study, over a link of 100 and of 4 Gbps, and a trace if one is given: every
policy meets clients that behave alike. Prints the tables of docs/benchmarks/scheduler.md.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from benchmarks.scheduler.in_parallel import run_all
from prfaas.core.planning.trace import MOONCAKE_BLOCK_TOKENS
from prfaas.scenario.workload import read_trace_file
from prfaas.sim.arrivals import traced
from prfaas.sim.caches import CacheProfile, kinds_of
from prfaas.sim.deployment import SimulatedDeployment
from prfaas.sim.runs import Run, to_end
from prfaas.sim.sessions import Conversations, Sessions
from prfaas.simulator.results import Results, results_of
from prfaas.testing.scheduling import GBPS, OUTPUT_TOKENS, PAIR, TPOT_S, deployment, planned

#: Ours with and without fetches, a threshold that stands still, and others.
CHOICES: Final = (
    "prfaas", "prfaas, prefixes move", "19400", "least_load", "two_choices", "prefix_affinity", "session_affinity",
    "append_prefill", "uncached_2048", "gorgo", "soonest",
)  # fmt: skip
#: Six prompts each, of which the last ones are ten times as long as what is new in them.
TALKS: Final = Conversations(90, think_s=20.0, num_turns=6, shared_tokens=2_000)
NUM_REQUESTS: Final = 3_000
#: Of an instance: what some conversations need, and what many do.
CACHE_TOKENS: Final = 3_000_000

#: What happens, seed, choice; the trace's path for a trace.
Cell = tuple[str, int, str, str]

FIGURES: Final[tuple[tuple[str, Callable[[Results], float], str], ...]] = (
    ("answered/s", lambda r: r.system_rps, ".2f"), ("TTFT mean, s", lambda r: r.ttft_s_mean or 0.0, ".2f"),
    ("p50", lambda r: r.ttft_s_p50 or 0.0, ".2f"), ("p99", lambda r: r.ttft_s_p99 or 0.0, ".1f"),
    ("e2e mean, s", lambda r: r.e2e_s_mean or 0.0, ".1f"), ("cached", lambda r: r.cached_fraction, ".0%"),
    ("offloaded", lambda r: r.offload_fraction, ".0%"),
    ("egress, Gbps", lambda r: r.egress_bytes_per_s_mean * 8e-9, ".1f"),
    ("fell back", lambda r: float(r.num_fallbacks), ".0f"),
)  # fmt: skip


def with_caches(choice: str, seed: int, gbps: float) -> SimulatedDeployment:
    name = choice.split(",")[0]
    made = deployment(int(name) if name.isdigit() else name, seed=seed)
    clusters = [cluster.name for cluster in made.topology.clusters]
    blocks = dict.fromkeys(clusters, CACHE_TOKENS // MOONCAKE_BLOCK_TOKENS)
    links = tuple(
        replace(link, bytes_per_s=gbps * GBPS) if (link.source, link.target) == PAIR else link
        for link in made.topology.links
    )
    return replace(
        made,
        topology=replace(made.topology, links=links),
        caches=CacheProfile(MOONCAKE_BLOCK_TOKENS, blocks, kinds_of(made.kv_bytes)),
        policy=replace(made.policy, may_fetch="prefixes move" in choice),
    )


def simulated(cell: Cell, num_requests: int = NUM_REQUESTS) -> Results:
    what, seed, choice, trace = cell
    if trace:
        run = Run(with_caches(choice, seed, 100.0))
        run.simulation.follow(traced(read_trace_file(Path(trace), trace, MOONCAKE_BLOCK_TOKENS), is_whole=True))
    else:
        scenario = planned()[0]
        run = Sessions(
            with_caches(choice, seed, float(what.split()[-2])), random.Random(seed), new_tokens, TALKS,
            num_output_tokens=OUTPUT_TOKENS, num_requests=num_requests, max_tokens=round(scenario.workload.max_tokens),
        )  # fmt: skip
    planned_rps = planned()[1].system_rps
    return results_of(to_end(run), policy=choice, seed=seed, planned_rps=planned_rps, tpot_slo_s=TPOT_S, wall_s=0.0)


def new_tokens(rng: random.Random) -> int:
    """Of a question, with what it brings along."""
    return max(16, round(rng.lognormvariate(8.7, 1.0)))


def table(what: str, seeds: range, trace: str, processes: int) -> None:
    cells = [(what, seed, choice, trace) for choice in CHOICES for seed in seeds]
    done = run_all(simulated, cells, processes)
    print(f"\n{what}\n\n| policy | {' | '.join(label for label, _, _ in FIGURES)} |\n|---|{'---|' * len(FIGURES)}")
    for choice in CHOICES:
        medians = (
            f"{statistics.median(value(done[what, seed, choice, trace]) for seed in seeds):{form}}"
            for _, value, form in FIGURES
        )
        print(f"| {choice} | {' | '.join(medians)} |", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--trace", type=Path, help="Mooncake's conversation trace")
    options = parser.parse_args()
    seeds = range(1, options.seeds + 1)
    for gbps in (100, 4):
        table(f"conversations over a link of {gbps} Gbps", seeds, "", options.processes)
    if options.trace is None:
        print("\nskipped: the trace; give it with --trace")
    else:
        table("the trace", range(1, 2), str(options.trace), options.processes)


if __name__ == "__main__":
    main()
