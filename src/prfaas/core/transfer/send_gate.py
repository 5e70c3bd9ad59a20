"""Which lanes of a link are sending a chunk, how many may at once, and which have fallen behind. Pure.

Laws of this file:
- Where the processor is the limit and not the network (short links), more senders than cores only take turns at the
  cores' caches; `limit` holds lanes back. One that has been at its chunk for `QUICK_S` no longer counts: it waits for
  the network, and another may use the core.
- A lane that needs `SLOW_FACTOR` times what the others need for as many bytes, and `SLOW_S` at least, is *slow*. Its
  connection is given up, so that others send its chunk, and a new one is dialled, which may take another path. A link
  on which all lanes are slow has no slow lane.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

QUICK_S: Final = 0.05
#: Shorter delays are retransmissions and full queues, and lossy lanes differ ten-fold: both cost less than a new
#: connection.
SLOW_S: Final = 2.0
SLOW_FACTOR: Final = 20.0
#: What others needed longer ago says nothing about now.
RECENT_S: Final = 3.0


#: Names a chunk: the transfer's handle and the offset.
Key = tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Flight:
    """A chunk of `length` bytes that left on `lane` at `at_s`."""

    lane: int
    at_s: float
    length: int


class SendGate:
    """Lanes are named by number; callers serialize."""

    def __init__(self) -> None:
        self.limit: int | None = None
        #: lane -> when it began the chunk that it is handing to the kernel
        self._sending: dict[int, float] = {}
        self._flying: dict[Key, _Flight] = {}
        #: lane -> when it was last answered, and how many seconds a byte had taken
        self._answered: dict[int, tuple[float, float]] = {}

    def may_begin(self, now_s: float, before: Iterable[int] = ()) -> bool:
        """May one more lane begin a chunk? `before` are the lanes that go before it: where few may send it is always
        the same ones, whose windows and memory are warm."""
        if self.limit is None:
            return True
        quick = {lane for lane, at_s in self._sending.items() if now_s - at_s < QUICK_S}
        ahead = {lane for lane in before if lane not in self._sending or lane in quick}
        return len(quick | ahead) < self.limit

    def begun(self, lane: int, chunk: Key, length: int, now_s: float) -> None:
        """A lane begins to send a chunk."""
        self._sending[lane] = now_s
        self._flying[chunk] = _Flight(lane, now_s, length)

    def handed_over(self, lane: int) -> None:
        """The kernel has all of it."""
        self._sending.pop(lane, None)

    def answered(self, chunk: Key, now_s: float) -> None:
        """The peer has acknowledged or refused a chunk."""
        flight = self._flying.pop(chunk, None)
        if flight is not None and flight.length:
            self._answered[flight.lane] = (now_s, (now_s - flight.at_s) / flight.length)

    def over(self, handle: int) -> None:
        """The transfer has ended; its chunks may never be answered."""
        self._flying = {key: flight for key, flight in self._flying.items() if key[0] != handle}

    def lost(self, lane: int) -> None:
        """The lane's connection is gone."""
        self._sending.pop(lane, None)
        self._answered.pop(lane, None)
        self._flying = {key: flight for key, flight in self._flying.items() if flight.lane != lane}

    def slow(self, now_s: float) -> set[int]:
        """Lanes that have fallen behind the others."""
        return {flight.lane for flight in self._flying.values() if self._is_slow(flight, now_s)}

    def _is_slow(self, flight: _Flight, now_s: float) -> bool:
        recent = [
            s_per_byte
            for lane, (at_s, s_per_byte) in self._answered.items()
            if lane != flight.lane and now_s - at_s < RECENT_S
        ]
        if not recent or now_s - flight.at_s < SLOW_S:
            return False
        return now_s - flight.at_s > SLOW_FACTOR * statistics.median(recent) * flight.length
