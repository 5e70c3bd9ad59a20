"""How many bytes a link lets through, and whose turn it is. Pure: time is an argument, flows are any keys.

Laws of this file:
- Within any time t a link passes at most rate × t + burst bytes; after a rest the burst is the small one.
- Flows that always have something waiting pass equal numbers of bytes, but for one quantum, whoever came first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)

#: Credit of a link that had nothing to do: what two ticks of a timer let through.
REST_BURST_S: Final = 0.002
#: Credit of a link that is busy: whoever is woken late on a machine with other work catches up so much.
BUSY_BURST_S: Final = 0.05


class Bucket:
    """Credit in bytes. None for `bytes_per_s`: no limit."""

    def __init__(self, bytes_per_s: float | None, now_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self._credit = 0.0
        self._at_s = now_s

    def set_rate(self, bytes_per_s: float | None, now_s: float) -> None:
        """From now on; credit from before is cut to the new rate's."""
        self._refill(now_s)
        self.bytes_per_s = bytes_per_s
        self.rest(now_s)

    def rest(self, now_s: float) -> None:
        """There was nothing to pass: what was left unused is lost, but for the small burst."""
        self._refill(now_s)
        if self.bytes_per_s is not None:
            self._credit = min(self._credit, self.bytes_per_s * REST_BURST_S)

    def available(self, now_s: float) -> int | None:
        """Bytes that may pass now; None: any number."""
        if self.bytes_per_s is None:
            return None
        self._refill(now_s)
        return int(self._credit)

    def take(self, num_bytes: int) -> None:
        """They pass; at most what is available."""
        self._credit -= num_bytes

    def when(self, num_bytes: int) -> float:
        """Time at which so many bytes are available, as far as the bucket holds so many."""
        if self.bytes_per_s is None:
            return self._at_s
        wanted = min(float(num_bytes), self._most)
        return self._at_s + max(0.0, wanted - self._credit) / self.bytes_per_s

    def _refill(self, now_s: float) -> None:
        passed_s = max(0.0, now_s - self._at_s)
        self._at_s = max(self._at_s, now_s)
        if self.bytes_per_s is not None:
            self._credit = min(self._credit + passed_s * self.bytes_per_s, self._most)

    @property
    def _most(self) -> float:
        """At least one byte, or a very slow link would never pass any."""
        return max(1.0, (self.bytes_per_s or 0.0) * BUSY_BURST_S)


class Turns(Generic[K]):
    """Round robin over flows that have bytes waiting, a quantum each. A flow whose turn a lack of credit interrupts
    goes on with the rest of it. Paused flows are passed over."""

    def __init__(self) -> None:
        self._waiting: dict[K, int] = {}
        self._paused: set[K] = set()
        self._ring: deque[K] = deque()
        #: What the flow at the head of the ring may still take in this turn; 0: its turn begins.
        self._left = 0
        #: Bytes of flows that may pass now.
        self.ready_bytes = 0

    @property
    def num_ready(self) -> int:
        """Flows that have something waiting and are not paused."""
        return len(self._ring)

    def waiting(self, key: K) -> int:
        return self._waiting.get(key, 0)

    def add(self, key: K, num_bytes: int) -> None:
        """More is waiting."""
        before = self._waiting.get(key, 0)
        self._waiting[key] = before + num_bytes
        if key not in self._paused:
            self.ready_bytes += num_bytes
            if not before:
                self._ring.append(key)

    def pause(self, key: K) -> None:
        """Until `resume` it gets no turn."""
        if key not in self._paused:
            self._paused.add(key)
            self._leave(key)

    def resume(self, key: K) -> None:
        """At the end of the ring."""
        if key in self._paused:
            self._paused.discard(key)
            if count := self._waiting.get(key, 0):
                self.ready_bytes += count
                self._ring.append(key)

    def remove(self, key: K) -> None:
        """Forget a flow and what it has waiting."""
        if key not in self._paused:
            self._leave(key)
        self._paused.discard(key)
        self._waiting.pop(key, None)

    def serve(self, budget: int | None, quantum: int) -> dict[K, int]:
        """Who passes how many bytes, in the order of the first turns; together at most `budget`."""
        passed: dict[K, int] = {}
        left = self.ready_bytes if budget is None else min(budget, self.ready_bytes)
        while left > 0:
            key = self._ring[0]
            waiting = self._waiting[key]
            turn = min(self._left or quantum, waiting)
            count = min(turn, left)
            left -= count
            self.ready_bytes -= count
            self._waiting[key] = waiting - count
            passed[key] = passed.get(key, 0) + count
            self._left = (self._left or quantum) - count
            if count == waiting:
                self._ring.popleft()
                self._left = 0
            elif not self._left:
                self._ring.rotate(-1)
        return passed

    def _leave(self, key: K) -> None:
        count = self._waiting.get(key, 0)
        if not count:
            return
        self.ready_bytes -= count
        if self._ring[0] == key:
            self._left = 0
        self._ring.remove(key)
