"""Whether a deployment keeps up with what comes, as far as one run can say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from prfaas.sim.outcomes import OK
from prfaas.sim.runs import Run

#: Requests that stay behind, as a share of those that come: more is a queue that grows, much more is one that explodes.
GROWS: Final = 0.02
EXPLODES: Final = 0.1
#: A deployment fills up for as long as a request stays in it; a run must be so many times as long to say more.
MIN_STAYS: Final = 8
#: Standard deviations: the number of requests inside goes up and down by its root without any queue that grows.
_SURE: Final = 3.0
#: A quarter of a run with so many times its share of requests is a burst.
_BURST: Final = 1.2
#: Of a run, to look for an earlier queue as long as the last one.
_NUM_BLOCKS: Final = 16


@dataclass(frozen=True, slots=True)
class Stability:
    """`name` as docs/simulation.md lists them. `num_enough`: so many requests would say more; None if that many came,
    or nobody knows."""

    name: str
    num_enough: int | None = None


def stability(run: Run, from_s: float, to_s: float, offered_rps: float, refused_share: float) -> Stability:
    """By how fast the number of requests inside grows from the second quarter to the last one. Who refuses has no queue
    that grows, and neither have clients that wait for their answers."""
    found = _of_queues(run, from_s, to_s, offered_rps)
    if refused_share > GROWS and found.name in ("stable", "too_short"):
        return Stability("refusing")
    return Stability("closed_loop") if run.is_closed else found


def stability_of(
    inside: Sequence[int], sample_s: float, stay_s: float | None, span_s: float, offered_rps: float
) -> str:
    """Of measured requests, by the simplest of these rules: `stable`, `backlogged` or `overloaded`, by how fast the
    number of requests `inside`, seen every `sample_s`, grows from the second quarter to the last one. `too_short`: the
    run cannot say, since requests stay for so long even without a queue (`stay_s`)."""
    quarter = len(inside) // 4
    if not quarter or stay_s is None or span_s < MIN_STAYS * stay_s:
        return "too_short"
    early, late = (sum(some) / quarter for some in (inside[quarter : 2 * quarter], inside[-quarter:]))
    come_between = offered_rps * 2 * quarter * sample_s
    share = (late - early) / come_between
    noise = _SURE * math.sqrt(max(1.0, early))
    if late - early > noise and share > GROWS:
        return "overloaded" if share > EXPLODES else "backlogged"
    return "stable" if GROWS * come_between > noise else "too_short"


def _of_queues(run: Run, from_s: float, to_s: float, offered_rps: float) -> Stability:
    kept = run.outcomes
    stays_s = sorted(map(kept.e2e_s, kept.that(kept.ended(), OK)))
    inside = [sample.num_inside for sample in run.samples if from_s <= sample.at_s <= to_s]
    quarter, span_s = len(inside) // 4, to_s - from_s
    if not quarter or not stays_s:
        return Stability("too_short")
    stay_s = stays_s[max(0, math.ceil(len(stays_s) * 0.01) - 1)]
    early, late = (sum(some) / quarter for some in (inside[quarter : 2 * quarter], inside[-quarter:]))
    come_between = offered_rps * 2 * quarter * run.sample_s
    noise = _SURE * math.sqrt(max(1.0, early))
    lacks = max(MIN_STAYS * stay_s / span_s, noise / (GROWS * come_between))
    too_short = Stability("too_short", _rounded_up(lacks * kept.num_ended) if lacks > 1 else None)
    if span_s < MIN_STAYS * stay_s:
        return too_short
    share = (late - early) / come_between
    if late - early > noise and share > GROWS and not _was_as_long(inside[: 3 * quarter], late):
        if _ends_in_a_burst(run, from_s, to_s, quarter * run.sample_s):
            # Whether it would have gone down again, a longer run says.
            return Stability("too_short", _rounded_up(2.0 * kept.num_ended))
        return Stability("overloaded" if share > EXPLODES else "backlogged")
    if lacks <= 1:
        return Stability("stable")
    # It began with nobody inside: what waits now has stayed behind since then, though it may grow no more.
    return Stability("backlogged") if late - offered_rps * stay_s > EXPLODES * kept.num_ended else too_short


def _was_as_long(before: Sequence[int], late: float) -> bool:
    """It has been, and has gone down since: bursts do so."""
    block = max(1, len(before) // _NUM_BLOCKS)
    blocks = (before[at : at + block] for at in range(0, len(before), block))
    return any(sum(some) / len(some) >= late for some in blocks)


def _ends_in_a_burst(run: Run, from_s: float, to_s: float, last_s: float) -> bool:
    arrived_s = [at_s for at_s in run.outcomes.arrived_s if from_s <= at_s <= to_s]
    usual = len(arrived_s) * last_s / (to_s - from_s)
    num_last = sum(at_s > to_s - last_s for at_s in arrived_s)
    return num_last > _BURST * usual + _SURE * math.sqrt(usual)


def _rounded_up(number: float) -> int:
    """To two digits."""
    whole = math.ceil(number)
    unit = int("1" + "0" * max(0, len(str(whole)) - 2))
    return -(-whole // unit) * unit
