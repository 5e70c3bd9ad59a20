"""The same deployment as processes: a load, samples of the gateway's view, and a link that is changed meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import aiohttp
import uvloop

from benchmarks.case_study.adaptive_samples import Asked, Converted, Member, Sample, Seen, conversions_of, sample_of
from prfaas.bench.e2e.client import Client, open_session
from prfaas.bench.e2e.load import new_prompts
from prfaas.bench.e2e.plan import Plan
from prfaas.bench.e2e.sent import UNKNOWN, Sent
from prfaas.deployment.fronts import Address, control_address
from prfaas.deployment.load import load_deployment
from prfaas.sim.conditions import LinkBecomes
from prfaas.testing.emulated_site import EmulatedSite
from prfaas.wan.client import change

#: Beyond what any run takes.
REQUEST_TIMEOUT_S: Final = 1_800.0


def serve(
    document: dict[str, Any], plan: Plan, *, pd: str, conditions: Sequence[tuple[float, LinkBecomes]], until_s: float,
    end_s: float, every_s: float, site: EmulatedSite | None = None,
) -> Seen:  # fmt: skip
    """As `adaptive_simulated.simulate`. Processes of the document are started for it, and ended after it; those of
    `site`, if it is given, run already and stay."""
    running = EmulatedSite(document) if site is None else contextlib.nullcontext(site)
    with running as served:
        shown = _Shown(served.file, served.gateway, pd, every_s)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            sent = runner.run(shown.run(plan, conditions, until_s, end_s))
        num_wrong = served.num_wrong()
    late_s = max((one.late_s for one in sent if one.late_s == one.late_s), default=0.0)
    return Seen(shown.samples, [_asked(one) for one in sent], shown.conversions, num_wrong, late_s)


class _Shown:
    """One load, and what is seen meanwhile."""

    def __init__(self, file: Path, gateway: str, pd: str, every_s: float) -> None:
        deployment = load_deployment(file)
        self._model = deployment.served_model.name
        self._gateway, self._pd, self._every_s = gateway, pd, every_s
        self._control: Address | None = control_address(deployment)
        self.samples: list[Sample] = []
        self.conversions: list[Converted] = []

    async def run(
        self, plan: Plan, conditions: Sequence[tuple[float, LinkBecomes]], until_s: float, end_s: float
    ) -> list[Sent]:
        """Every request that was sent; what is under way at `end_s` is given up."""
        async with open_session(None) as session:
            client = Client(session, self._gateway, "/v1/completions", REQUEST_TIMEOUT_S)
            load = await new_prompts(client, self._model, plan)
            loading = asyncio.create_task(load.run())
            await asyncio.sleep(0)  # its clock begins
            watching = asyncio.create_task(self._watch(session, client, until_s))
            changing = asyncio.create_task(self._change(client, conditions))
            try:
                await asyncio.gather(watching, changing)
                await asyncio.wait({loading}, timeout=max(0.0, end_s - client.clock()))
            finally:
                for task in (loading, watching, changing):
                    task.cancel()
                await asyncio.gather(loading, watching, changing, return_exceptions=True)
        return load.sent

    async def _watch(self, session: aiohttp.ClientSession, client: Client, until_s: float) -> None:
        at_s = 0.0
        while at_s <= until_s:
            await asyncio.sleep(max(0.0, at_s - client.clock()))
            view = await _json(session, f"{self._gateway}/prfaas/scheduler")
            health = await _json(session, f"{self._gateway}/health")
            members = [
                Member(member["duty"], member["inflight"])
                for member in health["instances"].values()
                if member["cluster"] == self._pd
            ]
            now_s = client.clock()
            self.samples.append(sample_of(now_s, view, members, await self._sent_bytes(session)))
            self.conversions = conversions_of(view, now_s)
            at_s += self._every_s

    async def _sent_bytes(self, session: aiohttp.ClientSession) -> float:
        """To the PD cluster, over a link that is emulated."""
        if self._control is None:
            return 0.0
        links = (await _json(session, f"http://{self._control[0]}:{self._control[1]}/links"))["links"]
        return sum(float(link["carried_bytes"]) for link in links if link["to"] == self._pd)

    async def _change(self, client: Client, conditions: Sequence[tuple[float, LinkBecomes]]) -> None:
        for at_s, link in conditions:
            await asyncio.sleep(max(0.0, at_s - client.clock()))
            assert self._control is not None, "only an emulated link can be changed"
            values: dict[str, str | None] = {"bandwidth": f"{link.bytes_per_s * 8e-6:.6f}Mbps"}
            await asyncio.to_thread(change, self._control, link.source, link.target, values)


async def _json(session: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    async with session.get(url) as response:
        found: dict[str, Any] = await response.json(content_type=None)
        return found


def _asked(one: Sent) -> Asked:
    before, _, fallback = (one.reason or "").partition("fallback:")
    route = "" if one.route == UNKNOWN else one.route
    return Asked(one.arrival_s, one.first_token_s, route, one.outcome, "" if before else fallback)
