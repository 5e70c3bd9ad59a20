"""10,000 GPUs in 10 PrfaaS and 40 PD clusters, planned and simulated, beside smaller fleets.

    python -m benchmarks.scale.ten_thousand_gpus plan      # the paper's 1.8 Tbps, and what a plan takes
    python -m benchmarks.scale.ten_thousand_gpus simulate  # the shipped scheduler under load

Each row is a process of its own, so that its memory is its own. Times are the CPU's, not the wall's: other work on the
machine counts less that way, though not for nothing, as it empties caches.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.scale.fleets import EAST_10K, WEST_10K, like_case_study, of_the_paper, written
from benchmarks.scale.weigh import deep_bytes
from prfaas.core.control import events as e
from prfaas.core.control.instance import Instance
from prfaas.core.planning.plan import make_plan
from prfaas.core.planning.solve import solve
from prfaas.core.planning.usage import GBPS, egress_of
from prfaas.scenario.build import build_scenario
from prfaas.sim.arrivals import lengths_of, poisson
from prfaas.sim.deployment import planned_deployment
from prfaas.sim.runs import Run, to_end

TPOT_S: Final = 0.025
LOAD: Final = 0.8
#: Requests come for so long, and are counted after so long: queues of prompts have settled by then.
ARRIVALS_S: Final = 30.0
WARM_UP_S: Final = 10.0


class Fleet(NamedTuple):
    """How to write its file, and what is simulated of it: with the threshold where it is planned, or moving."""

    name: str
    deployment: Callable[[], dict[str, Any]]
    is_fixed: bool = False
    #: A smaller fleet has fewer requests a second, and needs longer for as much to go by.
    longer: float = 1.0


FLEETS: Final = (
    Fleet("12 instances, 1 x 1 clusters", lambda: like_case_study((4,), (8,), 100.0), longer=40.0),
    Fleet("120 instances, 2 x 8 clusters", lambda: like_case_study((20,) * 2, (10,) * 8, 25.0), longer=5.0),
    Fleet("1,250 instances, 1 x 1 clusters", lambda: like_case_study((420,), (830,), 10_000.0)),
    Fleet("1,250 instances, 10 x 40 clusters", lambda: like_case_study(WEST_10K, EAST_10K, 25.0)),
    Fleet("the same, threshold fixed", lambda: like_case_study(WEST_10K, EAST_10K, 25.0), is_fixed=True),
    Fleet("1,250 PrfaaS instances, 10 x 40 clusters, as the paper's 1.8 Tbps", of_the_paper, is_fixed=True),
)


def planned(fleet: Fleet, folder: Path) -> dict[str, object]:
    """What `prfaas plan` computes, and how long it takes; the search alone is what a gateway does when it starts."""
    scenario = build_scenario(written(fleet.deployment(), folder / "deployment.yaml"))
    began_s = time.process_time()
    solve(scenario)
    searched_s = time.process_time() - began_s
    began_s = time.process_time()
    plan = make_plan(scenario)
    return {
        "fleet": fleet.name,
        "system_rps": round(plan.solution.system_rps, 2),
        "threshold_tokens": round(plan.solution.threshold_tokens),
        "pd_prefill": sum(plan.solution.num_pd_prefill.values()),
        "egress_gbps": round((plan.egress_bytes_per_s or 0.0) / GBPS, 3),
        "of_links": round(plan.egress_utilization or 0.0, 4),
        "bottleneck": "+".join(plan.bottlenecks),
        "search_cpu_s": round(searched_s, 2),
        "plan_cpu_s": round(time.process_time() - began_s, 2),
    }


def simulated(fleet: Fleet, folder: Path, arrivals_s: float) -> dict[str, object]:
    """`LOAD` of what is planned, to the end of the last answer."""
    scenario = build_scenario(written(fleet.deployment(), folder / "deployment.yaml"))
    solution = solve(scenario)
    deployment = planned_deployment(scenario, solution, tpot_slo_s=TPOT_S, is_fixed=fleet.is_fixed)
    rate_rps, lasts_s = LOAD * solution.system_rps, arrivals_s * fleet.longer
    began_s = time.process_time()
    run = Run(deployment)
    starts_s = time.process_time() - began_s
    run.keeps_lives = False
    num_requests = round(rate_rps * lasts_s)
    arrivals = poisson(random.Random(1), rate_rps, lengths_of(scenario.workload), round(scenario.mean_output_tokens))
    run.simulation.follow(islice(arrivals, num_requests))
    seconds = timed(run)
    weights = dict[str, float]()
    run.simulation.kernel.at(0.9 * num_requests / rate_rps, lambda: weights.update(weighed(run)))
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    to_end(run)
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    egress_bytes_per_s = sum(egress_of(scenario, route) for route in solution.routes)
    decides = seconds["PromptCounted"]
    every = [s for times in seconds.values() for s in times]
    return {
        "fleet": fleet.name, "requests": num_requests, "rate_rps": round(rate_rps, 1),
        "answered": run.outcomes.num_ended, "starts_cpu_s": round(starts_s, 2), "wall_s": round(wall_s, 1),
        "cpu_s": round(cpu_s, 1), "decide_ms": figures(decides), "event_ms": figures(every), "events": len(every),
        "scheduler_ms_per_request": round(sum(every) / num_requests * 1e3, 3),
        "longest_ms": {kind: round(max(times) * 1e3, 1) for kind, times in seconds.items() if max(times) > 5e-3},
        **{name: round(weight) for name, weight in weights.items()},
        "links": len(run.simulation.links),
        "egress_gbps": round(egress_gbps(run, lasts_s), 1),
        "planned_egress_gbps": round(LOAD * egress_bytes_per_s / GBPS, 1),
    }  # fmt: skip


def timed(run: Run) -> dict[str, list[float]]:
    """Seconds of CPU of each event, by kind; filled while it runs."""
    handle, seconds = run.simulation.scheduler.handle, dict[str, list[float]]()

    def handled(event: e.Event, now_s: float) -> list[Any]:
        began_s = time.thread_time()
        actions = handle(event, now_s)
        seconds.setdefault(type(event).__name__, []).append(time.thread_time() - began_s)
        return actions

    run.simulation.scheduler.handle = handled  # type: ignore[method-assign]
    return seconds


def weighed(run: Run) -> dict[str, float]:
    """Bytes of the scheduler's state, of each request that is there and of each instance."""
    scheduler = run.simulation.scheduler
    fleet = list(scheduler.fleet.instances.values())
    requests = list(scheduler.requests.values())
    of_requests = deep_bytes(requests, but_not=(Instance,))
    whole = deep_bytes([scheduler])
    return {
        "inside": len(requests),
        "bytes_per_request": of_requests / max(1, len(requests)),
        "bytes_per_instance": (whole - of_requests) / len(fleet),
    }


