"""The slow timescale: which stage binds, which instance gets another duty for it, and what no conversion can mend.

Laws of this file:
- A stage binds while its load over the last minutes (see `stage_loads`) is `BINDS` or more, and the highest of its
  cluster. Where none does, nothing is done.
- An instance of the other stage is converted if then more requests could be served (see `capacity`), by `MIN_GAIN` or
  more, and if what that brings within `PAYS_WITHIN_S` is more than what is lost until it is done.
- There is one conversion at a time, and none within the cool-down of the last one. One that came to nothing doubles
  the cool-down, up to `MAX_COOL_DOWN_S`.
- Each duty keeps one instance of a cluster at least, and only clusters that are convertible are converted.
- Whatever else would serve more is a suggestion, with what it would bring. Suggestions stand while a stage binds.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from typing import Final

from prfaas.core.control.capacity import Capacity, Counts, capacity, counts_now
from prfaas.core.control.conversion import Conversion, Converter, Phase
from prfaas.core.control.estimates import Estimates
from prfaas.core.control.fleet import Fleet
from prfaas.core.control.instance import Instance
from prfaas.core.control.stage_loads import StageLoads
from prfaas.core.record import record
from prfaas.core.topology import Duty, Role

#: Loads are sampled so often.
SAMPLE_EVERY_S: Final = 2.0
#: So often it is asked what binds.
LOOK_EVERY_S: Final = 10.0
#: Loads must have been seen for so long.
MIN_SEEN_S: Final = 60.0
#: And so many lengths: of fewer the mean is off by 4% or more, and what could be served by half of that.
MIN_SEEN_LENGTHS: Final = 512
BINDS: Final = 0.85
MIN_GAIN: Final = 0.03
PAYS_WITHIN_S: Final = 600.0
MAX_COOL_DOWN_S: Final = 3_600.0
#: A suggestion must bring at least such a share.
MIN_SUGGESTED: Final = 0.01
_MAX_DOUBLINGS: Final = 16
#: So many conversions are remembered.
_REMEMBERED: Final = 16
_OTHER: Final = {Duty.PREFILL: Duty.DECODE, Duty.DECODE: Duty.PREFILL}


@record
class Suggestion:
    """What would serve `gain_rps` requests per second more: an instance more with `duty` in `cluster`; with `from_duty`
    one that has that duty now; with `link_to` a faster link from `cluster` to there."""

    cluster: str
    duty: Duty
    gain_rps: float
    from_duty: Duty | None = None
    link_to: str = ""

    def __str__(self) -> str:
        brings = f"+{self.gain_rps:.2f} requests/s"
        if self.link_to:
            return f"a link from {self.cluster} to {self.link_to} that limits nothing: {brings}"
        if self.from_duty is not None:
            return f"one {self.cluster} instance with duty {self.duty} instead of {self.from_duty}: {brings}"
        return f"one more {self.cluster} instance with duty {self.duty}: {brings}"


class Rebalancer:
    """Of one scheduler whose policy is `prfaas`. Its converter outlives it."""

    def __init__(
        self, fleet: Fleet, estimates: Estimates, loads: StageLoads, converter: Converter, cool_down_s: float
    ) -> None:
        self._fleet, self._estimates, self._converter = fleet, estimates, converter
        self.loads = loads
        self.cool_down_s = cool_down_s
        #: Doubled for each that came to nothing since the last that was done.
        self._num_failed = 0
        self._cools_until_s = -math.inf
        #: When loads are sampled next; None while nobody is there.
        self.next_due_s: float | None = None
        self._looks_s = -math.inf
        self.suggestions: tuple[Suggestion, ...] = ()
        #: Of the last look; None before the first that had enough to go by.
        self.capacity: Capacity | None = None
        #: The last ones, those under way too.
        self.conversions: deque[Conversion] = deque(maxlen=_REMEMBERED)

    def wake(self, now_s: float) -> None:
        """Somebody is there again."""
        if self.next_due_s is None:
            self.loads.look(now_s, was_empty=True)
            self.next_due_s = now_s + SAMPLE_EVERY_S

    def tick(self, now_s: float, *, is_empty: bool) -> Conversion | None:
        """Returns a conversion to begin. `is_empty`: nobody is there any more; when loads are gone too, nothing is
        sampled until `wake`."""
        if self.next_due_s is None or now_s < self.next_due_s:
            return None
        self.loads.look(now_s)
        # Without requests loads are still looked at until they are next to nothing: who reads them must see that.
        self.next_due_s = None if is_empty and self.loads.are_empty else now_s + SAMPLE_EVERY_S
        if is_empty:
            self.suggestions, self.capacity = (), None
        if now_s < self._looks_s or is_empty:
            return None
        self._looks_s = now_s + LOOK_EVERY_S
        return self._look(now_s)

    def ended(self, conversion: Conversion, now_s: float) -> None:
        """It is over, one way or another."""
        if conversion.phase is Phase.DONE:
            self._num_failed = 0
        elif conversion.phase in (Phase.REFUSED, Phase.TOO_SLOW):
            self._num_failed = min(self._num_failed + 1, _MAX_DOUBLINGS)
        cool_down_s = self.cool_down_s * (1 << self._num_failed)
        self._cools_until_s = now_s + max(self.cool_down_s, min(cool_down_s, MAX_COOL_DOWN_S))
        self.changed(now_s)

    def takes_over(self, other: Rebalancer) -> None:
        """What another one has done counts on."""
        self.conversions.extend(other.conversions)
        self._cools_until_s, self._num_failed = other._cools_until_s, other._num_failed

    def changed(self, now_s: float) -> None:
        """Instances have come, gone, or have other duties: loads are measured anew."""
        self.loads.forget(now_s)
        self.suggestions = ()

    # One look

    def _look(self, now_s: float) -> Conversion | None:
        if self._estimates.lengths.num_seen < MIN_SEEN_LENGTHS or now_s - self.loads.since_s < MIN_SEEN_S:
            return None
        binding = [(cluster, duty) for cluster, duty in self._stages() if self._binds(cluster, duty)]
        if not binding:
            self.suggestions, self.capacity = (), None
            return None
        counts = counts_now(self._fleet)
        now = self.capacity = self._capacity(counts, now_s)
        if not 0 < now.max_rps < math.inf:
            self.suggestions = ()
            return None
        found = sorted(self._suggested(counts, now, binding, now_s), key=lambda s: -s.gain_rps)
        self.suggestions = tuple(found)
        if self._converter.current is not None or now_s < self._cools_until_s:
            return None
        for suggestion in found:
            if suggestion.from_duty is not None and self._is_convertible(suggestion.cluster):
                return self._conversion(suggestion, counts, now, now_s)
        return None

    def _conversion(self, suggestion: Suggestion, counts: Counts, now: Capacity, now_s: float) -> Conversion | None:
        assert suggestion.from_duty is not None, "only another duty is a conversion"
        cluster, from_duty, to_duty = suggestion.cluster, suggestion.from_duty, suggestion.duty
        if suggestion.gain_rps < MIN_GAIN * now.max_rps:
            return None
        without = self._capacity(counts.plus(cluster, from_duty, -1), now_s)
        takes_s = self._drains_s(cluster, from_duty) + self._converter.switch_s
        lost = max(0.0, now.max_rps - without.max_rps) * takes_s
        if suggestion.gain_rps * PAYS_WITHIN_S <= lost:
            return None
        instance = self._least_to_drain(cluster, from_duty)
        load = self.loads.load(cluster, to_duty)
        why = f"{to_duty} in {cluster} is {load:.0%} loaded; {now.max_rps:.2f} requests/s could be served, and "
        why += f"{now.max_rps + suggestion.gain_rps:.2f} with it"
        return Conversion(instance.name, cluster, from_duty, to_duty, why, suggestion.gain_rps, now_s)

    def _least_to_drain(self, cluster: str, duty: Duty) -> Instance:
        members = self._of_duty(cluster, duty)
        return min(reversed(members), key=lambda i: (i.num_inflight + i.num_landings, len(i.work)))

    def _drains_s(self, cluster: str, duty: Duty) -> float:
        if duty is Duty.PREFILL:
            return 0.0
        return (self._estimates.cluster(cluster).step_s or 0.0) * self._estimates.output_tokens

    def _of_duty(self, cluster: str, duty: Duty) -> list[Instance]:
        if duty is Duty.PREFILL:
            return self._fleet.working_prefillers(cluster)
        return [i for i in self._fleet.working_decoders(cluster) if i.duty is Duty.DECODE]

    def _stages(self) -> Iterator[tuple[str, Duty]]:
        return ((stage.cluster, stage.duty) for stage in self.loads.all())

    def _binds(self, cluster: str, duty: Duty) -> bool:
        load = self.loads.load(cluster, duty)
        return load >= BINDS and load >= self.loads.load(cluster, _OTHER[duty])

    def _is_convertible(self, cluster: str) -> bool:
        return self._fleet.topology.cluster(cluster).is_convertible

    def _suggested(
        self, counts: Counts, now: Capacity, binding: list[tuple[str, Duty]], now_s: float
    ) -> Iterator[Suggestion]:
        for cluster, duty in binding:
            is_pd = self._fleet.topology.cluster(cluster).role is Role.PD
            other = _OTHER[duty]
            # The one that stays must be spared, whatever the model says of it.
            if is_pd and len(self._of_duty(cluster, other)) > 1 and len(self._of_duty(cluster, duty)) > 0:
                gain_rps = self._gain(counts.plus(cluster, other, -1).plus(cluster, duty), now, now_s)
                if gain_rps >= MIN_SUGGESTED * now.max_rps:
                    yield Suggestion(cluster, duty, gain_rps, other)
            gain_rps = self._gain(counts.plus(cluster, duty), now, now_s)
            if gain_rps >= MIN_SUGGESTED * now.max_rps:
                yield Suggestion(cluster, duty, gain_rps)
            pairs = () if is_pd else self._fleet.links_from(cluster)
            if not pairs:
                continue
            # Whichever of them limits nothing, nothing limits what all of them carry together.
            wider = capacity(self._fleet, self._estimates, counts, now_s, {pairs[0]: math.inf})
            gain_rps = wider.max_rps - now.max_rps
            if MIN_SUGGESTED * now.max_rps <= gain_rps < math.inf:
                for pair in pairs:
                    yield Suggestion(cluster, duty, gain_rps, link_to=pair[1])

    def _gain(self, counts: Counts, now: Capacity, now_s: float) -> float:
        gain_rps = self._capacity(counts, now_s).max_rps - now.max_rps
        return gain_rps if math.isfinite(gain_rps) else 0.0

    def _capacity(self, counts: Counts, now_s: float) -> Capacity:
        return capacity(self._fleet, self._estimates, counts, now_s)
