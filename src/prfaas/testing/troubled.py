"""Small simulated deployments in trouble, drawn from one seed: engines die, links change and break, requests come.

A run has the laws of the scheduler checked after every event. In the end every request has ended once, and nothing is
left anywhere. `python -m prfaas.testing.troubled --seeds 1000` runs many.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator
from typing import Final

from prfaas.core.control.lifecycle import TransferTerms
from prfaas.core.control.router import RoutePolicy
from prfaas.core.model.curve import polynomial
from prfaas.core.model.layout import KVGroupKind
from prfaas.core.model.serving_model import ClusterModel, ServingModel
from prfaas.core.topology import Cluster, Duty, Instance, Link, Role, Topology, complete_links
from prfaas.sim.arrivals import Arrival
from prfaas.sim.caches import CacheProfile
from prfaas.sim.conditions import (
    Condition,
    EnginesDie,
    EnginesFail,
    EnginesMend,
    EnginesReturn,
    EnginesSlow,
    LinkBecomes,
    LinkDrifts,
    LinkVaries,
)
from prfaas.sim.deployment import SimulatedDeployment
from prfaas.sim.engine import EngineProfile
from prfaas.sim.policies import POLICIES
from prfaas.sim.runs import Run, open_loop

NUM_REQUESTS: Final = 40
#: Requests come within this, and so does all trouble; afterwards everything works again.
UNTIL_S: Final = 40.0
HEALED_S: Final = 60.0
LINK_BYTES_PER_S: Final = 1e6
BLOCK_TOKENS: Final = 200


class Violation(AssertionError):
    """The text has the seed, what was drawn, and the last requests."""


def troubled(seed: int) -> Run:
    """One run. Raises Violation."""
    rng = random.Random(seed)
    made = _deployment(rng)
    conditions = list(_conditions(rng, made.topology))
    arrivals = list(_arrivals(rng))
    try:
        run = open_loop(made, arrivals, conditions=conditions, checks=True)
        _check_end(run)
    except AssertionError as broken:
        told = "\n".join(f"  {at_s:8.3f} {condition}" for at_s, condition in conditions)
        raise Violation(f"seed {seed}: {broken}\npolicy {made.policy}\n{made.topology}\n{told}") from broken
    return run


def _check_end(run: Run) -> None:
    simulation = run.simulation
    assert len(run.ended) == NUM_REQUESTS, f"{len(run.ended)} of {NUM_REQUESTS} requests ended"
    assert len({life.number for life in run.ended}) == NUM_REQUESTS, "a request ended twice"
    assert not simulation.lives, f"requests are left: {list(simulation.lives)}"
    scheduler = simulation.scheduler
    assert not scheduler.requests, f"the scheduler still has {list(scheduler.requests)}"
    for life in run.ended:
        assert life.outcome, f"request {life.number} ended without an outcome"
        if life.outcome == "ok":
            assert life.began_s is not None
            assert life.ended_s is not None
            assert life.arrival.at_s <= life.began_s <= life.ended_s, f"request {life.number} goes back in time"
    for name, instance in scheduler.fleet.instances.items():
        held = instance.num_inflight, instance.num_landings, len(instance.work)
        assert held == (0, 0, 0), f"{name} holds requests, landings, work: {held}"
    for pair, link in simulation.links.items():
        assert not link.num_transfers, f"something is on the link {pair}"
    if scheduler.dispatch is not None:
        assert not any(scheduler.dispatch.queues.values()), "somebody waits"
        assert not any(scheduler.dispatch.link_bytes.values()), "bytes are still to cross"
        assert scheduler.next_due_s is None or not scheduler.dispatch.queues, "a turn is still to come"


def _deployment(rng: random.Random) -> SimulatedDeployment:
    prfaas = [Cluster(f"west{n}", Role.PRFAAS) for n in range(rng.randint(1, 2))]
    pd = [Cluster(f"pd{n}", Role.PD, rng.random() < 0.5) for n in range(rng.randint(1, 2))]
    members = [
        Instance(f"{c.name}-{n}", c.name, Duty.PREFILL, f"sim://{c.name}{n}", f"sim://{c.name}{n}/node", f"{c.name}{n}")
        for c in prfaas
        for n in range(rng.randint(1, 3))
    ]
    for cluster in pd:
        duties = rng.choice(
            ((Duty.BOTH,), (Duty.BOTH, Duty.BOTH), (Duty.PREFILL, Duty.DECODE), (Duty.PREFILL, Duty.DECODE, Duty.BOTH),
             (Duty.PREFILL, Duty.PREFILL, Duty.DECODE, Duty.DECODE), (Duty.DECODE,))
        )  # fmt: skip
        for n, duty in enumerate(duties):
            name = f"{cluster.name}-{n}"
            members.append(Instance(name, cluster.name, duty, f"sim://{name}", f"sim://{name}/node", name))
    given = [Link(a.name, b.name, LINK_BYTES_PER_S, rng.choice((0.0, 0.02, 0.3))) for a in prfaas for b in pd]
    topology = Topology((*prfaas, *pd), tuple(members), complete_links((*prfaas, *pd), given))
    real = {c.name: polynomial(0.05, rng.choice((1e-4, 3e-4))) for c in (*prfaas, *pd)}
    believed = {name: ClusterModel(curve.scaled(rng.choice((0.3, 1.0, 3.0))), 4, 0.02) for name, curve in real.items()}
    kv_bytes = polynomial(1e4, 100.0)
    model = ServingModel(believed, kv_bytes, 40.0, rng.choice((None, 0.021)))
    others = rng.choice([*POLICIES.values(), *[None] * 30])
    policy = RoutePolicy(
        rng.random() < 0.95, rng.choice((0, 1_000, 5_000)), model if rng.random() < 0.9 else None,
        rng.choice((None, None, 3.0)),
        choose=None if others is None else others(rng.randrange(1000)), binds_late=others is None,
    )  # fmt: skip
    profiles = {member.name: EngineProfile(real[member.cluster], 4, 0.02) for member in members}
    terms = TransferTerms(deadline_s=rng.choice((5.0, 20.0)), lease_s=rng.choice((3.0, 9.0)))
    telemetry_s = rng.choice((0.5, 2.0, 7.0))
    caches = _caches(rng, [cluster.name for cluster in topology.clusters])
    return SimulatedDeployment(
        topology, profiles, kv_bytes, policy, terms, telemetry_s=telemetry_s, caches=caches
    )  # fmt: skip


def _caches(rng: random.Random, clusters: list[str]) -> CacheProfile | None:
    """None, one that forgets within a few requests, or one that keeps all."""
    max_blocks = rng.choice((None, None, 25, 100, 10_000))
    if max_blocks is None:
        return None
    kinds = rng.sample(tuple(KVGroupKind), rng.randint(1, len(KVGroupKind)))
    return CacheProfile(BLOCK_TOKENS, dict.fromkeys(clusters, max_blocks), frozenset(kinds))


def _conditions(rng: random.Random, topology: Topology) -> Iterator[tuple[float, Condition]]:
    links = [(link.source, link.target) for link in topology.links if link.bytes_per_s is not None]
    for _ in range(rng.randint(1, 8)):
        at_s = rng.uniform(0.0, UNTIL_S)
        if rng.random() < 0.3:
            few = rng.sample(topology.instances, rng.randint(1, len(topology.instances)))
            names = tuple(member.name for member in few)
            yield at_s, EnginesFail(names) if rng.random() < 0.5 else EnginesSlow(names, rng.choice((2.0, 10.0)))
            yield at_s + rng.uniform(0.1, 10.0), EnginesMend(names)
        elif rng.random() < 0.5:
            few = rng.sample(topology.instances, rng.randint(1, len(topology.instances)))
            names = tuple(member.name for member in few)
            yield at_s, EnginesDie(names)
            yield at_s + rng.uniform(0.1, 10.0), EnginesReturn(names)
        else:
            source, target = rng.choice(links)
            rate = LINK_BYTES_PER_S * rng.choice((0.0, 0.0, 0.01, 0.1, 3.0))
            yield at_s, rng.choice((LinkBecomes(source, target, rate), LinkDrifts(source, target, rate, 5.0),
                                    LinkVaries(source, target, 0.5)))  # fmt: skip
            yield at_s + rng.uniform(0.1, 15.0), LinkBecomes(source, target, LINK_BYTES_PER_S)
    for source, target in links:
        yield HEALED_S, LinkBecomes(source, target, LINK_BYTES_PER_S)
    yield HEALED_S, EnginesMend(tuple(member.name for member in topology.instances))
    yield HEALED_S, EnginesReturn(tuple(member.name for member in topology.instances))


def _arrivals(rng: random.Random) -> Iterator[Arrival]:
    for at_s in sorted(rng.uniform(0.0, UNTIL_S) for _ in range(NUM_REQUESTS)):
        num_tokens = rng.choice((1, 2, rng.randint(3, 500), rng.randint(500, 20_000)))
        num_output_tokens, priority, tenant = rng.randint(1, 80), rng.choice((0, 0, 0, -1, 5)), rng.choice("abc")
        # A tenant's prompts are one conversation: each begins as the longer ones do.
        blocks = tuple(f"{tenant}{index}".encode() for index in range(num_tokens // BLOCK_TOKENS))
        yield Arrival(at_s, num_tokens, num_output_tokens, priority, tenant, blocks)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=1_000)
    options = parser.parse_args()
    for seed in range(options.first, options.first + options.seeds):
        try:
            troubled(seed)
        except Violation as violation:
            sys.exit(str(violation))
    sys.stdout.write(f"{options.seeds} seeds from {options.first}: no violation\n")


if __name__ == "__main__":
    main()