def egress_gbps(run: Run, until_s: float) -> float:
    """Over all links, after the warm-up."""
    counted = [sample for sample in run.samples if WARM_UP_S <= sample.at_s <= until_s]
    first, last = counted[0], counted[-1]
    return (last.sent_bytes - first.sent_bytes) / (last.at_s - first.at_s) / GBPS


def figures(seconds: list[float]) -> dict[str, float]:
    """In milliseconds."""
    ordered = sorted(seconds)
    return {
        "p50": round(statistics.median(ordered) * 1e3, 3),
        "p99": round(ordered[len(ordered) * 99 // 100] * 1e3, 3),
        "max": round(ordered[-1] * 1e3, 1),
    }


def apart(arguments: list[str]) -> dict[str, Any]:
    """One row by another process, with its peak of memory."""
    command = [sys.executable, "-m", "benchmarks.scale.ten_thousand_gpus", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None, "it was asked for"
        text = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)}: exit status {child.returncode}")
    found: dict[str, Any] = json.loads(text)
    return {**found, "peak_mib": round(usage.ru_maxrss / 1024)}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("plan", "simulate"))
    parser.add_argument("--arrivals-s", type=float, default=ARRIVALS_S, help="requests come for so long")
    parser.add_argument("--row", type=int, help="only this one, in this process")
    options = parser.parse_args()
    if options.row is None:
        for row in range(len(FLEETS)):
            found = apart([options.what, "--row", str(row), "--arrivals-s", str(options.arrivals_s)])
            sys.stdout.write(json.dumps(found) + "\n")
            sys.stdout.flush()
        return
    with tempfile.TemporaryDirectory() as folder:
        fleet = FLEETS[options.row]
        found = (
            planned(fleet, Path(folder))
            if options.what == "plan"
            else simulated(fleet, Path(folder), options.arrivals_s)
        )
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
