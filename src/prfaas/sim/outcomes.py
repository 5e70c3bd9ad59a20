"""What a run keeps of every request that has ended: forty bytes, so that runs of millions fit into memory.

Laws of this file:
- Requests are numbered from 1, in the order in which they came. What is kept of one stands at its number less one.
- Nothing is rounded: sums and percentiles are those of the requests themselves.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from typing import Final

from prfaas.core.control.route import RouteKind
from prfaas.sim.simulation import Life

#: How a request ended, in one byte; nothing, if it has not.
OK: Final = 1
UNAVAILABLE: Final = 2
FAILED: Final = 3
_ENDS: Final = {"ok": OK, "unavailable": UNAVAILABLE}


class Outcomes:
    """Of one run. All sequences are by place: a request's number less one."""

    def __init__(self) -> None:
        self.num_ended = 0
        self.ends = bytearray()
        self.is_remote = bytearray()
        self.fell_back = bytearray()
        self.arrived_s = array("d")
        #: Not a number where no answer began.
        self.began_s = array("d")
        #: 0.0 where nobody knows.
        self.ended_s = array("d")
        self.input_tokens = array("I")
        self.computed_tokens = array("I")
        self.output_tokens = array("I")

    def take(self, life: Life) -> None:
        """It has ended."""
        place = life.number - 1
        missing = place + 1 - len(self.ends)
        if missing > 0:
            self._grow(missing)
        arrival = life.arrival
        self.num_ended += 1
        self.ends[place] = _ENDS.get(life.outcome, FAILED)
        self.is_remote[place] = life.route == RouteKind.REMOTE
        self.fell_back[place] = bool(life.fallback)
        self.arrived_s[place] = arrival.at_s
        self.began_s[place] = math.nan if life.began_s is None else life.began_s
        self.ended_s[place] = life.ended_s or 0.0
        self.input_tokens[place] = arrival.num_tokens
        self.computed_tokens[place] = life.num_computed_tokens
        self.output_tokens[place] = arrival.num_output_tokens

    def _grow(self, num: int) -> None:
        for flags in (self.ends, self.is_remote, self.fell_back):
            flags.extend(bytes(num))
        for times in (self.arrived_s, self.began_s, self.ended_s):
            times.frombytes(bytes(num * times.itemsize))
        for counts in (self.input_tokens, self.computed_tokens, self.output_tokens):
            counts.frombytes(bytes(num * counts.itemsize))

    def ended(self) -> Sequence[int]:
        """Places of all that have."""
        if self.num_ended == len(self.ends):
            return range(self.num_ended)
        return [place for place, end in enumerate(self.ends) if end]

    def that(self, places: Sequence[int], end: int) -> Sequence[int]:
        """Those of some places that ended so."""
        return array("Q", (place for place in places if self.ends[place] == end))

    def ttft_s(self, place: int) -> float:
        """Of an answered one: from when it came to its first token."""
        return self.began_s[place] - self.arrived_s[place]

    def e2e_s(self, place: int) -> float:
        """From when it came to when it ended."""
        return self.ended_s[place] - self.arrived_s[place]

    def tpot_s(self, place: int) -> float | None:
        """Seconds for each token after the first; None for an answer of one token, or for none."""
        began_s, num_tokens = self.began_s[place], self.output_tokens[place]
        if math.isnan(began_s) or not self.ended_s[place] or num_tokens < 2:
            return None
        return (self.ended_s[place] - began_s) / (num_tokens - 1)

    def throughput_rps(self, from_s: float, to_s: float) -> float:
        """Requests answered in that time, per second."""
        num = sum(1 for end, at_s in zip(self.ends, self.ended_s, strict=True) if end == OK and from_s < at_s <= to_s)
        return num / (to_s - from_s)
