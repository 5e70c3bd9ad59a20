"""A deployment of emulated engines in the simulator, in the seconds and bytes in which it is served.

`prfaas simulate` reads such a file as the real deployment. Constants of the scheduler, such as half-lives, do not
shrink with `emulation.time_scale`; so only a simulation in the scale of the served deployment has the same ones. Its
scheduler gets the topology, policy and terms of the gateway's, its engines the profiles of the emulated ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from benchmarks.case_study.adaptive_samples import Asked, Member, Sample, Seen, conversions_of, sample_of
from prfaas.bench.e2e.plan import Plan
from prfaas.core.control.lifecycle import TransferTerms
from prfaas.core.control.view import view
from prfaas.deployment.fronts import control_address
from prfaas.deployment.load import read_deployment, resolve_model_dir
from prfaas.deployment.model import Emulation
from prfaas.deployment.topology import topology_of
from prfaas.engines.emulated.configure import emulated_of
from prfaas.scenario.hardware import model_of
from prfaas.scenario.served_policy import routing_threshold
from prfaas.sim.arrivals import Arrival
from prfaas.sim.conditions import LinkBecomes
from prfaas.sim.deployment import SimulatedDeployment
from prfaas.sim.runs import Run
from prfaas.sim.simulation import Life

#: The gateway gives an instance another duty by itself: it has nothing to wait for.
SWITCH_S: Final = 0.0


def as_served(file: Path) -> SimulatedDeployment:
    """Raises what reading the file raises."""
    deployment, document = read_deployment(file)
    scale = deployment.emulation or Emulation()
    # Of the engines only their profiles are used: nobody listens at a socket.
    emulated = emulated_of(deployment, document, resolve_model_dir(deployment, file), file.parent, ())
    return SimulatedDeployment(
        topology=topology_of(deployment),
        profiles={instance.name: instance.profile for instance in emulated.instances},
        kv_bytes=model_of(deployment.model, file.parent).kv_bytes.scaled(scale.bytes_scale),
        policy=routing_threshold(deployment, file).routes(),
        terms=TransferTerms(deployment.transfer.deadline, deployment.transfer.lease),
        # The sockets of a link that is emulated end at `prfaas wan`.
        sees_queues=control_address(deployment) is None,
        switch_s=SWITCH_S,
    )


def simulate(
    file: Path, plan: Plan, *, pd: str, conditions: Sequence[tuple[float, LinkBecomes]], until_s: float, end_s: float,
    every_s: float,
) -> Seen:  # fmt: skip
    """The plan's requests, with a sample every `every_s` up to `until_s`. It is over at `end_s`."""
    run = Run(as_served(file))
    simulation = run.simulation
    run.expect(conditions)
    simulation.follow(iter([Arrival(one.at_s, one.input_tokens, one.output_tokens) for one in plan.requests]))
    samples = []
    for number in range(round(until_s / every_s) + 1):
        simulation.run(number * every_s)
        samples.append(_sample(run, pd))
    seen = asdict(view(simulation.scheduler, simulation.kernel.now_s))
    conversions = conversions_of(seen, simulation.kernel.now_s)
    simulation.run(end_s)
    lives = sorted([*run.ended, *simulation.lives.values()], key=lambda life: life.number)
    return Seen(samples, [_asked(life) for life in lives], conversions)


def _sample(run: Run, pd: str) -> Sample:
    simulation = run.simulation
    now_s, scheduler = simulation.kernel.now_s, simulation.scheduler
    for link in simulation.links.values():
        link.advance()
    members = (Member(str(i.duty), i.num_inflight) for i in scheduler.fleet.all if i.cluster == pd)
    sent_bytes = sum(link.sent_bytes for link in simulation.links.values())
    return sample_of(now_s, asdict(view(scheduler, now_s)), members, sent_bytes)


def _asked(life: Life) -> Asked:
    return Asked(life.arrival.at_s, life.began_s, life.route, life.outcome, life.fallback)
