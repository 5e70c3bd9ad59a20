"""A control core that converts instances for no reason, as often as it may: the machinery, not the judgement."""

from __future__ import annotations

import random

from prfaas.core.control.conversion import Conversion
from prfaas.core.control.dispatch import Dispatch
from prfaas.core.control.rebalance import Rebalancer
from prfaas.core.control.router import RoutePolicy
from prfaas.core.control.scheduler import Scheduler
from prfaas.core.topology import Duty


class EagerRebalancer(Rebalancer):
    """With every look some instance is to get the other duty."""

    rng: random.Random

    def _look(self, now_s: float) -> Conversion | None:
        convertible = self._fleet.topology.convertible
        members = [
            instance
            for instance in self._fleet.instances.values()
            if instance.cluster in convertible and instance.duty is not Duty.BOTH and not instance.is_draining
        ]
        if not members or self._converter.current is not None:
            return None
        chosen = self.rng.choice(members)
        to_duty = Duty.DECODE if chosen.duty is Duty.PREFILL else Duty.PREFILL
        return Conversion(chosen.name, chosen.cluster, chosen.duty, to_duty, "why not", 0.0, now_s)


class EagerScheduler(Scheduler):
    """As shipped, but for when it converts."""

    def _slow_timescale(self, dispatch: Dispatch | None, policy: RoutePolicy, now_s: float) -> None:
        super()._slow_timescale(dispatch, policy, now_s)
        shipped = self.rebalancer
        if shipped is not None and dispatch is not None:
            eager = EagerRebalancer(self.fleet, dispatch.estimates, shipped.loads, self.converter, policy.cool_down_s)
            eager.rng = random.Random(len(self.fleet.instances))
            if self.requests:
                eager.wake(now_s)
            self.rebalancer = eager
