"""A load on a running deployment, sent as `prfaas bench e2e` sends it, in phases of different rates."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from prfaas.bench.e2e.client import Client, open_session
from prfaas.bench.e2e.load import new_prompts
from prfaas.bench.e2e.options import E2eOptions
from prfaas.bench.e2e.plan import Plan, Planned, plan_of
from prfaas.bench.e2e.sent import Sent

#: A guard: an answer that takes longer counts as hung.
HANG_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Phase:
    """`rate_rps` is of the real deployment, as in its plan; `duration_s` is here."""

    rate_rps: float
    duration_s: float


def planned_in(file: Path, phases: Sequence[Phase], seed: int) -> list[Planned]:
    """Poisson arrivals with the lengths of the file's workload, one phase after the other. A phase without a rate sends
    nothing."""
    found: list[Planned] = []
    begins_s = 0.0
    numbers = itertools.count(1)
    for place, phase in enumerate(phases):
        if phase.rate_rps > 0:
            options = E2eOptions(
                "http://127.0.0.1", deployment=file, rate_rps=phase.rate_rps, duration_s=phase.duration_s,
                seed=seed + place,
            )  # fmt: skip
            drawn = plan_of(options).requests
            found += [replace(one, number=next(numbers), at_s=begins_s + one.at_s) for one in drawn]
        begins_s += phase.duration_s
    return found


async def send(
    url: str, model: str, requests: Sequence[Planned], prompt_seed: int, timeout_s: float = HANG_S
) -> list[Sent]:
    """Each at its own time, to the end of the last answer."""
    async with open_session(None) as session:
        client = Client(session, url, "/v1/completions", timeout_s)
        load = await new_prompts(client, model, Plan(requests, None, 512, None, ""), prompt_seed)
        await load.run()
    return load.sent
