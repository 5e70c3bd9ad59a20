"""HTTP control of a KV node, as docs/protocols.md states it. Handlers parse, call `KVNode`, and wait for changes."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import msgspec
from aiohttp import web

from prfaas.core.errors import Refused
from prfaas.core.wire.contract import BadMessage, Message, OtherVersion, check_version, from_json, from_values
from prfaas.core.wire.node_api import (
    FINAL_STATES,
    OPEN_STATES,
    VERSION,
    VERSION_HEADER,
    ErrorDetail,
    ErrorReply,
    LandingQuery,
    LinksQuery,
    Renewal,
    Reservation,
    Until,
)
from prfaas.kvnode.metrics import NodeMetrics
from prfaas.kvnode.node import KVNode

#: Bodies of the control API are a few hundred bytes.
MAX_BODY_BYTES: Final = 64 * 1024

#: What long polls for links wait on; no transfer id, which have no slash.
LINKS: Final = "/links"

_STATUS: Final = {"bad_request": 400, "unknown": 404, "exists": 409}

T = TypeVar("T", bound=Message)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Changes:
    """Wakes long polls. `notify` may be called from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: dict[str, set[asyncio.Event]] = defaultdict(set)

    def notify(self, transfer_id: str) -> None:
        """Something about this transfer changed."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake, transfer_id)

    async def wait(self, transfer_id: str, timeout_s: float, done: Callable[[], bool]) -> None:
        """Return when `done()` or after `timeout_s`."""
        event = asyncio.Event()
        self._waiting[transfer_id].add(event)
        try:
            async with asyncio.timeout(timeout_s):
                while not done():
                    await event.wait()
                    event.clear()
        except TimeoutError:
            pass
        finally:
            self._waiting[transfer_id].discard(event)
            if not self._waiting[transfer_id]:
                del self._waiting[transfer_id]

    def _wake(self, transfer_id: str) -> None:
        for event in self._waiting.get(transfer_id, ()):
            event.set()


@web.middleware
async def one_contract(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every answer carries the version, every refusal is JSON with a code; nothing leaks a traceback."""
    try:
        asked = request.headers.get(VERSION_HEADER)
        if asked is not None:
            check_version("KV node's control", VERSION, _number(asked))
        response = await handler(request)
    except Refused as error:
        response = _error(_STATUS.get(error.code, 503), error.code, error.message)
    except OtherVersion as error:
        response = _error(400, "version", str(error))
    except BadMessage as error:
        response = _error(400, "bad_request", str(error))
    except web.HTTPException as error:
        response = _error(error.status, "http", error.reason)
    response.headers[VERSION_HEADER] = str(VERSION)
    return response


def _number(text: str) -> int | str:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else text


def _error(status: int, code: str, message: str) -> web.Response:
    return _json(ErrorReply(error=ErrorDetail(code=code, message=message[:2048])), status)


class Control:
    """The routes of one node."""

    def __init__(self, node: KVNode, changes: Changes, metrics: NodeMetrics) -> None:
        self.node = node
        self.changes = changes
        self.metrics = metrics

    def application(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[one_contract])
        app.add_routes(
            [
                web.get("/health", self.health),
                web.get("/metrics", self.scrape),
                web.post("/v1/landings", self.reserve),
                web.get("/v1/landings/{id}", self.landing),
                web.post("/v1/landings/{id}/renew", self.renew),
                web.delete("/v1/landings/{id}", self.drop),
                web.get("/v1/transfers/{id}", self.transfer),
                web.get("/v1/links", self.links),
            ]
        )
        return app

    async def health(self, request: web.Request) -> web.Response:
        return _json(self.node.health())

    async def scrape(self, request: web.Request) -> web.Response:
        return web.Response(body=self.metrics.render(), headers={"Content-Type": self.metrics.content_type})

    async def reserve(self, request: web.Request) -> web.Response:
        """POST /v1/landings."""
        return _json(self.node.reserve(from_json(Reservation, await request.read())), 201)

    async def landing(self, request: web.Request) -> web.Response:
        """GET /v1/landings/{id}, a long poll if `wait_s` is given."""
        transfer_id = request.match_info["id"]
        query = _query(LandingQuery, request)

        def done() -> bool:
            state = self.node.landing(transfer_id).state
            return state in FINAL_STATES if query.until is Until.FINAL else state not in OPEN_STATES

        if not done() and query.wait_s > 0:
            await self.changes.wait(transfer_id, query.wait_s, done)
        return _json(self.node.landing(transfer_id).record())

    async def renew(self, request: web.Request) -> web.Response:
        renewal = from_json(Renewal, await request.read())
        return _json(self.node.renew(request.match_info["id"], renewal.lease_s).record())

    async def drop(self, request: web.Request) -> web.Response:
        return _json(self.node.drop(request.match_info["id"]).record())

    async def transfer(self, request: web.Request) -> web.Response:
        """GET /v1/transfers/{id}."""
        return _json(self.node.transfer_record(request.match_info["id"]))

    async def links(self, request: web.Request) -> web.Response:
        """GET /v1/links; with `after` and `wait_s` a long poll for the next change of a verdict."""
        query = _query(LinksQuery, request)
        if query.wait_s > 0:
            await self.changes.wait(LINKS, query.wait_s, lambda: str(self.node.verdict_changes) != query.after)
        return _json(self.node.link_reports())


def _json(message: Message, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(message), status=status, content_type="application/json")


def _query(kind: type[T], request: web.Request) -> T:
    return from_values(kind, dict(request.query), texts=True)
