"""What one instance has been given to prefill, and how long it will need for it.

Laws of this file:
- An engine prefills in the order in which it was given prompts. One that ends out of turn is taken out all the same.
- A prompt that is late by x seconds is expected to need x seconds more: the longer an engine is silent, the less is
  given to it.
- What is told of it now was so a round trip ago, as seen by who sends: what is sent now gets there half a round trip
  later, and what is heard now left there half a round trip before. So nobody is late before a round trip has passed.
"""

from __future__ import annotations

from collections.abc import Iterator

from prfaas.core.control.marks import Marks


class PrefillWork:
    """Of one instance, `rtt_s` away there and back; by request. Times are expected ones, in seconds."""

    __slots__ = ("_added_s", "_began_s", "_expected_s", "_sum_s", "marks", "rtt_s")

    def __init__(self, rtt_s: float = 0.0) -> None:
        self.rtt_s = rtt_s
        #: Of the instance's cluster: every change leaves one.
        self.marks = Marks()
        self._expected_s: dict[str, float] = {}
        self._added_s: dict[str, float] = {}
        self._sum_s = 0.0
        #: When the first prompt's turn came.
        self._began_s = 0.0

    def __len__(self) -> int:
        return len(self._expected_s)

    def __iter__(self) -> Iterator[str]:
        return iter(self._expected_s)

    @property
    def first_done_s(self) -> float | None:
        """When the first prompt should be done, on the clock; None without any."""
        for expected_s in self._expected_s.values():
            return self._began_s + expected_s
        return None

    @property
    def behind_first_s(self) -> float:
        """What all prompts but the first will take."""
        for expected_s in self._expected_s.values():
            return max(0.0, self._sum_s - expected_s)
        return 0.0

    def add(self, request_id: str, expected_s: float, now_s: float) -> None:
        assert request_id not in self._expected_s, f"{request_id} is prefilled here already"
        if not self._expected_s:
            self._began_s = now_s
        self._expected_s[request_id] = expected_s
        self._added_s[request_id] = now_s
        self._sum_s += expected_s
        self.marks.new_work.add(self)

    def begins(self, request_id: str, now_s: float) -> None:
        """The engine gets it now. Nothing, unless its turn has come."""
        if next(iter(self._expected_s), None) == request_id:
            self._began_s = now_s
            self.marks.new_work.add(self)

    def remove(self, request_id: str, now_s: float) -> float | None:
        """It has ended, as is told now. Returns how long it took since its turn came; None if others were before it.
        Idempotent."""
        expected_s = self._expected_s.get(request_id)
        if expected_s is None:
            return None
        was_first = next(iter(self._expected_s)) == request_id
        del self._expected_s[request_id], self._added_s[request_id]
        self.marks.new_work.add(self)
        # Sums of floats drift; of nothing the sum is nothing.
        self._sum_s = self._sum_s - expected_s if self._expected_s else 0.0
        if not was_first:
            return None
        ended_s, began_s = now_s - self.rtt_s, self._began_s
        # The next one may have been sent when this one was done already.
        self._began_s = max(ended_s, next(iter(self._added_s.values()), ended_s))
        return ended_s - began_s

    def remaining_s(self, now_s: float) -> float:
        """Until everything is done that was given to it, from when something that is sent now is there."""
        if not self._expected_s:
            return 0.0
        first_s = next(iter(self._expected_s.values()))
        first_left_s = abs(self._began_s + first_s - (now_s - self.rtt_s))
        return max(0.0, max(0.0, self._sum_s - first_s) + first_left_s - self.rtt_s)
