"""The gateway hears of a link's verdict at once, and forgets what a node no longer says."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from prfaas.gateway.upstream.link_feed import Links
from prfaas.testing.gateway_rig import Rig, gateway_rig, until, write_tiny_model


async def links(rig: Rig) -> dict[str, Any]:
    """GET /prfaas/links."""
    async with rig.session.get(f"{rig.url}/prfaas/links") as reply:
        assert reply.status == 200
        answer: dict[str, Any] = await reply.json()
    found: dict[str, Any] = answer["links"]
    return found


def test_verdicts_arrive_as_they_change(tmp_path: Path) -> None:
    """Congested, then clear again, on the page and in /metrics; a node that ends takes its links along."""
    write_tiny_model(tmp_path)

    async def main() -> None:
        async with asyncio.timeout(60), gateway_rig(tmp_path) as rig:
            (source,) = (instance.name for instance in rig.service.fleet.prefillers)
            watch = rig.app.link_feed
            assert watch is not None
            for verdict, number in (("congested", 2.0), ("clear", 0.0), ("pressed", 1.0)):
                rig.prefill_nodes[0].judge("pd-0", verdict)
                await until(lambda verdict=verdict: _verdict(watch.links, source) == verdict)
                assert (await links(rig))[source]["pd-0"]["verdict"] == verdict
                async with rig.session.get(f"{rig.url}/metrics") as reply:
                    row = f'prfaas_gateway_link_verdict{{source="{source}",target="pd-0"}} {number}'
                    assert row in await reply.text()
            await rig.prefill_nodes[0].kill()
            await until(lambda: source not in watch.links)
            assert await links(rig) == {}
            async with rig.session.get(f"{rig.url}/metrics") as reply:
                assert "prfaas_gateway_link_verdict{" not in await reply.text()

    asyncio.run(main())


def _verdict(known: Links, source: str) -> str | None:
    report = known.get(source, {}).get("pd-0")
    return None if report is None else report.verdict
