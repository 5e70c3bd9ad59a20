"""What the tests of overload and of long running share: prompts that fit a small machine, and a load on a site."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import uvloop

from prfaas.bench.e2e.plan import Planned
from prfaas.bench.e2e.sent import Sent
from prfaas.testing.emulated_site import MODEL_NAME, EmulatedSite
from prfaas.testing.sending import send

#: A fifth of the case study's prompts, and an eighth of its answers.
WORKLOAD: Final = {
    "input_tokens": {"lognormal": {"mu": 8.3, "sigma": 1.0, "min": 128, "max": 32_768}}, "output_tokens": 128,
}  # fmt: skip


def sent_to(site: EmulatedSite, requests: Sequence[Planned], prompt_seed: int) -> list[Sent]:
    """To the end of the last answer."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(send(site.gateway, MODEL_NAME, requests, prompt_seed))


def entries(site: EmulatedSite) -> dict[str, float]:
    """What the gateway keeps, by table; of requests that have ended only their stories."""
    tables = ("admitted", "live", "scheduled", "answers", "queued", "timers", "background", "open_stories")
    kept = {table: site.metric(site.gateway, "prfaas_gateway_entries", table=table) for table in tables}
    return {table: number for table, number in kept.items() if number}


def waiting(site: EmulatedSite) -> dict[str, Any]:
    """Prompts in the scheduler's queues, by cluster."""
    clusters = site.scheduler()["clusters"]
    return {name: cluster["num_waiting"] for name, cluster in clusters.items() if cluster["num_waiting"]}
