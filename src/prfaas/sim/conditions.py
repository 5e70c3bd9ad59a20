"""What happens to a deployment while it is simulated: links that change and break, engines that die and come back."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from prfaas.core.control import events as e
from prfaas.core.control.fallback import Failure, FallbackReason
from prfaas.core.link.arrivals import TOLD_BELOW
from prfaas.core.portable_math import exp, log
from prfaas.sim.draws import normal
from prfaas.sim.simulation import Life, Simulation

#: As the transport has it: lanes without a word for so long are dead, and so much later both ends give a transfer up.
LANES_DEAD_S: Final = 3.0
PEER_LOST_S: Final = 3.0
#: Lanes that can come up again do so within about a second.
LANES_UP_S: Final = 1.0
#: A link that drifts takes so many steps; one that varies, a new rate so often.
RAMP_STEPS: Final = 50
VARIES_EVERY_S: Final = 5.0
#: How much of the last deviation is left in the next one.
_STAYS: Final = 0.8


@dataclass(frozen=True, slots=True)
class LinkBecomes:
    """A link carries this from now on; 0 cuts it."""

    source: str
    target: str
    bytes_per_s: float


@dataclass(frozen=True, slots=True)
class LinkDrifts:
    """To that rate, in equal steps, the first of which is at once."""

    source: str
    target: str
    bytes_per_s: float
    within_s: float


@dataclass(frozen=True, slots=True)
class LinkVaries:
    """Around the rate that it has now, by chance: the same in every run. `share`: the standard deviation. Until the
    next condition of this link."""

    source: str
    target: str
    share: float


@dataclass(frozen=True, slots=True)
class EnginesDie:
    """What they had is lost, and they refuse connections."""

    instances: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EnginesReturn:
    """With nothing of what they had, as far as requests go."""

    instances: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EnginesFail:
    """They answer probes, and every request with an error at once."""

    instances: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EnginesSlow:
    """They prefill so many times as slowly as their profile says."""

    instances: tuple[str, ...]
    factor: float


@dataclass(frozen=True, slots=True)
class EnginesMend:
    """They neither fail nor are slow any more."""

    instances: tuple[str, ...]


Condition = LinkBecomes | LinkDrifts | LinkVaries | EnginesDie | EnginesReturn | EnginesFail | EnginesSlow | EnginesMend


def happens(simulation: Simulation, condition: Condition) -> None:
    """Now."""
    match condition:
        case LinkBecomes(source, target, bytes_per_s):
            _link_course(simulation, (source, target), iter((bytes_per_s,)), 0.0)
        case LinkDrifts(source, target, bytes_per_s, within_s):
            pair = source, target
            course = _drift(simulation.links[pair].bytes_per_s, bytes_per_s)
            _link_course(simulation, pair, course, within_s / RAMP_STEPS)
        case LinkVaries(source, target, share):
            pair = source, target
            course = _by_chance(pair, simulation.links[pair].bytes_per_s, share)
            _link_course(simulation, pair, course, VARIES_EVERY_S)
        case EnginesDie(instances):
            for name in instances:
                _engine_dies(simulation, name)
        case EnginesReturn(instances):
            for name in instances:
                simulation.revive(name)
        case EnginesFail(instances):
            simulation.failing.update(instances)
        case EnginesSlow(instances, factor):
            for name in instances:
                simulation.engines[name].slow_down(factor)
        case EnginesMend(instances):
            simulation.failing.difference_update(instances)
            for name in instances:
                simulation.engines[name].slow_down(1.0)


def _drift(from_bytes_per_s: float, to_bytes_per_s: float) -> Iterator[float]:
    for step in range(1, RAMP_STEPS + 1):
        yield from_bytes_per_s + (to_bytes_per_s - from_bytes_per_s) * step / RAMP_STEPS


def _by_chance(pair: tuple[str, str], usual_bytes_per_s: float, share: float) -> Iterator[float]:
    """Log-normal, each rate near the one before."""
    rng = random.Random(" ".join(pair))
    variance = log(1.0 + share * share)
    deviation = normal(rng)
    while True:
        yield usual_bytes_per_s * exp(math.sqrt(variance) * deviation - variance / 2)
        deviation = _STAYS * deviation + math.sqrt(1 - _STAYS * _STAYS) * normal(rng)


def _link_course(simulation: Simulation, pair: tuple[str, str], course: Iterator[float], every_s: float) -> None:
    """The link takes these rates, one after the other, in place of what it was to do."""
    link = simulation.links[pair]
    link.course = course
    _next_rate(simulation, pair, course, every_s)


def _next_rate(simulation: Simulation, pair: tuple[str, str], course: Iterator[float], every_s: float) -> None:
    if simulation.links[pair].course is not course:
        return
    bytes_per_s = next(course, None)
    if bytes_per_s is None:
        return
    _link_becomes(simulation, pair, bytes_per_s)
    if simulation.lives or simulation.expects_more:
        simulation.kernel.after(every_s, _next_rate, simulation, pair, course, every_s)


def _link_becomes(simulation: Simulation, pair: tuple[str, str], bytes_per_s: float) -> None:
    link = simulation.links[pair]
    was_cut, has_fallen = link.bytes_per_s <= 0, bytes_per_s < TOLD_BELOW * link.bytes_per_s
    link.set_rate(bytes_per_s)
    if has_fallen:
        simulation.link_fell()
    back = simulation.back_links.get(pair[::-1])
    if back is not None:
        back.set_rate(bytes_per_s)
    if bytes_per_s <= 0 and not was_cut:
        simulation.kernel.after(LANES_DEAD_S, _lanes_dead, simulation, pair)
        simulation.kernel.after(LANES_DEAD_S + PEER_LOST_S, _transfers_lost, simulation, pair)
    elif bytes_per_s > 0 and was_cut:
        simulation.kernel.after(LANES_UP_S, _lanes_up, simulation, pair)


def _lanes_dead(simulation: Simulation, pair: tuple[str, str]) -> None:
    if simulation.links[pair].bytes_per_s <= 0:
        _tell_lanes(simulation, pair[0])


def _transfers_lost(simulation: Simulation, pair: tuple[str, str]) -> None:
    if simulation.links[pair].bytes_per_s <= 0:
        both = [link for link in (simulation.links[pair], simulation.back_links.get(pair[::-1])) if link is not None]
        for life in list(simulation.lives.values()):
            if life.fetch is not None and life.fetch.link in both:
                simulation.fetch_breaks(life)
            if life.transfer is not None and simulation.pair_of(life) == pair:
                simulation.abort(life, Failure(FallbackReason.LANDING_ABORTED, "the link is cut"))


def _lanes_up(simulation: Simulation, pair: tuple[str, str]) -> None:
    if simulation.links[pair].bytes_per_s > 0:
        _tell_lanes(simulation, pair[0])


def _tell_lanes(simulation: Simulation, source: str) -> None:
    """The nodes there say to whom they have no lane."""
    for sender in simulation.scheduler.fleet.topology.instances_of(source):
        simulation.tell(simulation.node_seen(sender.name))


def _engine_dies(simulation: Simulation, name: str) -> None:
    simulation.kill(name)
    simulation.tell(e.EngineSilent(name, refused=True))
    lost = Failure(FallbackReason.PREFILL_UNREACHABLE, "the engine died", refused=True)
    for life in list(simulation.lives.values()):
        if life.fetch is not None and life.fetch.source == name:
            simulation.fetch_breaks(life)
        if life.is_prefilling and life.prefill == name:
            simulation.prefill_breaks(life, lost)
        elif life.sequence is not None and life.decode == name:
            _answer_breaks(simulation, life)


def _answer_breaks(simulation: Simulation, life: Life) -> None:
    life.sequence = None
    if life.began_s is None:
        failure = Failure(FallbackReason.DECODE_UNREACHABLE, "the engine died", refused=True)
        simulation.tell(e.DecodeFailed(life.request_id, life.attempt, failure))
    else:
        life.ended_s, life.outcome = simulation.kernel.now_s, "error"
        simulation.tell(e.AnswerEnded(life.request_id, "error", 502))
