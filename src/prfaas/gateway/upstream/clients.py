"""Clients of engines and KV nodes over one aiohttp session. Only here do network errors become UpstreamDown."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import aiohttp
import orjson

from prfaas.gateway.api.http import Scope, headers_of
from prfaas.gateway.upstream.params import OffloadSpec

#: vLLM's server drops idle connections after 5 s; reusing one at that moment would fail a healthy request.
POOL_KEEPALIVE_S: Final = 3.0
#: Control answers are a few hundred bytes; a node that takes longer does not work.
CONTROL_TIMEOUT_S: Final = 5.0
MAX_ERROR_BODY_BYTES: Final = 64 * 1024
#: An engine's metrics are some 100 KB; many more are not read, since they are read once a second.
MAX_PROBE_BODY_BYTES: Final = 4 << 20

#: Only these, and trace context (`tracing`), cross to an engine. Everything else, with it every rank and destination
#: header, stays here.
FORWARDED_HEADERS: Final = (
    b"authorization",
    b"baggage",
    b"x-correlation-id",
    b"x-session-id",
)


#: What the gateway itself ran out of when it cannot connect: descriptors, buffers, memory, ports.
_OWN_SHORTAGES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})


class UpstreamDown(Exception):
    """No answer came. `refused`: no connection was made, so nobody listens there. `is_own`: nobody was asked, because
    the gateway itself lacks something; that says nothing of the other side."""

    def __init__(self, message: str, *, refused: bool = False, is_own: bool = False) -> None:
        super().__init__(message)
        self.refused = refused
        self.is_own = is_own


class NodeRefused(Exception):
    """A KV node answered with an error."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.status = status
        self.code = code


def forwarded_headers(scope: Scope, request_id: str) -> dict[str, str]:
    """Headers for both legs of a request."""
    headers = headers_of(scope)
    forwarded = {name.decode(): headers[name].decode("latin-1") for name in FORWARDED_HEADERS if name in headers}
    return {**forwarded, "content-type": "application/json", "x-request-id": request_id}


def open_session(connect_timeout_s: float) -> aiohttp.ClientSession:
    """The process's session. Deadlines of whole requests are the callers'."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=POOL_KEEPALIVE_S, use_dns_cache=True),
        timeout=aiohttp.ClientTimeout(total=None, connect=None, sock_connect=connect_timeout_s),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=("User-Agent", "Accept-Encoding", "Accept"),
    )


@asynccontextmanager
async def _translated(url: str) -> AsyncIterator[None]:
    try:
        yield
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise _down(url, error) from error


def _down(url: str, error: Exception) -> UpstreamDown:
    if isinstance(error, OSError) and error.errno in _OWN_SHORTAGES:
        return UpstreamDown(f"{url} was not asked, the gateway lacks resources: {error}", is_own=True)
    if isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)):
        return UpstreamDown(f"{url}: {error}", refused=True)
    return UpstreamDown(f"{url}: {type(error).__name__} {error}".rstrip())


class Engines:
    """OpenAI endpoints of engines."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def send(self, url: str, body: bytes, headers: dict[str, str]) -> aiohttp.ClientResponse:
        """POST and return once headers have come. The caller closes the response. Raises UpstreamDown."""
        try:
            return await self._session.post(url, data=body, headers=headers, allow_redirects=False)
        except (aiohttp.ClientError, OSError) as error:
            raise _down(url, error) from error

    async def post(self, url: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        """POST and read the whole answer. Raises UpstreamDown. No deadline of its own."""
        async with (
            _translated(url),
            self._session.post(url, data=body, headers=headers, allow_redirects=False) as reply,
        ):
            return reply.status, await reply.read()

    async def get(self, url: str, timeout_s: float) -> tuple[int, bytes]:
        """GET and read the whole answer. Raises UpstreamDown, also for one that is too long."""
        async with (
            _translated(url),
            asyncio.timeout(timeout_s),
            self._session.get(url, allow_redirects=False) as reply,
        ):
            body = bytearray()
            async for part in reply.content.iter_any():
                body += part
                if len(body) > MAX_PROBE_BODY_BYTES:
                    raise UpstreamDown(f"{url}: the answer is longer than {MAX_PROBE_BODY_BYTES} bytes")
            return reply.status, bytes(body)


class Nodes:
    """HTTP control of KV nodes, as docs/protocols.md states it."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def health(self, node_url: str, timeout_s: float = CONTROL_TIMEOUT_S) -> dict[str, Any]:
        return await self._call("GET", f"{node_url}/health", timeout_s)

    async def links(self, node_url: str, *, after: int | None, wait_s: float) -> dict[str, Any]:
        """GET /v1/links; a long poll for a change of a verdict after change number `after`."""
        url = f"{node_url}/v1/links?after={'' if after is None else after}&wait_s={wait_s:g}"
        return await self._call("GET", url, wait_s + CONTROL_TIMEOUT_S)

    async def reserve(self, node_url: str, spec: OffloadSpec) -> dict[str, Any]:
        """POST /v1/landings."""
        body = {
            "transfer_id": spec.transfer_id,
            "num_prompt_tokens": len(spec.token_ids),
            "skip_tokens": spec.skip_tokens,
            "lease_s": spec.lease_s,
            "token_digest": spec.token_digest,
            "claim_secret": spec.claim_secret,
        }
        return await self._call("POST", f"{node_url}/v1/landings", CONTROL_TIMEOUT_S, body)

    async def record(self, node_url: str, transfer_id: str, *, until: str, wait_s: float) -> dict[str, Any]:
        """GET a landing; a long poll of `wait_s`."""
        url = f"{node_url}/v1/landings/{transfer_id}?wait_s={wait_s:.3f}&until={until}"
        return await self._call("GET", url, wait_s + CONTROL_TIMEOUT_S)

    async def renew(self, node_url: str, transfer_id: str, lease_s: float) -> dict[str, Any]:
        url = f"{node_url}/v1/landings/{transfer_id}/renew"
        return await self._call("POST", url, CONTROL_TIMEOUT_S, {"lease_s": lease_s})

    async def drop(self, node_url: str, transfer_id: str) -> dict[str, Any]:
        return await self._call("DELETE", f"{node_url}/v1/landings/{transfer_id}", CONTROL_TIMEOUT_S)

    async def _call(self, method: str, url: str, timeout_s: float, body: object = None) -> dict[str, Any]:
        data = None if body is None else orjson.dumps(body)
        headers = {"content-type": "application/json"}
        async with (
            _translated(url),
            asyncio.timeout(timeout_s),
            self._session.request(method, url, data=data, headers=headers, allow_redirects=False) as reply,
        ):
            return _answer(reply.status, await reply.read())


def _answer(status: int, body: bytes) -> dict[str, Any]:
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise NodeRefused(status, "bad_answer", "the node's answer is not JSON") from None
    if not isinstance(answer, dict):
        raise NodeRefused(status, "bad_answer", "the node's answer is not an object")
    if status < 300:
        return answer
    error = answer.get("error")
    error = error if isinstance(error, dict) else {}
    raise NodeRefused(status, str(error.get("code", "error")), str(error.get("message", "")))
