"""Engines and nodes are asked at their own addresses, and not blamed for what the gateway lacks."""

from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from aiohttp import web

from prfaas.core.wire.node_api import Until
from prfaas.gateway.upstream.clients import Engines, UpstreamDown, open_session
from prfaas.gateway.upstream.nodes import NodeRefused, Nodes
from prfaas.testing.fake_server import FakeServer

BODY = b"{}"


class Elsewhere(FakeServer):
    """Counts who comes."""

    def __init__(self) -> None:
        super().__init__()
        self.num_asked = 0

    def routes(self) -> list[web.RouteDef]:
        return [web.route("*", "/{any:.*}", self._answer)]

    async def _answer(self, request: web.Request) -> web.Response:
        self.num_asked += 1
        return web.json_response({"engines": []})


class Redirector(FakeServer):
    """Sends everybody to another host; its answers are JSON objects too."""

    def __init__(self, target: str, status: int) -> None:
        super().__init__()
        self._target, self._status = target, status

    def routes(self) -> list[web.RouteDef]:
        return [web.route("*", "/{any:.*}", self._answer)]

    async def _answer(self, request: web.Request) -> web.Response:
        location = {"location": f"{self._target}{request.path_qs}"}
        return web.json_response({"state": "landed"}, status=self._status, headers=location)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_nobody_is_followed_to_another_host(status: int) -> None:
    """A node or engine that is not what it should be must not choose whom the gateway asks, with what body."""

    async def scenario() -> None:
        async with Elsewhere() as elsewhere, Redirector(elsewhere.url, status) as node, open_session(5) as session:
            nodes, engines = Nodes(session), Engines(session)
            asks: list[Callable[[], Awaitable[Any]]] = [
                lambda: nodes.health(node.url),
                lambda: nodes.links(node.url, after=None, wait_s=0),
                lambda: nodes.record(node.url, "t", until=Until.FINAL, wait_s=0),
                lambda: nodes.renew(node.url, "t", 1.0),
                lambda: nodes.drop(node.url, "t"),
            ]
            for ask in asks:
                with pytest.raises(NodeRefused):
                    await ask()
            assert (await engines.get(f"{node.url}/health", 5))[0] == status
            assert (await engines.post(f"{node.url}/v1/completions", BODY, {}))[0] == status
            reply = await engines.send(f"{node.url}/v1/completions", BODY, {})
            assert reply.status == status
            reply.close()
            assert elsewhere.num_asked == 0

    asyncio.run(scenario())


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """As with `ulimit -n` and that many clients."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_gateway_without_descriptors_does_not_say_that_an_engine_refuses() -> None:
    """It would mark a healthy engine down, and every other with it."""

    async def scenario() -> None:
        async with Elsewhere() as engine, open_session(5) as session:
            asks: list[Callable[[], Awaitable[Any]]] = [
                lambda: Engines(session).get(f"{engine.url}/health", 5),
                lambda: Engines(session).send(f"{engine.url}/v1/completions", BODY, {}),
                lambda: Engines(session).post(f"{engine.url}/v1/completions", BODY, {}),
                lambda: Nodes(session).health(engine.url),
            ]
            for ask in asks:
                with no_descriptor_left(), pytest.raises(UpstreamDown) as caught:
                    await ask()
                assert (caught.value.is_own, caught.value.refused) == (True, False)
            assert engine.num_asked == 0
            assert (await Engines(session).get(f"{engine.url}/health", 5))[0] == 200

    asyncio.run(scenario())


def test_nobody_there_is_a_refusal() -> None:
    """And not the gateway's own."""

    async def scenario() -> None:
        engine = Elsewhere()
        async with engine:
            url = engine.url
        async with open_session(5) as session:
            with pytest.raises(UpstreamDown) as caught:
                await Engines(session).get(f"{url}/health", 5)
            assert (caught.value.is_own, caught.value.refused) == (False, True)

    asyncio.run(scenario())
