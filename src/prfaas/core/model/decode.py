"""How many sequences an instance decodes at once within an SLO, and how long a step of them takes."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from prfaas.core.errors import PrfaasError

#: Of a sequence; so much is lost in subtracting floats.
_ROUNDING: Final = 1e-9


class DecodeError(PrfaasError):
    """No batch keeps the SLO; the text says what the fastest measured one takes."""


@dataclass(frozen=True, slots=True)
class DecodePoint:
    """One decode step with `batch` sequences takes `step_s` seconds."""

    batch: int
    step_s: float

    def rps(self, mean_output_tokens: float) -> float:
        """Requests per second that one instance finishes: BS / (T_decode · L_out), a factor of Eq. 5."""
        return self.batch / (self.step_s * mean_output_tokens)


class StepTimes:
    """Seconds of a step by the size of its batch: straight lines between measured points, and no less than the smallest
    measured below them, nor more than the largest above. Of one point: always that."""

    def __init__(self, points: Sequence[DecodePoint]) -> None:
        self._points = _ordered(points)
        self._batches = [point.batch for point in self._points]

    def at(self, batch: int) -> float:
        """`batch` may be 0: what a step of one would take."""
        index = bisect_left(self._batches, batch)
        if index == 0 or index == len(self._points):
            return self._points[min(index, len(self._points) - 1)].step_s
        low, high = self._points[index - 1], self._points[index]
        return low.step_s + (high.step_s - low.step_s) * (batch - low.batch) / (high.batch - low.batch)


def _ordered(points: Sequence[DecodePoint]) -> list[DecodePoint]:
    """By batch; of one that was measured twice, the slower step. Raises DecodeError without points."""
    if not points:
        raise DecodeError("nothing is known of decoding")
    slowest = {point.batch: point for point in sorted(points, key=lambda point: point.step_s)}
    return [slowest[batch] for batch in sorted(slowest)]


def decode_within(points: Sequence[DecodePoint], tpot_s: float | None) -> DecodePoint:
    """BS_max and T_decode: the largest batch whose step keeps `tpot_s`, on straight lines between measured points and
    never beyond the largest of them. Without an SLO, the measured point with the most tokens per second.

    Raises DecodeError if there are no points or even the smallest batch is too slow.
    """
    ordered = _ordered(points)
    if tpot_s is None:
        return max(ordered, key=lambda point: point.batch / point.step_s)
    if ordered[0].step_s > tpot_s:
        first = ordered[0]
        raise DecodeError(
            f"a step of {first.batch} sequences takes {first.step_s * 1e3:.4g} ms,"
            f" longer than slo.tpot of {tpot_s * 1e3:.4g} ms"
        )
    # From the largest batch down: measured steps may fall between two batches.
    for low, high in reversed([*pairwise(ordered)]):
        if high.step_s <= tpot_s:
            return high
        if low.step_s <= tpot_s:
            slope = (high.step_s - low.step_s) / (high.batch - low.batch)
            more = int((tpot_s - low.step_s) / slope + _ROUNDING)
            return DecodePoint(low.batch + more, low.step_s + slope * more)
    return ordered[0]
