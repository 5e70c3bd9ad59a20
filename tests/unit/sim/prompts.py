"""Prompts of conversations for deployments with prefix caches, and whole runs of them."""

from __future__ import annotations

from prfaas.sim.arrivals import Arrival
from prfaas.sim.conditions import Condition
from prfaas.sim.deployment import SimulatedDeployment
from prfaas.sim.runs import open_loop
from prfaas.sim.simulation import Life

#: Tokens a block.
BLOCK = 100


def asks(at_s: float, num_tokens: int, talk: str = "a") -> Arrival:
    """A prompt of this conversation: longer ones begin with the shorter ones."""
    blocks = tuple(f"{talk}{index}".encode() for index in range(num_tokens // BLOCK))
    return Arrival(at_s, num_tokens, 1, blocks=blocks)


def ran(
    made: SimulatedDeployment, *arrivals: Arrival, conditions: tuple[tuple[float, Condition], ...] = ()
) -> list[Life]:
    """All of them to their ends, in the order in which they came; nothing is left in the scheduler or on a back link."""
    run = open_loop(made, arrivals, checks=True, conditions=conditions)
    assert not run.simulation.scheduler.requests
    assert not any(link.num_transfers for link in run.simulation.back_links.values())
    return sorted(run.ended, key=lambda life: life.number)
