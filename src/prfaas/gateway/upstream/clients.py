"""The gateway's client of engines, and the session that it shares with that of nodes. Network errors become
UpstreamDown only here."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import aiohttp

from prfaas.gateway.api.http import Scope, headers_of

#: vLLM's server drops idle connections after 5 s; reusing one at that moment would fail a healthy request.
POOL_KEEPALIVE_S: Final = 3.0
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
async def translated(url: str) -> AsyncIterator[None]:
    """Turns network errors into UpstreamDown."""
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
            translated(url),
            self._session.post(url, data=body, headers=headers, allow_redirects=False) as reply,
        ):
            return reply.status, await reply.read()

    async def get(self, url: str, timeout_s: float) -> tuple[int, bytes]:
        """GET and read the whole answer. Raises UpstreamDown, also for one that is too long."""
        async with (
            translated(url),
            asyncio.timeout(timeout_s),
            self._session.get(url, allow_redirects=False) as reply,
        ):
            body = bytearray()
            async for part in reply.content.iter_any():
                body += part
                if len(body) > MAX_PROBE_BODY_BYTES:
                    raise UpstreamDown(f"{url}: the answer is longer than {MAX_PROBE_BODY_BYTES} bytes")
            return reply.status, bytes(body)
