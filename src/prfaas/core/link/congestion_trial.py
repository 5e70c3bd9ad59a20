"""Which congestion control suits a link: two share its lanes at first, and the one that moves more stays. Pure.

Laws of this file:
- Lanes take turns: the first, third and so on use the first algorithm, the others the second.
- Only time in which the link was the limit counts, and only lanes that were up throughout a look.
- After `TRIAL_S` of it the second wins if its lanes moved `CLEARLY` more each; else the first does. It is decided once:
  both see the same link at the same time, so nothing is learnt from trying again.
- No bytes are sent for it. A link that nobody loads is not tried, and needs no choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

#: Long enough for slow start to end and a few losses to happen at 80 ms.
TRIAL_S: Final = 3.0
#: Less is noise: BBR's lanes differ by a tenth among themselves.
CLEARLY: Final = 1.25


@dataclass(frozen=True, slots=True)
class LaneProgress:
    """One connection: what it uses, and the bytes that were acknowledged on it since it began."""

    algorithm: str
    bytes_acked: int


class CongestionTrial:
    """`algorithm_for` is asked for every new connection, `observe` is told after every look at the link."""

    def __init__(self, first: str, second: str) -> None:
        self.choice: str | None = None
        self._pair = first, second
        self._before: dict[int, LaneProgress] = {}
        self._moved = {first: 0.0, second: 0.0}
        self._seconds = 0.0

    def algorithm_for(self, lane_index: int) -> str:
        """Of a lane that is dialled now; lanes of a link count from 0."""
        return self.choice or self._pair[lane_index % 2]

    def observe(self, lanes: Mapping[int, LaneProgress], seconds: float, *, limited: bool) -> str | None:
        """`lanes` by connection; `seconds` since the last call; `limited`: the application had more to send all
        the time. Returns the choice at the moment it falls, otherwise None."""
        before, self._before = self._before, dict(lanes)
        if self.choice is not None or not limited:
            return None
        counts = dict.fromkeys(self._pair, 0)
        moved = dict.fromkeys(self._pair, 0)
        for connection, after in lanes.items():
            earlier = before.get(connection)
            if earlier is not None and after.algorithm in counts:
                counts[after.algorithm] += 1
                moved[after.algorithm] += after.bytes_acked - earlier.bytes_acked
        if not all(counts.values()):
            return None  # not both are at work: nothing to compare
        for algorithm in self._pair:
            self._moved[algorithm] += moved[algorithm] / counts[algorithm]
        self._seconds += seconds
        if self._seconds < TRIAL_S:
            return None
        first, second = self._pair
        self.choice = second if self._moved[second] > CLEARLY * self._moved[first] else first
        return self.choice
