"""How many sequences an instance decodes at once within an SLO, and how long a step of them takes."""

from __future__ import annotations

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


def decode_within(points: Sequence[DecodePoint], tpot_s: float | None) -> DecodePoint:
    """BS_max and T_decode: the largest batch whose step keeps `tpot_s`, on straight lines between measured points and
    never beyond the largest of them. Without an SLO, the measured point with the most tokens per second.

    Raises DecodeError if there are no points or even the smallest batch is too slow.
    """
    if not points:
        raise DecodeError("nothing is known of decoding")
    # Of a batch that was measured twice, the slower step.
    slowest = {point.batch: point for point in sorted(points, key=lambda point: point.step_s)}
    ordered = [slowest[batch] for batch in sorted(slowest)]
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
