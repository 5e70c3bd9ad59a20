"""How far a run is, on standard error: a line that renews itself on a terminal, else one now and then."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Final

from prfaas.bench.e2e.plan import Plan

_TERMINAL_EVERY_S: Final = 0.5
_FILE_EVERY_S: Final = 30.0


def words(plan: Plan, duration_s: float | None, now_s: float, num_sent: int, num_over: int) -> str:
    """Requests, and an estimate of the time left."""
    num = len(plan.requests) or (plan.talks.num_requests if plan.talks is not None else None)
    of = "" if num is None else f" of {num}"
    left_s = _left_s(plan, duration_s, now_s, num_over)
    left = "" if left_s is None else f", about {left_s:.0f} s left"
    return f"{num_sent}{of} requests sent, {num_sent - num_over} under way{left}"


def _left_s(plan: Plan, duration_s: float | None, now_s: float, num_over: int) -> float | None:
    if plan.talks is None:
        return max(0.0, plan.requests[-1].at_s - now_s)
    found = [] if duration_s is None else [max(0.0, duration_s - now_s)]
    if plan.talks.num_requests is not None and num_over:
        found.append(now_s * max(0, plan.talks.num_requests - num_over) / num_over)
    return min(found, default=None)


async def tell(told: Callable[[], str]) -> None:
    """Until it is cancelled."""
    is_terminal = sys.stderr.isatty()
    try:
        while True:
            await asyncio.sleep(_TERMINAL_EVERY_S if is_terminal else _FILE_EVERY_S)
            sys.stderr.write(f"\r{told()} \x1b[K" if is_terminal else f"{told()}\n")
            sys.stderr.flush()
    finally:
        if is_terminal:
            sys.stderr.write("\r\x1b[K")
