"""Instances that answer their probes and fail their work: taken out for some seconds, then tried with one request.

Laws of this file:
- `MAX_FAILURES` failures in a row take an instance out. So does being `TOO_SLOW` times as slow as the median of its
  cluster, for one that prefills.
- It is out for `OUT_S`, twice as long after each trial that failed, and never longer than `MAX_OUT_S`: an instance that
  is well again is used again within ten seconds.
- Then the next request that is bound to it is its trial: nothing else is bound until that one has ended, well or not,
  or has been given up. One that went well brings it back.
- Whoever was back for less than `CALM_S` begins where it left off: what fails again and again is not tried every
  second.
- Of those that decode in a cluster at most half are out; of those that prefill for others all may be, since a decode
  instance computes what none of them does.
- Failures that say nothing of an instance do not count: see `blames`.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from prfaas.core.control.fallback import FallbackReason
from prfaas.core.control.fleet import Fleet
from prfaas.core.control.instance import Instance
from prfaas.core.portable_math import exp2

MAX_FAILURES: Final = 5
OUT_S: Final = 1.0
MAX_OUT_S: Final = 8.0
CALM_S: Final = 60.0
TOO_SLOW: Final = 3.0
#: So many prefills must have been seen, and of so many others of its cluster.
_MIN_SEEN: Final = 4
_MIN_OTHERS: Final = 2
_MAX_DOUBLINGS: Final = 16
#: A prefill counts half as much when four others have ended after it.
_KEEPS: Final = exp2(-0.25)

_BLAMES: Final = frozenset(
    {FallbackReason.PREFILL_UNREACHABLE, FallbackReason.PREFILL_HTTP_ERROR, FallbackReason.PREFILL_FAILED,
     FallbackReason.DECODE_UNREACHABLE, FallbackReason.DECODE_ERROR, FallbackReason.RESERVE_ERROR,
     FallbackReason.NODE_UNREACHABLE}
)  # fmt: skip


def blames(reason: FallbackReason) -> bool:
    """Whether a failure speaks against the instance where it happened: not if it may be the link, or a full arena."""
    return reason in _BLAMES


class Use(StrEnum):
    """Of one instance. `ON_TRIAL`: the next request shows whether it works."""

    IN = "in"
    OUT = "out"
    ON_TRIAL = "on_trial"


@dataclass(slots=True)
class Record:
    """Of one instance. `trial` is the request by which it is tried."""

    use: Use = Use.IN
    num_failures: int = 0
    num_times_out: int = 0
    until_s: float = 0.0
    back_s: float = 0.0
    trial: str = ""
    why: str = ""
    num_prefills: int = 0
    ratio_sum: float = 0.0
    weight: float = 0.0

    @property
    def slowness(self) -> float:
        """Prefill times seen over expected ones."""
        return self.ratio_sum / self.weight if self.weight else 1.0


class Health:
    """Of one scheduler. `changed` are instances that are out, or back, since it was last read."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.records: dict[Instance, Record] = {}
        self._out: dict[Instance, None] = {}
        self.changed: list[Instance] = []

    @property
    def next_due_s(self) -> float | None:
        """When the next one may be tried."""
        if not self._out:
            return None
        return min(self.records[instance].until_s for instance in self._out)

    def tick(self, now_s: float) -> None:
        """Those whose time is over may be tried."""
        for instance in [i for i in self._out if self.records[i].until_s <= now_s]:
            record = self.records[instance]
            record.use = Use.ON_TRIAL
            self._is_out(instance, False)

    def bound(self, instance: Instance, request_id: str) -> None:
        """A request has been given to it. If it is on trial, it gets no other."""
        record = self.records.get(instance)
        if record is not None and record.use is Use.ON_TRIAL and not record.trial:
            record.trial = request_id
            instance.is_out = True

    def worked(self, instance: Instance, request_id: str, now_s: float) -> None:
        """It has done what it was asked."""
        record = self.records.get(instance)
        if record is None:
            return
        record.num_failures = 0
        if record.trial == request_id or (record.use is Use.ON_TRIAL and not record.trial):
            record.use, record.trial, record.back_s, record.why = Use.IN, "", now_s, ""
            self._is_out(instance, False)

    def failed(self, instance: Instance, request_id: str, reason: FallbackReason, now_s: float) -> None:
        """It has not, and is to blame."""
        if not self._is_here(instance):
            return
        record = self._record(instance)
        record.num_failures += 1
        if record.use is Use.ON_TRIAL and record.trial in ("", request_id):
            self._put_out(instance, record, f"{reason} when it was tried", now_s)
        elif record.use is Use.IN and record.num_failures >= MAX_FAILURES and self._may_be_out(instance):
            self._put_out(instance, record, f"{record.num_failures} failures in a row, the last {reason}", now_s)

    def given_up(self, instance: Instance, request_id: str) -> None:
        """The request is gone without a word about the instance: the next one is the trial."""
        record = self.records.get(instance)
        if record is not None and record.trial == request_id:
            record.trial = ""
            instance.is_out = False

    def took(self, instance: Instance, ratio: float, now_s: float) -> None:
        """A prefill took `ratio` times what was expected of any instance of its cluster."""
        if not self._is_here(instance):
            return
        record = self._record(instance)
        # Who is as fast as expected needs no comparison.
        usual = self._usual(instance) if max(ratio, record.slowness) > 1.0 else None
        if record.use is Use.ON_TRIAL and usual is not None and ratio > TOO_SLOW * usual:
            self._put_out(instance, record, f"still {ratio / usual:.1f} times as slow as others", now_s)
        if record.use is not Use.IN:
            return
        record.num_prefills += 1
        record.ratio_sum, record.weight = record.ratio_sum * _KEEPS + ratio, record.weight * _KEEPS + 1.0
        if usual is None or record.num_prefills < _MIN_SEEN or record.slowness <= TOO_SLOW * usual:
            return
        if self._may_be_out(instance):
            slower = record.slowness / usual
            record.num_prefills, record.ratio_sum, record.weight = 0, 0.0, 0.0
            self._put_out(instance, record, f"{slower:.1f} times as slow as others of its cluster", now_s)

    def _record(self, instance: Instance) -> Record:
        record = self.records.get(instance)
        if record is None:
            record = self.records[instance] = Record()
        return record

    def _usual(self, instance: Instance) -> float | None:
        """The median slowness of others of its cluster; None if too few are known."""
        peers = (peer for peer in self._fleet.standing(instance.cluster).everyone if peer is not instance)
        known = (self.records[peer] for peer in peers if peer in self.records)
        others = [record.slowness for record in known if record.num_prefills >= _MIN_SEEN]
        return statistics.median(others) if len(others) >= _MIN_OTHERS else None

    def forget_gone(self) -> None:
        """Of instances that have left or moved nothing is kept."""
        present = set(self._fleet.instances.values())
        self.records = {instance: record for instance, record in self.records.items() if instance in present}
        self._out = {instance: None for instance in self._out if instance in present}

    def restarted(self, instance: Instance) -> None:
        """Its engine begins another life: what failed before says nothing."""
        record = self.records.pop(instance, None)
        if record is not None and record.use is not Use.IN:
            self._is_out(instance, False)

    def _put_out(self, instance: Instance, record: Record, why: str, now_s: float) -> None:
        if record.use is Use.IN and now_s - record.back_s > CALM_S:
            record.num_times_out = 0
        out_s = min(OUT_S * (1 << min(record.num_times_out, _MAX_DOUBLINGS)), MAX_OUT_S)
        record.num_times_out += 1
        record.use, record.until_s, record.trial, record.why = Use.OUT, now_s + out_s, "", why
        self._is_out(instance, True)

    def _is_out(self, instance: Instance, is_out: bool) -> None:
        if is_out:
            self._out[instance] = None
        else:
            self._out.pop(instance, None)
        instance.is_out = is_out
        self.changed.append(instance)

    def _may_be_out(self, instance: Instance) -> bool:
        if not instance.duty.decodes:
            return True
        others = [i for i in self._fleet.decoders if i.cluster == instance.cluster and i is not instance]
        num_out = sum(1 for other in others if self._use(other) is not Use.IN)
        num_in = sum(1 for other in others if self._use(other) is Use.IN and other.may_decode)
        return num_out + 1 <= num_in

    def _use(self, instance: Instance) -> Use:
        record = self.records.get(instance)
        return Use.IN if record is None else record.use

    def _is_here(self, instance: Instance) -> bool:
        """What is still under way at one that has left or moved says nothing of who has its name now."""
        return self._fleet.instances.get(instance.name) is instance

    def out(self) -> list[tuple[str, Record]]:
        """Those that get no work, or are on trial, by name."""
        return [(instance.name, record) for instance, record in self.records.items() if record.use is not Use.IN]

    def check(self) -> None:
        """Invariants."""
        for instance in self._fleet.instances.values():
            record = self.records.get(instance, Record())
            is_tried = record.use is Use.ON_TRIAL and bool(record.trial)
            expected = record.use is Use.OUT or is_tried
            assert instance.is_out == expected, f"{instance.name} is out: {instance.is_out}, {record}"
            assert (record.use is Use.OUT) == (instance in self._out), f"{instance.name}: {record}"
