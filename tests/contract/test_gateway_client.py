"""The gateway's client of KV nodes, on the real process and on the fake alike: one method per message."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import aiohttp
import msgspec
import pytest

from prfaas.core.model.layout import KVGroupKind
from prfaas.core.wire.contract import from_values
from prfaas.core.wire.node_api import LandingState, Reservation, Until, Verdict
from prfaas.gateway.upstream.clients import UpstreamDown, open_session
from prfaas.gateway.upstream.nodes import NodeRefused
from prfaas.gateway.upstream.nodes import Nodes as Client
from tests.contract.nodes import Nodes, reservation


def drive(scenario: Callable[[Client], Awaitable[None]]) -> None:
    """Run it with a client."""

    async def main() -> None:
        session: aiohttp.ClientSession
        async with asyncio.timeout(60), open_session(5.0) as session:
            await scenario(Client(session))

    asyncio.run(main())


def test_the_gateway_reserves_polls_renews_and_drops(pair: Nodes) -> None:
    """Typed, from the reservation to the end."""

    async def scenario(client: Client) -> None:
        url = pair.sink[0]
        health = await client.health(url)
        assert health.engines[-1].kv_group_kinds == (KVGroupKind.FULL_ATTENTION,)
        asked = from_values(Reservation, reservation(pair.new_id()))
        reserved = await client.reserve(url, asked)
        assert reserved.kv_group_kinds == (KVGroupKind.FULL_ATTENTION,)
        image = await asyncio.to_thread(pair.ship, asked.transfer_id, msgspec.to_builtins(reserved))
        record = await client.record(url, asked.transfer_id, until=Until.LANDED, wait_s=30.0)
        assert (record.state, record.bytes_landed) == (LandingState.LANDED, len(image))
        assert (await client.renew(url, asked.transfer_id, 30.0)).state is LandingState.LANDED
        assert (await client.drop(url, asked.transfer_id)).state is LandingState.ABORTED
        links = await client.links(pair.source[0], after=None, wait_s=0.0)
        assert isinstance(links.links["sink-0"].verdict, Verdict)

    drive(scenario)


def test_the_gateway_tells_refusals_from_a_node_that_is_away(pair: Nodes) -> None:
    """With the node's code, or UpstreamDown."""

    async def scenario(client: Client) -> None:
        with pytest.raises(NodeRefused) as refused:
            await client.drop(pair.sink[0], "nobody")
        assert (refused.value.status, refused.value.code) == (404, "unknown")
        with pytest.raises(UpstreamDown) as down:
            await client.health("http://127.0.0.1:1")
        assert down.value.refused

    drive(scenario)
