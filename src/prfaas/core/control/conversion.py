"""One instance gets another duty: it is drained, switched by whoever runs it, and used when it is seen to work.

Laws of this file:
- There is one conversion at a time.
- An instance that drains takes no new work. It is switched when nothing of ours is there any more, and keeps its duty
  if that takes longer than `MAX_DRAIN_S`, if whoever runs it refuses, or says nothing for `MAX_SWITCH_S`.
- The duty changes with the topology and with nothing else; an instance that leaves, moves, or is given a duty by the
  file meanwhile is converted no more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from prfaas.core.control.fleet import Fleet
from prfaas.core.control.instance import Instance
from prfaas.core.topology import Duty

#: The longest answers are waited for.
MAX_DRAIN_S: Final = 600.0
#: Engines that must be started anew load weights for minutes.
MAX_SWITCH_S: Final = 600.0
#: How long a switch takes, until one has been seen.
SWITCH_PRIOR_S: Final = 10.0


class Phase(StrEnum):
    """The first three are under way, one after the other; the others are ends. `OVERTAKEN`: the instance left, moved,
    or was given a duty otherwise."""

    DRAINING = "draining"
    SWITCHING = "switching"
    CONFIRMING = "confirming"
    DONE = "done"
    REFUSED = "refused"
    TOO_SLOW = "too_slow"
    OVERTAKEN = "overtaken"


UNDER_WAY: Final = frozenset({Phase.DRAINING, Phase.SWITCHING, Phase.CONFIRMING})


@dataclass(slots=True)
class Conversion:
    """`gain_rps`: what it was expected to bring. `detail` says why it ended as it did."""

    instance: str
    cluster: str
    from_duty: Duty
    to_duty: Duty
    why: str
    gain_rps: float
    began_s: float
    phase: Phase = Phase.DRAINING
    phase_began_s: float = 0.0
    detail: str = ""
    ended_s: float | None = None
    beside: Instance | None = field(default=None, repr=False, compare=False)

    @property
    def is_under_way(self) -> bool:
        return self.phase in UNDER_WAY


def _duties_in(conversion: Conversion) -> tuple[Duty, ...]:
    """That its instance may have in the phase."""
    match conversion.phase:
        case Phase.DRAINING:
            return (conversion.from_duty,)
        case Phase.SWITCHING:
            return conversion.from_duty, conversion.to_duty
        case _:
            return (conversion.to_duty,)


class Converter:
    """`current` is the conversion that is under way, or None."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.current: Conversion | None = None
        #: Of a switch, from the last message to the first use.
        self.switch_s = SWITCH_PRIOR_S

    @property
    def next_due_s(self) -> float | None:
        """When it has taken too long."""
        current = self.current
        if current is None:
            return None
        return current.phase_began_s + (MAX_DRAIN_S if current.phase is Phase.DRAINING else MAX_SWITCH_S)

    def begin(self, conversion: Conversion, now_s: float) -> None:
        """Its instance takes no new work from now on."""
        assert self.current is None, f"{self.current} is under way"
        instance = self._fleet.instances[conversion.instance]
        assert instance.duty is conversion.from_duty, conversion
        conversion.beside, conversion.phase_began_s = instance, now_s
        instance.converts_to = conversion.to_duty
        self.current = conversion

    def step(self, now_s: float) -> Conversion | None:
        """After every event: the conversion, if it has entered another phase."""
        current = self.current
        if current is None:
            return None
        instance = current.beside
        assert instance is not None, "it was begun"
        if self._fleet.instances.get(current.instance) is not instance or instance.is_draining:
            return self.end(Phase.OVERTAKEN, "it left, or moved", now_s)
        if instance.duty not in _duties_in(current):
            return self.end(Phase.OVERTAKEN, f"it was given the duty {instance.duty}", now_s)
        if current.phase is Phase.DRAINING and instance.is_idle and not instance.work:
            return self._enter(Phase.SWITCHING, now_s)
        if current.phase is Phase.SWITCHING and instance.duty is current.to_duty:
            instance.converts_to = None
            return self._enter(Phase.CONFIRMING, now_s)
        if current.phase is Phase.CONFIRMING and self._works(instance):
            self.switch_s = (self.switch_s + now_s - current.phase_began_s) / 2
            return self.end(Phase.DONE, "", now_s)
        due_s = self.next_due_s
        if due_s is not None and now_s >= due_s:
            return self.end(Phase.TOO_SLOW, f"it was {current.phase} for {now_s - current.phase_began_s:.0f} s", now_s)
        return None

    def refused(self, instance: str, detail: str, now_s: float) -> Conversion | None:
        """Whoever runs it will not switch it. Nothing, if nobody asked."""
        current = self.current
        if current is None or current.instance != instance or current.phase is not Phase.SWITCHING:
            return None
        return self.end(Phase.REFUSED, detail, now_s)

    def end(self, phase: Phase, detail: str, now_s: float) -> Conversion:
        current = self.current
        assert current is not None, "only what is under way ends"
        if current.beside is not None:
            current.beside.converts_to = None
        current.phase, current.phase_began_s, current.ended_s, current.detail = phase, now_s, now_s, detail
        current.beside, self.current = None, None
        return current

    def _enter(self, phase: Phase, now_s: float) -> Conversion:
        assert self.current is not None, "something is under way"
        self.current.phase, self.current.phase_began_s = phase, now_s
        return self.current

    def _works(self, instance: Instance) -> bool:
        return instance.may_decode and instance.node_ready if instance.duty.decodes else instance.may_prefill_for_others

    def check(self) -> None:
        """Invariants."""
        converting = {name for name, instance in self._fleet.instances.items() if instance.converts_to is not None}
        current = self.current
        expected = set()
        if current is not None and current.phase in (Phase.DRAINING, Phase.SWITCHING):
            expected = {current.instance}
        assert converting == expected, f"{converting} convert, and under way is {current}"
