"""How many sequences an instance decodes at once within an SLO, and how long a step of them takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from prfaas.core.errors import PrfaasError


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
    ordered = sorted(points, key=lambda point: point.batch)
    if not ordered:
        raise DecodeError("nothing is known of decoding")
    if tpot_s is None:
        return max(ordered, key=lambda point: point.batch / point.step_s)
    if ordered[0].step_s > tpot_s:
        first = ordered[0]
        raise DecodeError(
            f"a step of {first.batch} sequences takes {first.step_s * 1e3:.4g} ms,"
            f" longer than slo.tpot of {tpot_s * 1e3:.4g} ms"
        )
    best = ordered[0]
    for low, high in pairwise(ordered):
        if high.step_s <= tpot_s:
            best = high
            continue
        slope = (high.step_s - low.step_s) / (high.batch - low.batch)
        batch = low.batch + int((tpot_s - low.step_s) / slope)
        return max(best, DecodePoint(batch, low.step_s + slope * (batch - low.batch)), key=lambda point: point.batch)
    return best
