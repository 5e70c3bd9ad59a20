"""`python -m benchmarks.scheduler.decide`: how long `Scheduler.handle` takes, by the size of the fleet.

Requests come, wait, are bound, prefilled and answered; every event is timed. The policy moves the threshold.
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import time
from collections.abc import Iterator

from prfaas.core.control import actions as a
from prfaas.core.control import events as e
from prfaas.core.control.lifecycle import TransferTerms
from prfaas.core.control.router import RoutePolicy
from prfaas.core.control.scheduler import Scheduler
from prfaas.core.model.curve import polynomial
from prfaas.core.model.serving_model import ClusterModel, ServingModel
from prfaas.core.topology import Cluster, Duty, Instance, Link, Role, Topology, complete_links


def topology(num_clusters: int, num_instances: int) -> Topology:
    """As many PrfaaS as PD clusters, of which half of the instances prefill."""
    clusters, members = [], []
    for number in range(num_clusters):
        for role, name in ((Role.PRFAAS, f"w{number}"), (Role.PD, f"p{number}")):
            clusters.append(Cluster(name, role))
            for index in range(num_instances):
                duty = Duty.PREFILL if role is Role.PRFAAS or index % 2 else Duty.DECODE
                members.append(Instance(f"{name}-{index}", name, duty, f"{name}{index}", f"{name}{index}n", "l"))
    links = [Link(f"w{a}", f"p{b}", 1e10, 0.02) for a in range(num_clusters) for b in range(num_clusters)]
    return Topology(tuple(clusters), tuple(members), complete_links(clusters, links))


def timed(scheduler: Scheduler, num_requests: int) -> dict[str, list[float]]:
    """Seconds by kind of event. An instance takes a hundredth of a second for a prompt, so that some of them wait."""
    rng, now_s, seconds = random.Random(1), 1.0, dict[str, list[float]]()
    todo: list[e.Event] = []

    def handle(event: e.Event) -> None:
        began_s = time.perf_counter()
        actions = scheduler.handle(event, now_s)
        seconds.setdefault(type(event).__name__, []).append(time.perf_counter() - began_s)
        for action in actions:
            todo.extend(results(action))

    for number in range(num_requests):
        now_s += 0.001
        name = f"r{number}"
        handle(e.RequestArrived(name, name, 100_000))
        handle(e.PromptCounted(name, rng.randint(100, 60_000)))
        rng.shuffle(todo)
        for event in [todo.pop() for _ in range(min(len(todo), 8))]:
            handle(event)
    return seconds


def results(action: a.Action) -> Iterator[e.Event]:
    """What comes of it."""
    name = action.request_id
    if isinstance(action, a.Reserve):
        yield e.LandingReserved(name, 1_000)
    elif isinstance(action, a.Prefill | a.StopPrefill):
        yield e.PrefillEnded(name)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=400)
    options = parser.parse_args()
    print("| clusters of each kind | instances each | event | p50, ms | p99, ms |\n|---|---|---|---|---|")
    for num_clusters, num_instances in ((1, 4), (1, 100), (4, 25), (10, 100)):
        fleet = topology(num_clusters, num_instances)
        curve = polynomial(0.1, 1e-4)
        models = {c.name: ClusterModel(curve, 20, 0.025) for c in fleet.clusters}
        model = ServingModel(models, polynomial(0.0, 1e4), 100.0)
        scheduler = Scheduler(fleet, RoutePolicy(True, 10_000, model), TransferTerms(60.0, 30.0))
        for member in fleet.instances:
            scheduler.handle(e.EngineSeen(member.name, True), 0.0)
            scheduler.handle(e.NodeSeen(member.name, True), 0.0)
        gc.collect()
        for kind, times in timed(scheduler, options.requests).items():
            if kind in ("PromptCounted", "PrefillEnded", "LandingReserved"):
                ordered = sorted(times)
                p50_s, p99_s = statistics.median(ordered), ordered[len(ordered) * 99 // 100]
                print(
                    f"| {num_clusters} | {num_instances} | {kind} | {p50_s * 1e3:.2f} | {p99_s * 1e3:.2f} |", flush=True
                )


if __name__ == "__main__":
    main()
