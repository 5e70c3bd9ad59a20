"""How full each stage of each cluster has been over the last minutes: prefill and decode.

Laws of this file:
- The load of prefill is the share of its instances that have a prompt, and the queue before them: `PATIENCE_S` of
  waiting count as much as all instances. The load of decode is the share of its places that answers have; with those
  that wait for a place it is over one.
- A load counts half as much when `HALF_LIFE_S` have passed.
- When nobody is there, nothing is looked at; that time counts as empty.
"""

from __future__ import annotations

import math
from typing import Final

from prfaas.core.control.estimates import Estimates
from prfaas.core.control.fleet import Fleet
from prfaas.core.control.queues import Queue
from prfaas.core.portable_math import exp2
from prfaas.core.record import record
from prfaas.core.topology import Duty, Role

HALF_LIFE_S: Final = 30.0
PATIENCE_S: Final = 10.0


@record
class StageLoad:
    """`load` is a mean, of `num_instances` that work now. None: nobody knows how many places there are."""

    cluster: str
    duty: Duty
    num_instances: int
    load: float | None


class _Mean:
    """Of a value that holds until the next one is told."""

    __slots__ = ("sum", "value", "weight")

    def __init__(self) -> None:
        self.value = self.sum = self.weight = 0.0

    def passed(self, keeps: float) -> None:
        """A time after which what was before counts so much. The window's integral, in mean ages."""
        self.sum = self.sum * keeps + self.value * (1.0 - keeps)
        self.weight = self.weight * keeps + (1.0 - keeps)

    @property
    def mean(self) -> float:
        return self.sum / self.weight if self.weight > 0 else self.value


class StageLoads:
    """Of one scheduler, by cluster and duty."""

    def __init__(self, fleet: Fleet, estimates: Estimates, queues: dict[str, Queue]) -> None:
        self._fleet, self._estimates, self._queues = fleet, estimates, queues
        self._means: dict[tuple[str, Duty], _Mean] = {}
        self._seen_s: float | None = None
        #: Since they were last forgotten.
        self.since_s = math.inf

    def forget(self, now_s: float) -> None:
        """Instances have other duties now: what was seen before says nothing."""
        self._means.clear()
        self._seen_s = self.since_s = now_s

    def look(self, now_s: float, *, was_empty: bool = False) -> None:
        """Take in what has been since the last look. `was_empty`: nobody was there meanwhile."""
        if self._seen_s is None:
            self.forget(now_s)
        assert self._seen_s is not None, "it has been set"
        passed_s = now_s - self._seen_s
        self._seen_s = now_s
        keeps = exp2(-passed_s / HALF_LIFE_S)
        values = dict(self._values())
        for key in {**self._means, **values}:
            mean = self._means.setdefault(key, _Mean())
            if was_empty:
                mean.value = 0.0
            mean.passed(keeps)
            # Nobody of it works: it is not busy.
            mean.value = values.get(key, 0.0)

    @property
    def are_empty(self) -> bool:
        """Whether all of them are next to nothing."""
        return all(mean.mean < 0.01 for mean in self._means.values())

    def load(self, cluster: str, duty: Duty) -> float:
        """0.0 where nothing was seen."""
        mean = self._means.get((cluster, duty))
        return 0.0 if mean is None else mean.mean

    def all(self) -> list[StageLoad]:
        """Every stage that has instances."""
        found = []
        for cluster in self._fleet.topology.clusters:
            name = cluster.name
            prefillers = self._fleet.working_prefillers(name)
            if prefillers:
                found.append(StageLoad(name, Duty.PREFILL, len(prefillers), self.load(name, Duty.PREFILL)))
            decoders = self._fleet.working_decoders(name) if cluster.role is Role.PD else []
            if decoders:
                is_known = self._estimates.cluster(name).max_batch is not None
                load = self.load(name, Duty.DECODE) if is_known else None
                found.append(StageLoad(name, Duty.DECODE, len(decoders), load))
        return found

    def _values(self) -> list[tuple[tuple[str, Duty], float]]:
        found = []
        for cluster in self._fleet.topology.clusters:
            name = cluster.name
            prefillers = self._fleet.working_prefillers(name)
            if prefillers:
                busy = sum(1 for instance in prefillers if instance.work)
                queue = self._queues.get(name)
                waiting_s = queue.waiting_s if queue else 0.0
                found.append(((name, Duty.PREFILL), (busy + waiting_s / PATIENCE_S) / len(prefillers)))
            decoders = self._fleet.working_decoders(name) if cluster.role is Role.PD else []
            max_batch = self._estimates.cluster(name).max_batch
            if decoders and max_batch:
                answers = sum(instance.num_answers for instance in decoders)
                found.append(((name, Duty.DECODE), answers / (len(decoders) * max_batch)))
        return found
