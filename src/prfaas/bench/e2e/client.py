"""Requests over HTTP, and when their answers came. Only here, and in `load`, is network and clock.

No request ever waits for another: connections are opened as they are needed, without a limit.
"""

from __future__ import annotations

import asyncio
import errno
import time
from typing import Any, Final

import aiohttp
import orjson

from prfaas.bench.e2e.answers import AnswerReader
from prfaas.bench.e2e.sent import CANCELLED, ERROR, OK, UNAVAILABLE, UNKNOWN, Sent
from prfaas.profiles.measure.endpoint import Endpoint, EndpointError, UnknownModel, Unreachable
from prfaas.profiles.measure.stream import said

#: vLLM's server drops idle connections after 5 s; reusing one at that moment would fail a healthy request.
_KEEPALIVE_S: Final = 3.0
_MAX_ERROR_BYTES: Final = 4096
_STORY_TIMEOUT_S: Final = 5.0
#: What this client itself ran out of: that says nothing of the server.
_OWN_SHORTAGES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})
_HEADERS: Final = {"Content-Type": "application/json"}


def open_session(api_key: str | None) -> aiohttp.ClientSession:
    """As many connections as are needed. Each request has its own deadline."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_S),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
        skip_auto_headers=("User-Agent", "Accept-Encoding", "Accept"),
    )


class Client:
    """One server. `clock` counts from `begin`."""

    def __init__(self, session: aiohttp.ClientSession, url: str, path: str, timeout_s: float) -> None:
        self._session = session
        self._base = url.rstrip("/").removesuffix("/v1")
        self._url = f"{self._base}{path}"
        self._timeout_s = timeout_s
        self._began_s = time.perf_counter()
        self._is_gateway = False
        self.max_model_tokens: int | None = None

    def begin(self) -> None:
        """The clock stands at 0 now."""
        self._began_s = time.perf_counter()

    def clock(self) -> float:
        """Seconds."""
        return time.perf_counter() - self._began_s

    async def look(self, wanted: str | None) -> str:
        """The model: `wanted`, or the only one. Raises EndpointError if nobody answers, or there is no such model; a
        server that lists none has whatever is wanted."""
        endpoint = Endpoint(self._session, self._base, self._timeout_s)
        try:
            await endpoint.choose_model(wanted)
        except (Unreachable, UnknownModel):
            raise
        except EndpointError:
            if wanted is None:
                raise
        self._is_gateway = await self._get("/prfaas/links") is not None
        self.max_model_tokens = endpoint.max_model_tokens
        return endpoint.model or wanted or ""

    async def send(self, sent: Sent, body: bytes, reader: AnswerReader) -> None:
        """Now, under its `request_id` if it has one; returns when its answer has ended, however it did."""
        has_ended = False
        try:
            async with asyncio.timeout(self._timeout_s):
                sent.sent_s = self.clock()
                headers = _HEADERS if sent.request_id is None else {**_HEADERS, "x-request-id": sent.request_id}
                async with self._session.post(self._url, data=body, headers=headers, allow_redirects=False) as response:
                    _note(sent, response)
                    if response.status != 200:
                        await _refused(sent, response)
                    else:
                        await self._read(response, reader)
            has_ended = True
        except TimeoutError:  # before OSError, of which it is one
            _fail(sent, "timeout", f"no whole answer within {self._timeout_s:g} s")
        except (aiohttp.ClientError, OSError) as error:
            _fail(sent, _kind(error), f"{type(error).__name__}: {error}")
        except asyncio.CancelledError:
            sent.outcome = CANCELLED
            raise
        finally:
            sent.over_s = self.clock()
            _take(sent, reader, has_ended=has_ended)
        if self._is_gateway and sent.route == UNKNOWN and sent.request_id is not None:
            await self._ask_route(sent)

    async def _read(self, response: aiohttp.ClientResponse, reader: AnswerReader) -> None:
        # To the body's very end, past [DONE]: a connection that is left before it cannot be used again.
        take, feed, clock = response.content.readany, reader.feed, self.clock
        while data := await take():
            feed(data, clock())

    async def _ask_route(self, sent: Sent) -> None:
        """A gateway that had to open a stream before the route was known has it in the request's story."""
        story = await self._get(f"/prfaas/requests/{sent.request_id}")
        if isinstance(story, dict) and isinstance(story.get("route"), str):
            sent.route, sent.reason = story["route"], story.get("reason")

    async def _get(self, path: str) -> Any:
        """The JSON there; None if there is none."""
        try:
            async with asyncio.timeout(_STORY_TIMEOUT_S), self._session.get(f"{self._base}{path}") as response:
                return orjson.loads(await response.read()) if response.status == 200 else None
        except (aiohttp.ClientError, OSError, ValueError):
            return None


def _note(sent: Sent, response: aiohttp.ClientResponse) -> None:
    headers = response.headers
    sent.status = response.status
    sent.route = headers.get("x-prfaas-route", UNKNOWN)
    sent.reason = headers.get("x-prfaas-reason")
    sent.request_id = headers.get("x-request-id", sent.request_id)


async def _refused(sent: Sent, response: aiohttp.ClientResponse) -> None:
    raw = (await response.content.read(_MAX_ERROR_BYTES)).decode(errors="replace")
    try:
        sent.detail = said(orjson.loads(raw))
    except ValueError:
        sent.detail = said(raw)
    told = response.headers.get("retry-after")
    if response.status == 429 or (response.status == 503 and told is not None):
        sent.outcome, sent.retry_after_s = UNAVAILABLE, _seconds(told)
    else:
        sent.outcome, sent.failure = ERROR, f"http_{response.status}"


def _take(sent: Sent, reader: AnswerReader, *, has_ended: bool) -> None:
    """What its answer comes to. A whole answer is one even if its connection then did not end."""
    sent.first_token_s = reader.first_s
    sent.end_s = None if reader.first_s is None else reader.last_s
    sent.num_events, sent.counted_by = reader.num_events, reader.counted_by
    sent.output_tokens, sent.prompt_tokens = reader.output_tokens, reader.prompt_tokens
    if sent.status != 200:
        return
    if reader.error is not None:
        _fail(sent, "error_event", reader.error)
    elif reader.is_done and reader.first_s is not None:
        sent.outcome, sent.failure, sent.detail = OK, None, None
    elif reader.is_done:
        _fail(sent, "no_output", "the answer has no token")
    elif has_ended:
        _fail(sent, "cut", "the stream ended before [DONE]")


def _fail(sent: Sent, kind: str, detail: str) -> None:
    sent.outcome, sent.failure, sent.detail = ERROR, kind, " ".join(detail.split())[:300]


def _kind(error: BaseException) -> str:
    """`client`: nothing that the server did."""
    reason = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(reason, OSError) and reason.errno in _OWN_SHORTAGES:
        return "client"
    return "connect" if isinstance(error, aiohttp.ClientConnectorError) else "disconnected"


def _seconds(told: str | None) -> float | None:
    """Of a Retry-After in seconds; a date is not read."""
    try:
        seconds = float(told or "")
    except ValueError:
        return None
    return min(max(seconds, 0.0), 3600.0)
