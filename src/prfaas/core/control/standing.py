"""What is asked about the instances of one cluster with every prompt, kept until one of them changes: who works, how
much they have to do, whose batch has a place.

Laws of this file:
- Instances leave marks of what has changed; with the next question those that did are asked again, and no others.
- Beyond that a question takes the time of a sum or a minimum over numbers that are kept, or none if nothing has
  changed; one about work asks every busy instance only while one of them is late.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

from prfaas.core.control.instance import Instance
from prfaas.core.control.marks import Marks
from prfaas.core.control.prefill_work import PrefillWork

#: Of an engine of whose batch nothing is known.
USUAL_BATCH: Final = 64


class Backlog(NamedTuple):
    """Of all that prefill for others: how many they are, seconds until the first of them is done with everything, and
    the sum over all. `soonest_s` is inf without any."""

    num: int
    soonest_s: float
    sum_s: float


class Standing:
    """Of one cluster, whose instances are given in file order."""

    def __init__(self, prefillers: Sequence[Instance] = (), decoders: Sequence[Instance] = ()) -> None:
        self._prefillers, self._decoders = tuple(prefillers), tuple(decoders)
        self.marks = Marks()
        self._working_prefillers: list[Instance] = []
        self._working_decoders: list[Instance] = []
        self._ready: list[Instance] = []
        self._cut_off = False
        self._all_only_decode = True
        self._decoder_block_sizes: frozenset[int] = frozenset()
        self._block_sizes: frozenset[int] = frozenset()
        self._works: dict[object, PrefillWork] = {}
        #: Of those with prompts, on the clock: when the first one should be done, and when all of them.
        self._first_s: dict[PrefillWork, float] = {}
        self._end_s: dict[PrefillWork, float] = {}
        self._first_late_s = self._soonest_end_s = math.inf
        self._sum_end_s = 0.0
        self._backlog, self._backlog_at_s = Backlog(0, math.inf, 0.0), math.nan
        self._places: dict[object, int] = {}
        #: Of all that decode, by their place; and how much they are to be preferred, of those that are ready.
        self._in_flights: list[int] = []
        self._ranks: dict[int, tuple[int, float, int]] = {}
        self._in_flight = 0
        self._max_batch: int | None = None
        self._landing: Instance | None = None

    # Who

    @property
    def everyone(self) -> tuple[Instance, ...]:
        """Those that do not work too."""
        return (*self._prefillers, *self._decoders)

    @property
    def prefillers(self) -> list[Instance]:
        """Those that prefill for others, and work."""
        if self.marks.has_new_members:
            self._look()
        return self._working_prefillers

    @property
    def decoders(self) -> list[Instance]:
        """Those that decode, and work."""
        if self.marks.has_new_members:
            self._look()
        return self._working_decoders

    @property
    def ready(self) -> list[Instance]:
        """Working ones that decode, with a node that works."""
        if self.marks.has_new_members:
            self._look()
        return self._ready

    @property
    def some_are_cut_off(self) -> bool:
        """Whether some working prefiller has no lane to somebody."""
        if self.marks.has_new_members:
            self._look()
        return self._cut_off

    @property
    def all_only_decode(self) -> bool:
        """Whether none that decodes prefills too."""
        if self.marks.has_new_members:
            self._look()
        return self._all_only_decode

    @property
    def decoder_block_sizes(self) -> frozenset[int]:
        """In tokens, of those that decode."""
        if self.marks.has_new_members:
            self._look()
        return self._decoder_block_sizes

    @property
    def block_sizes(self) -> frozenset[int]:
        """Of all."""
        if self.marks.has_new_members:
            self._look()
        return self._block_sizes

    def _look(self) -> None:
        self._working_prefillers = [i for i in self._prefillers if i.may_prefill_for_others]
        self._working_decoders = [i for i in self._decoders if i.may_decode]
        self._ready = [i for i in self._working_decoders if i.node_ready]
        self._cut_off = any(i.cut_off_from for i in self._working_prefillers)
        self._all_only_decode = not any(i.duty.prefills for i in self._working_decoders)
        self._decoder_block_sizes = frozenset(i.block_tokens for i in self._decoders if i.block_tokens)
        others = (i.block_tokens for i in self._prefillers if i.block_tokens)
        self._block_sizes = self._decoder_block_sizes.union(others)
        self.marks.has_new_members = False
        self._works = {i.work: i.work for i in self._working_prefillers}
        self._first_s, self._end_s, self._backlog_at_s = {}, {}, math.nan
        self.marks.new_work = set(self._works)
        self._places = {instance: place for place, instance in enumerate(self._working_decoders)}
        self._rank_all()

    # What they have to do

    def backlog(self, now_s: float) -> Backlog:
        """What the prefillers have to do."""
        if self.marks.has_new_members:
            self._look()
        if self.marks.new_work:
            self._take_stock()
        elif now_s == self._backlog_at_s:
            return self._backlog
        self._backlog_at_s = now_s
        num, num_busy = len(self._working_prefillers), len(self._first_s)
        if now_s <= self._first_late_s:
            soonest_s = self._soonest_end_s - now_s if num_busy == num else 0.0
            sum_s = self._sum_end_s - num_busy * now_s
        else:
            # Who is late by some seconds is expected to need as many more.
            left_s = [self._end_s[work] - first_s + abs(first_s - now_s) for work, first_s in self._first_s.items()]
            soonest_s = min(left_s, default=math.inf) if num_busy == num else 0.0
            sum_s = math.fsum(left_s)
        self._backlog = Backlog(num, soonest_s if num else math.inf, max(0.0, sum_s))
        return self._backlog

    def next_done_s(self, now_s: float, ahead_s: float) -> float | None:
        """When the first of those that are not late comes within `ahead_s` of being done with everything; None if none
        will, since all are late or have nothing to do."""
        self.backlog(now_s)
        at_s = (self._end_s[work] - ahead_s for work, first_s in self._first_s.items() if now_s <= first_s)
        return min((s for s in at_s if s > now_s), default=None)

    def _take_stock(self) -> None:
        for mark in self.marks.new_work:
            work = self._works.get(mark)
            if work is None:
                continue  # of one that prefills for nobody else, or does not work
            first_s = work.first_done_s
            if first_s is None:
                self._first_s.pop(work, None)
                self._end_s.pop(work, None)
            else:
                self._first_s[work], self._end_s[work] = first_s, first_s + work.behind_first_s
        self.marks.new_work.clear()
        self._first_late_s = min(self._first_s.values(), default=math.inf)
        self._soonest_end_s = min(self._end_s.values(), default=math.inf)
        self._sum_end_s = math.fsum(self._end_s.values())

    # Whose batch has a place

    def in_flight(self) -> int:
        """Requests at all that decode."""
        if self.marks.has_new_members or self.marks.new_load:
            self._count()
        return self._in_flight

    def landing(self, max_batch: int | None) -> Instance | None:
        """Where a prompt of which nobody holds anything lands first; None if no node is ready."""
        if max_batch != self._max_batch:
            self._max_batch = max_batch
            self._rank_all()
        if self.marks.has_new_members or self.marks.new_load:
            self._count()
        return self._landing

    def _rank_all(self) -> None:
        self._in_flights, self._ranks = [0] * len(self._places), {}
        self._in_flight, self._landing = 0, None
        self.marks.new_load = set(self._places)

    def _count(self) -> None:
        if self.marks.has_new_members:
            self._look()
        for mark in self.marks.new_load:
            place = self._places.get(mark)
            if place is None:
                continue  # of one that does not decode, or does not work
            instance = self._working_decoders[place]
            self._in_flights[place] = instance.num_inflight
            if instance.node_ready:
                # Of equal ones the first is taken.
                self._ranks[place] = (*landing_rank(instance, self._max_batch), place)
        self.marks.new_load.clear()
        self._in_flight = sum(self._in_flights)
        best = min(self._ranks.values(), default=None)
        self._landing = None if best is None else self._working_decoders[best[2]]


def landing_rank(instance: Instance, max_batch: int | None, known_share: float = 0.0) -> tuple[int, float]:
    """Best first: with a place in its batch, then by how full that is, less the share of the prompt that it knows. So
    who knows all of a prompt gets it while others are not emptier by a whole batch, and a beginning that all prompts
    share draws nobody to whoever happened to be first."""
    load = instance.num_requests or instance.num_inflight
    if max_batch is None:
        return 0, load / USUAL_BATCH - known_share
    return max(0, instance.num_inflight + 1 - max_batch), load / max_batch - known_share
