"""What of a link's chunks has arrived, by the receiver's own word, and how much may be on its way. Pure.

A socket, a proxy or a router takes bytes long before they arrive: what was handed over says nothing of the link, and
what is in such a buffer crosses before everything else, whether anybody still wants it or not.

Laws of this file:
- A chunk counts from its hand-over to its answer. Lanes are in order: an answer says that all before it on its lane has
  been read too, also what nobody wants any more.
- Bytes are *late* while one chunk that is wanted has been on its way for `PATIENCE_S` and two round trips.
- Late bytes show what the link carries: what arrived within the last second, or since it was idle last. It is what
  arrived within `SHORT_WINDOW_S` if that cannot be more than half as much: the link has just become slow.
- While bytes are late no more is on its way than arrives in `AHEAD_S` and two round trips. Then that grows again while
  it is used, until it limits nothing.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Final

from prfaas.core.link.lane_plan import MIN_CHUNK_BYTES

#: Three times what a chunk takes on its lane, so that ordinary ones are not late.
PATIENCE_S: Final = 0.25
#: So much stays on its way whatever happens: what is given up then blocks the link for so long.
AHEAD_S: Final = 0.25
#: Two chunks, so that one is on its way while the other is answered.
MIN_FLIGHT_BYTES: Final = 2 * MIN_CHUNK_BYTES
#: At every look that finds it used: six times as much after a second.
GROWS: Final = 1.2
#: More than any node hands over: no limit.
MAX_FLIGHT_BYTES: Final = 1 << 28
#: A rate is of so long, or of so long at least.
WINDOW_S: Final = 1.0
SHORT_WINDOW_S: Final = 0.3
#: Late bytes are news for so long: between two chunks that are late nothing may be.
REMEMBERED_S: Final = 1.0

#: Of what arrived when that was told last: whoever waits for news of a link hears of it at once.
TOLD_BELOW: Final = 0.5

#: Names a chunk: the transfer's handle and the offset.
Key = tuple[int, int]


@dataclass(slots=True)
class _Flight:
    key: Key
    length: int
    at_s: float
    is_wanted: bool = True


class Arrivals:
    """Of one link. Lanes are named by number; callers serialize. `look` is called about every 100 ms."""

    def __init__(self) -> None:
        self._lanes: dict[int, deque[_Flight]] = {}
        self._lane_of: dict[Key, int] = {}
        #: Of chunks that are on their way, those that nobody wants included.
        self.flight_bytes = 0
        self.unwanted_bytes = 0
        #: None: as many as the peer takes.
        self.limit_bytes: float | None = None
        self.is_late = False
        #: What arrives, while bytes are late or just were; else None.
        self.bytes_per_s: float | None = None
        self._late_s = -math.inf
        self._busy_since_s = self._last_s = 0.0
        self._arrived: deque[tuple[float, int]] = deque()
        self._most_bytes = 0

    @property
    def has_room(self) -> bool:
        """For one chunk more."""
        return self.limit_bytes is None or self.flight_bytes < self.limit_bytes

    def chunk_bytes(self, most_bytes: int) -> int:
        """How large chunks may be: small ones where few bytes may be on their way."""
        if self.limit_bytes is None:
            return most_bytes
        return min(most_bytes, max(MIN_CHUNK_BYTES, _power_of_two_within(self.limit_bytes / 4)))

    def begun(self, lane: int, key: Key, length: int, now_s: float) -> None:
        """A lane begins to hand a chunk over."""
        if not self.flight_bytes:
            self._busy_since_s = now_s
        self._lanes.setdefault(lane, deque()).append(_Flight(key, length, now_s))
        self._lane_of[key] = lane
        self.flight_bytes += length
        self._most_bytes = max(self._most_bytes, self.flight_bytes)

    def answered(self, key: Key, now_s: float) -> None:
        """The peer has read this chunk, and all before it on its lane."""
        lane = self._lane_of.get(key)
        if lane is None:
            return
        flights, is_there = self._lanes[lane], False
        while not is_there:
            flight = flights.popleft()
            is_there = flight.key == key
            self._arrived.append((now_s, flight.length))
            self._last_s = now_s
            self._off(flight)

    def discarded(self, handle: int, now_s: float) -> None:
        """The peer has read a chunk of a transfer that is over: the first of them that is on its way."""
        for flights in self._lanes.values():
            key = next((flight.key for flight in flights if flight.key[0] == handle), None)
            if key is not None:
                self.answered(key, now_s)
                return

    def over(self, handle: int) -> None:
        """The transfer has ended. What is on its way of it crosses all the same."""
        for flights in self._lanes.values():
            for flight in flights:
                if flight.key[0] == handle and flight.is_wanted:
                    flight.is_wanted = False
                    self.unwanted_bytes += flight.length

    def lost(self, lane: int) -> None:
        """The lane's connection is gone, and what was on its way over it."""
        for flight in self._lanes.pop(lane, ()):
            self._off(flight)

    def look(self, rtt_s: float, now_s: float) -> None:
        """Are bytes late, what arrives, and how much may be on its way?"""
        first_s = min((f.at_s for fs in self._lanes.values() for f in fs if f.is_wanted), default=now_s)
        waited_s = now_s - first_s
        self.is_late = waited_s > PATIENCE_S + 2 * rtt_s
        if self.is_late:
            self._late_s = now_s
        rate = self._rate(now_s)
        if now_s - self._late_s > REMEMBERED_S:
            self.bytes_per_s = None
        elif rate is not None:
            self.bytes_per_s = rate
        self._set_limit(rate, rtt_s)
        self._most_bytes = self.flight_bytes

    def _set_limit(self, rate: float | None, rtt_s: float) -> None:
        if self.is_late:
            if rate is not None:
                self.limit_bytes = max(MIN_FLIGHT_BYTES, rate * (AHEAD_S + 2 * rtt_s))
        elif self.limit_bytes is not None and self._most_bytes >= self.limit_bytes / 2:
            self.limit_bytes *= GROWS
        if self.limit_bytes is not None and self.limit_bytes >= MAX_FLIGHT_BYTES:
            self.limit_bytes = None

    def _rate(self, now_s: float) -> float | None:
        while self._arrived and now_s - self._arrived[0][0] > WINDOW_S:
            self._arrived.popleft()
        if not self.flight_bytes or now_s - self._busy_since_s < SHORT_WINDOW_S:
            return None
        rate, _ = self._within(WINDOW_S, now_s)
        short, most = self._within(SHORT_WINDOW_S, now_s)
        return short if most < rate / 2 else rate

    def _within(self, window_s: float, now_s: float) -> tuple[float, float]:
        """What arrived per second, and what it can have been at most: the next chunk is nearly there."""
        from_s = max(self._busy_since_s, now_s - window_s)
        arrived = [(at_s, length) for at_s, length in self._arrived if at_s >= from_s]
        next_bytes = min((fs[0].at_s, fs[0].length) for fs in self._lanes.values() if fs)[1]
        if not arrived:
            # Not nothing: the next chunk may be large. The longer it takes, the less it can be.
            most = next_bytes / (now_s - max(self._last_s, self._busy_since_s))
            return most, most
        until_s = now_s
        if len(arrived) > 2 and arrived[-1][0] - arrived[0][0] > window_s / 2:
            # From one arrival to another: else that of a part of a chunk would be missing.
            from_s, until_s = arrived[0][0], arrived[-1][0]
            arrived = arrived[1:]
        num_bytes = sum(length for _, length in arrived)
        most = (num_bytes + next_bytes) / (now_s - from_s)
        return min(most, num_bytes / (until_s - from_s)), most

    def _off(self, flight: _Flight) -> None:
        del self._lane_of[flight.key]
        self.flight_bytes -= flight.length
        if not flight.is_wanted:
            self.unwanted_bytes -= flight.length

    def check(self) -> None:
        """Invariants."""
        flights = [flight for fs in self._lanes.values() for flight in fs]
        assert self.flight_bytes == sum(flight.length for flight in flights), (self.flight_bytes, flights)
        unwanted = sum(flight.length for flight in flights if not flight.is_wanted)
        assert self.unwanted_bytes == unwanted, (self.unwanted_bytes, flights)


def _power_of_two_within(value: float) -> int:
    """The largest that is no more; 1 below 1."""
    return 1 << max(0, int(value).bit_length() - 1)
