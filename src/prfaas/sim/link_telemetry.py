"""What nodes tell of links while a simulation runs: in turn, and at once when bytes are late.

Laws of this file:
- Only bytes that queue show what a link carries; where nodes do not see queues, only bytes that are late.
- Where all is at rest nothing is told, as it would change nothing; when somebody comes, it goes on in the old rhythm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Protocol

from prfaas.core.control import events as e
from prfaas.core.control.scheduler import Scheduler
from prfaas.core.link.arrivals import AHEAD_S, PATIENCE_S
from prfaas.core.link.verdict import CONFIRM_S
from prfaas.sim.deployment import SimulatedDeployment
from prfaas.sim.kernel import Kernel, Planned
from prfaas.sim.link import SharedLink

#: Until a node is sure that bytes are late: its patience, the time that a verdict takes, and a look.
FALL_TOLD_S: Final = PATIENCE_S + CONFIRM_S + 0.1


class Told(Protocol):
    """The simulation, as far as its links are concerned. `lives` are the requests that are not over."""

    deployment: SimulatedDeployment
    kernel: Kernel
    scheduler: Scheduler
    links: dict[tuple[str, str], SharedLink]

    @property
    def lives(self) -> Mapping[str, object]: ...

    @property
    def expects_more(self) -> bool: ...

    def left_bytes(self, pair: tuple[str, str]) -> dict[str, int]: ...


class LinkTelemetry:
    """Of one simulation, told to its scheduler by `handle`."""

    def __init__(self, simulation: Told, handle: Callable[[e.Event], None]) -> None:
        self._simulation = simulation
        self._handle = handle
        self._next: Planned | None = None
        #: When links would be seen next, if nothing were at rest.
        self._due_s: float | None = None
        #: By link: an instance that sends over it, and one that it sends to.
        self._ends: dict[tuple[str, str], tuple[str, str]] = {}

    def somebody_has_come(self) -> None:
        """Where all was at rest, links are seen at the time at which they would have been all the same."""
        simulation = self._simulation
        if self._next is not None or not simulation.links or simulation.scheduler.dispatch is None:
            return
        now_s, every_s = simulation.kernel.now_s, simulation.deployment.telemetry_s
        due_s, self._due_s = self._due_s, None
        if due_s is None:
            due_s = now_s + every_s
        while due_s < now_s:
            due_s += every_s
        self._next = simulation.kernel.at(due_s, self._in_turn)

    def link_fell(self) -> None:
        """Bytes are late soon, and nodes say so without being asked."""
        if self._next is not None and self._simulation.deployment.tells_falls:
            self._simulation.kernel.after(FALL_TOLD_S, self._see)

    def _in_turn(self) -> None:
        self._next = self._due_s = None
        self._see()

    def _see(self) -> None:
        simulation = self._simulation
        for (source, target), link in simulation.links.items():
            queued = link.backlog_bytes
            sender, receiver = self._ends_of(source, target)
            is_late = queued > AHEAD_S * link.bytes_per_s
            is_pressed = queued > 0 if simulation.deployment.sees_queues else is_late
            verdict, delivered = "pressed" if is_pressed else "clear", link.rate_bytes_per_s
            left = simulation.left_bytes((source, target)) if is_late else {}
            arrives = delivered if is_late else None
            self._handle(e.LinkSeen(sender, receiver, verdict, None, round(queued), delivered, None, arrives, left))
        if self._next is not None or not (simulation.lives or simulation.expects_more):
            return
        self._due_s = simulation.kernel.now_s + simulation.deployment.telemetry_s
        if not self._is_at_rest():
            self._next = simulation.kernel.at(self._due_s, self._in_turn)

    def _ends_of(self, source: str, target: str) -> tuple[str, str]:
        """The first ones of both clusters."""
        ends = self._ends.get((source, target))
        if ends is None:
            topology = self._simulation.deployment.topology
            receiver = next(i.name for i in topology.instances_of(target) if i.duty.decodes)
            ends = self._ends[source, target] = topology.instances_of(source)[0].name, receiver
        return ends

    def _is_at_rest(self) -> bool:
        """Nobody is here, and nodes would say the same again and again until somebody comes: a load of one request in
        ten minutes would consist of little else."""
        simulation = self._simulation
        scheduler = simulation.scheduler
        return (
            not simulation.lives
            and scheduler.next_due_s is None
            and scheduler.converter.current is None
            and not any(link.num_transfers for link in simulation.links.values())
            and (scheduler.dispatch is None or scheduler.dispatch.estimates.links.are_as_given)
        )
