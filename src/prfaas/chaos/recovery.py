"""When all is as it was before. Pure.

Requests come as before, so by Little's law answers take as long as before, and as many are completed, when as many are
in flight as before. So that is what is looked at, and that everybody works.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from prfaas.bench.e2e.results import inside
from prfaas.bench.e2e.sent import Sent

SAMPLE_S: Final = 0.1
#: So long it must have been well, so that a moment between two troubles is none.
STEADY_S: Final = 1.0
#: What chance adds to the most that were in flight, before enough requests have come to know it.
SPARE: Final = 3


def most_in_flight(sent: Sequence[Sent], from_s: float, to_s: float) -> int:
    """At any sample between two times."""
    return max(inside(sent, _times(from_s, to_s)), default=0)


def recovered_s(sent: Sequence[Sent], ready_s: float | None, end_s: float, now_s: float, before: int) -> float | None:
    """When, from `end_s` on, everybody worked (`ready_s`) and no more than `before` and the spare were in flight, for
    STEADY_S; None: not yet."""
    if ready_s is None:
        return None
    since_s: float | None = None
    times_s = _times(max(end_s, ready_s), now_s)
    for at_s, number in zip(times_s, inside(sent, times_s), strict=True):
        if number > before + SPARE:
            since_s = None
        elif since_s is None:
            since_s = at_s
        if since_s is not None and at_s - since_s >= STEADY_S:
            return since_s
    return None


def _times(from_s: float, to_s: float) -> list[float]:
    return [from_s + number * SAMPLE_S for number in range(max(0, int((to_s - from_s) / SAMPLE_S) + 1))]
