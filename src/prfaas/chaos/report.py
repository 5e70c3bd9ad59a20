"""What a run came to, for people and for programs. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Final

from prfaas.chaos.faults import Fault
from prfaas.chaos.records import Outcome
from prfaas.chaos.run import Result

#: Of one kind; the rest are counted.
MAX_SHOWN: Final = 5


def plan_lines(faults: Sequence[Fault]) -> list[str]:
    """Each as it can be given to --fault."""
    return [f"  --fault {fault.text!r}" for fault in faults] or ["  no fault"]


def report_lines(result: Result) -> Iterator[str]:
    """The ledger; then what does not hold, or that all does."""
    verdict = result.verdict
    parts = ", ".join(
        f"{verdict.outcomes[outcome]} {outcome}" for outcome in Outcome if outcome is not Outcome.UNREACHED
    )
    yield f"ledger: {verdict.sent} sent; {verdict.accepted} accepted = {parts}"
    if verdict.outcomes[Outcome.UNREACHED]:
        yield f"  {verdict.outcomes[Outcome.UNREACHED]} reached no gateway"
    for why, number in sorted(verdict.excused.items()):
        yield f"  {number} excused: {why}"
    yield f"  {verdict.checked_answers} answers compared token by token with what they must be"
    routes = ", ".join(f"{number} {route}" for route, number in result.routes.items())
    yield f"  routes of completed ones: {routes or 'none'}"
    yield f"time to first token, at most: {_ttft(result)}"
    if result.recovery_s is not None:
        yield f"as before {result.recovery_s:.1f} s after the last fault"
    if not result.held:
        yield f"everything was given back {result.given_back_s:.1f} s after the last answer"
    problems = result.problems
    shown: dict[str, int] = {}
    for problem in problems:
        shown[problem.kind] = shown.get(problem.kind, 0) + 1
        if shown[problem.kind] <= MAX_SHOWN:
            yield f"WRONG ({problem.kind}): {problem.text}"
    for kind, number in shown.items():
        if number > MAX_SHOWN:
            yield f"WRONG ({kind}): {number - MAX_SHOWN} more"
    yield f"{len(problems)} things do not hold" if problems else "everything holds"


def to_json(result: Result) -> dict[str, Any]:
    """As docs/chaos.md lists the keys."""
    verdict, options = result.verdict, result.options
    return {
        "seed": options.seed,
        "faults": [
            {"fault": one.fault.text, "began_s": one.began_s, "ended_s": one.ended_s} for one in result.happened
        ],
        "sent": verdict.sent,
        "accepted": verdict.accepted,
        **{outcome.value: verdict.outcomes[outcome] for outcome in Outcome},
        "excused": dict(verdict.excused),
        "checked_answers": verdict.checked_answers,
        "routes": result.routes,
        "ttft_s_max": dict(zip(("before", "during", "after"), _ttfts(result), strict=True)),
        "recovery_s": result.recovery_s,
        "given_back_s": result.given_back_s,
        "held": {what: None if math.isnan(number) else number for what, number in result.held.items()},
        "problems": [{"kind": problem.kind, "text": problem.text} for problem in result.problems],
        "holds": result.is_fine,
    }


def _ttfts(result: Result) -> list[float | None]:
    first_s = min((one.began_s for one in result.happened), default=result.options.phases.before_s)
    times_s = [0.0, first_s, result.end_of_faults_s, math.inf]
    return [result.ttft_s_max(*pair) for pair in pairwise(times_s)]


def _ttft(result: Result) -> str:
    names = ("before", "during", "after")
    return ", ".join(
        f"{name} {'–' if value is None else f'{value:.2f} s'}"
        for name, value in zip(names, _ttfts(result), strict=True)
    )
