"""One attempt to have a decode engine answer a client.

Laws of this file:
- UpstreamDown and ServerError are raised only while the client has seen nothing of this attempt's answer.
- An engine's own refusal (4xx) goes to the client as it is, or wrapped into OpenAI's shape.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import aiohttp
import orjson

from prfaas.gateway.api.errors import ApiError
from prfaas.gateway.api.http import JSON, Response
from prfaas.gateway.api.streaming import EventStream, StreamCut, completion_tokens
from prfaas.gateway.upstream.clients import MAX_ERROR_BODY_BYTES, Engines, UpstreamDown

logger = logging.getLogger("prfaas.gateway")

#: So much of an engine's error goes into story and log.
MAX_SHOWN_ERROR_BYTES: Final = 200


class ServerError(Exception):
    """The engine answered with a server error."""


@dataclass(frozen=True, slots=True)
class Answered:
    """What the client was given. `error` is what the engine said when it refused."""

    completion_tokens: int | None = None
    error: str | None = None


class Answer:
    """`on_first` is called when the first byte of a good answer has come and was sent on, before `send` ends;
    `before_whole` is awaited before the headers of an answer that is not streamed."""

    def __init__(
        self,
        response: Response,
        stream: EventStream | None,
        on_first: Callable[[], None],
        before_whole: Callable[[], Awaitable[None]],
    ) -> None:
        self._response = response
        self._stream = stream
        self._on_first = on_first
        self._before_whole = before_whole
        self._has_begun = False
        self._begins: asyncio.Handle | None = None

    async def send(
        self, engines: Engines, url: str, body: bytes, headers: dict[str, str], *, spare_server_errors: bool
    ) -> Answered:
        """Relay one answer. With `spare_server_errors` a 5xx is raised and not shown. Raises ApiError for an answer
        that breaks off in its middle."""
        reply = await engines.send(url, body, headers)
        try:
            if reply.status != 200:
                return await self._refusal(reply, spare_server_errors)
            if self._stream is not None and reply.content_type == "text/event-stream":
                return await self._relay(reply, self._stream)
            return await self._whole(reply)
        finally:
            # One that was read to its end has been closed, and its connection waits for the next.
            if not reply.closed:
                reply.close()
            self._begin()

    async def _relay(self, reply: aiohttp.ClientResponse, stream: EventStream) -> Answered:
        try:
            tail = await stream.relay(reply.content, self._first)
        except (aiohttp.ClientError, OSError, StreamCut) as error:
            down = self._broken(reply, error)
            logger.warning("answer cut: %s", down)
            raise ApiError(502, "the engine broke off in the middle of its answer", code="upstream_cut") from error
        if not self._response.ended:
            await stream.quiesce()
            await self._response.end()
        return Answered(completion_tokens(tail))

    async def _whole(self, reply: aiohttp.ClientResponse) -> Answered:
        try:
            body = await reply.read()
        except (aiohttp.ClientError, OSError) as error:
            raise self._broken(reply, error) from error
        self._first()
        await self._before_whole()
        await self._settle_stream()
        if self._response.started:
            # Asked to stream, kept alive with comments, and then answered with plain JSON: as one event it is legal.
            await self._response.end(b"data: " + body.replace(b"\n", b" ") + b"\n\ndata: [DONE]\n\n")
        else:
            await self._response.whole(200, body, reply.headers.get("content-type", "application/json").encode())
        return Answered(completion_tokens(body))

    async def _refusal(self, reply: aiohttp.ClientResponse, spare_server_errors: bool) -> Answered:
        try:
            body = await reply.content.read(MAX_ERROR_BODY_BYTES)
            while not reply.content.at_eof() and len(body) < MAX_ERROR_BODY_BYTES:
                body += await reply.content.read(MAX_ERROR_BODY_BYTES)
        except (aiohttp.ClientError, OSError) as error:
            raise self._broken(reply, error) from error
        shown = body[:MAX_SHOWN_ERROR_BYTES].decode("utf-8", "replace")
        if reply.status >= 500 and spare_server_errors:
            raise ServerError(f"status {reply.status}: {shown}")
        await self._settle_stream()
        shaped = _openai_error(reply.status, body)
        if self._response.started:
            await self._response.end(b"data: " + shaped + b"\n\ndata: [DONE]\n\n")
        else:
            retry_after = reply.headers.get("retry-after")
            extra = [(b"retry-after", retry_after.encode("latin-1"))] if retry_after else []
            await self._response.whole(reply.status, shaped, JSON, extra)
        return Answered(error=shown)

    def _first(self) -> None:
        self._has_begun = True
        # What follows from it shall not hold up the bytes, which leave at the end of the event loop's turn.
        self._begins = asyncio.get_running_loop().call_soon(self._begin)

    def _begin(self) -> None:
        handle, self._begins = self._begins, None
        if handle is not None:
            handle.cancel()
            self._on_first()

    async def _settle_stream(self) -> None:
        if self._stream is not None:
            await self._stream.quiesce()

    def _broken(self, reply: aiohttp.ClientResponse, error: Exception) -> UpstreamDown:
        """Raises UpstreamDown if the client has seen nothing of this answer; returns it otherwise."""
        down = UpstreamDown(f"{reply.url}: {type(error).__name__} {error}".rstrip())
        if not self._has_begun:
            raise down from error
        return down


def _openai_error(status: int, body: bytes) -> bytes:
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        answer = None
    if isinstance(answer, dict) and isinstance(answer.get("error"), dict):
        return orjson.dumps(answer)
    message = answer.get("message") if isinstance(answer, dict) else None
    text = message if isinstance(message, str) else body[:500].decode("utf-8", "replace")
    return ApiError(status, text or f"the engine answered {status}", code="upstream_error").body()
