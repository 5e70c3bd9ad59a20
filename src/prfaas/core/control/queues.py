"""Prompts that wait for an instance of a cluster to have room. What waits here can still go elsewhere.

Laws of this file:
- Lower `priority` first. Within one priority tenants share the instances' time fairly, by start-time fair queueing: a
  tenant's prompt is ranked by the work that its tenant has asked for since the queue was last empty, but by no less
  than what is being served now. So a tenant that comes rarely waits for one prompt of each other tenant at most, and of
  one tenant who comes first is served first.
- A queue's length in seconds is the sum of what its prompts are expected to take.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import Final, NamedTuple

#: Beyond so many, what those have had who do not wait is forgotten.
_MANY_TENANTS: Final = 1_024


class Rank(NamedTuple):
    """Least first. `start_s` is in seconds of work, of which each tenant has its own count."""

    priority: int
    start_s: float
    number: int


class Queue:
    """Of one cluster."""

    __slots__ = ("_asked_s", "_number", "_order", "_ranks", "_seconds", "_served_s", "_tenants", "waiting_s")

    def __init__(self) -> None:
        self._order: list[tuple[Rank, str]] = []
        self._ranks: dict[str, Rank] = {}
        self._seconds: dict[str, float] = {}
        #: By tenant: up to where it has asked.
        self._asked_s: dict[str, float] = {}
        self._tenants: dict[str, str] = {}
        self._served_s = 0.0
        self._number = 0
        self.waiting_s = 0.0

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[str]:
        return (request_id for _, request_id in self._order)

    @property
    def first(self) -> str | None:
        return self._order[0][1] if self._order else None

    def push(self, request_id: str, expected_s: float, *, priority: int = 0, tenant: str = "") -> None:
        assert request_id not in self._ranks, f"{request_id} waits here already"
        if not self._order:
            self._asked_s.clear()
            self._served_s = 0.0
        start_s = max(self._served_s, self._asked_s.get(tenant, 0.0))
        self._asked_s[tenant] = start_s + expected_s
        self._number += 1
        rank = self._ranks[request_id] = Rank(priority, start_s, self._number)
        insort(self._order, (rank, request_id))
        self._seconds[request_id] = expected_s
        self._tenants[request_id] = tenant
        if len(self._asked_s) > _MANY_TENANTS + 2 * len(self._order):
            waiting = set(self._tenants.values())
            self._asked_s = {name: asked_s for name, asked_s in self._asked_s.items() if name in waiting}
        self.waiting_s += expected_s

    def remove(self, request_id: str, *, is_served: bool = True) -> bool:
        """Idempotent: True if it was there. One that is not served costs its tenant nothing."""
        rank = self._ranks.pop(request_id, None)
        if rank is None:
            return False
        index = bisect_left(self._order, (rank, request_id))
        del self._order[index]
        expected_s, tenant = self._seconds.pop(request_id), self._tenants.pop(request_id)
        if is_served:
            self._served_s = max(self._served_s, rank.start_s)
        elif tenant in self._asked_s:
            self._asked_s[tenant] -= expected_s
        # Sums of floats drift; of nothing the sum is nothing.
        self.waiting_s = self.waiting_s - expected_s if self._order else 0.0
        return True

    def ahead(self) -> Iterator[tuple[str, float]]:
        """Each that waits, and the seconds of those before it."""
        sum_s = 0.0
        for _, request_id in self._order:
            yield request_id, sum_s
            sum_s += self._seconds[request_id]

    def ahead_of_s(self, priority: int, tenant: str) -> float:
        """Seconds of those before a prompt that would come now."""
        if not self._order:
            return 0.0
        rank = Rank(priority, max(self._served_s, self._asked_s.get(tenant, 0.0)), self._number + 1)
        if rank > self._order[-1][0]:
            return self.waiting_s
        return math.fsum(self._seconds[request_id] for other, request_id in self._order if other < rank)
