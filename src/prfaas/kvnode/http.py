"""HTTP control of a KV node, as docs/protocols.md states it. Handlers parse, call `KVNode`, and wait for changes."""

from __future__ import annotations

import asyncio
import json
import math
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiohttp import web

from prfaas.core.errors import Refused
from prfaas.core.transfer.landings import FINAL_STATES, OPEN_STATES, ClaimKey, Landing
from prfaas.kvnode.metrics import NodeMetrics
from prfaas.kvnode.node import KVNode

#: Bodies of the control API are a few hundred bytes.
MAX_BODY_BYTES: Final = 64 * 1024
#: A poll longer than this would outlive proxies and hide a dead gateway.
MAX_WAIT_S: Final = 60.0
MAX_LEASE_S: Final = 3600.0
#: 22 characters of base64 hold 128 bits; a shorter secret could be guessed.
MIN_SECRET_CHARS: Final = 22

#: What long polls for links wait on; no transfer id, which have no slash.
LINKS: Final = "/links"

_STATUS: Final = {"bad_request": 400, "unknown": 404, "exists": 409}

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
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every refusal is JSON with a code; nothing leaks a traceback."""
    try:
        return await handler(request)
    except Refused as error:
        return _error(_STATUS.get(error.code, 503), error.code, error.message)
    except web.HTTPException as error:
        return _error(error.status, "http", error.reason)


def _error(status: int, code: str, message: str) -> web.Response:
    return web.json_response({"error": {"code": code, "message": message}}, status=status)


class Control:
    """The routes of one node."""

    def __init__(self, node: KVNode, changes: Changes, metrics: NodeMetrics) -> None:
        self.node = node
        self.changes = changes
        self.metrics = metrics

    def application(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[errors_as_json])
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
        node = self.node
        engines = [
            {
                "engine_id": engine.engine_id,
                "engine_boot_id": engine.boot_id,
                "fingerprint": engine.layout.fingerprint,
                "block_tokens": engine.layout.block_tokens,
                "max_model_tokens": engine.layout.max_model_tokens,
                "kv_group_kinds": list(engine.layout.group_kinds),
            }
            for engine in node.engines.values()
            if engine.layout is not None
        ]
        body = {
            "status": "ok",
            "node": node.config.name,
            "boot_id": node.boot_id,
            "arena_bytes": node.plane.ledgers.extents.capacity,
            "arena_free_bytes": node.plane.ledgers.extents.free_bytes,
            "engines": engines,
            "peers": {name: {"lanes_up": link.lanes_up, "error": link.refusal} for name, link in node.links.items()},
            "lanes_from": node.inbound.lanes_from(),
        }
        return web.json_response(body)

    async def scrape(self, request: web.Request) -> web.Response:
        return web.Response(body=self.metrics.render(), headers={"Content-Type": self.metrics.content_type})

    async def reserve(self, request: web.Request) -> web.Response:
        """POST /v1/landings."""
        body = await _json(request)
        key = ClaimKey(
            _integer(body, "num_prompt_tokens"),
            _text(body, "token_digest"),
            _text(body, "claim_secret", MIN_SECRET_CHARS),
        )
        reply = self.node.reserve(
            _text(body, "transfer_id"),
            key,
            _integer(body, "skip_tokens", 0),
            _number(body, "lease_s", 30.0, MAX_LEASE_S),
        )
        return web.json_response(reply, status=201)

    async def landing(self, request: web.Request) -> web.Response:
        """GET /v1/landings/{id}, a long poll if `wait_s` is given."""
        transfer_id = request.match_info["id"]
        until = request.query.get("until", "landed")
        if until not in ("landed", "final"):
            raise Refused("bad_request", "until must be landed or final")
        wait_s = _number(dict(request.query), "wait_s", 0.0, MAX_WAIT_S)

        def done() -> bool:
            state = self.node.landing(transfer_id).state
            return state in FINAL_STATES if until == "final" else state not in OPEN_STATES

        if not done() and wait_s > 0:
            await self.changes.wait(transfer_id, wait_s, done)
        return _record(self.node.landing(transfer_id))

    async def renew(self, request: web.Request) -> web.Response:
        lease_s = _number(await _json(request), "lease_s", 30.0, MAX_LEASE_S)
        return _record(self.node.renew(request.match_info["id"], lease_s))

    async def drop(self, request: web.Request) -> web.Response:
        return _record(self.node.drop(request.match_info["id"]))

    async def transfer(self, request: web.Request) -> web.Response:
        """GET /v1/transfers/{id}."""
        return web.json_response(self.node.transfer_record(request.match_info["id"]))

    async def links(self, request: web.Request) -> web.Response:
        """GET /v1/links; with `after` and `wait_s` a long poll for the next change of a verdict."""
        sense = self.node.link_monitor
        wait_s = _number(dict(request.query), "wait_s", 0.0, MAX_WAIT_S)
        after = request.query.get("after")
        if wait_s > 0:
            await self.changes.wait(LINKS, wait_s, lambda: str(sense.verdict_changes) != after)
        answer = {"node": self.node.config.name, "changes": sense.verdict_changes, "links": self.node.link_records()}
        return web.json_response(answer)


def _record(landing: Landing) -> web.Response:
    return web.json_response(landing.record())


async def _json(request: web.Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.text())
    except (ValueError, RecursionError):
        raise Refused("bad_request", "the body is not valid JSON") from None
    if not isinstance(body, dict):
        raise Refused("bad_request", "the body must be a JSON object")
    return body


def _text(body: dict[str, Any], name: str, min_chars: int = 1) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not min_chars <= len(value) <= 128 or not value.isprintable():
        raise Refused("bad_request", f"{name} must be a string of {min_chars} to 128 printable characters")
    return value


def _integer(body: dict[str, Any], name: str, default: int | None = None) -> int:
    value = body.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise Refused("bad_request", f"{name} must be an integer, 0 or more")
    return value


def _number(body: dict[str, Any], name: str, default: float, limit: float) -> float:
    try:
        value = float(body.get(name, default))
    except (TypeError, ValueError):
        value = math.nan
    if not 0 <= value <= limit:
        raise Refused("bad_request", f"{name} must be a number from 0 to {limit:g}")
    return value
