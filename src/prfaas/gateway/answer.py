"""One attempt to have a decode engine answer a client.

Laws of this file:
- UpstreamDown and DecodeFailed are raised only while the client has seen nothing of this attempt's answer.
- An engine's own refusal (4xx) goes to the client as it is, or wrapped into OpenAI's shape.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import aiohttp
import orjson

from prfaas.gateway.api.errors import ApiError
from prfaas.gateway.api.http import JSON, Response
from prfaas.gateway.api.openai import ApiRequest
from prfaas.gateway.api.streaming import EventStream, StreamCut, completion_tokens
from prfaas.gateway.fleet import Instance
from prfaas.gateway.story import Story
from prfaas.gateway.upstream.clients import MAX_ERROR_BODY_BYTES, Engines, UpstreamDown

logger = logging.getLogger("prfaas.gateway")


class DecodeFailed(Exception):
    """The engine answered with a server error."""


async def _nothing() -> None: ...


class Answer:
    """`on_first` is called when the first byte of a good answer has come."""

    def __init__(
        self,
        engines: Engines,
        response: Response,
        request: ApiRequest,
        story: Story,
        decode: Instance,
        headers: dict[str, str],
        stream: EventStream | None,
        on_first: Callable[[], None],
    ) -> None:
        self._engines = engines
        self._response = response
        self._request = request
        self._story = story
        self._decode = decode
        self._headers = headers
        self._stream = stream
        self._on_first = on_first
        self._has_begun = False

    async def send(
        self, body: bytes, *, spare_server_errors: bool = False, before_whole: Callable[[], Awaitable[None]] = _nothing
    ) -> None:
        """Relay one answer. `spare_server_errors`: raise DecodeFailed for 5xx instead of showing it; `before_whole` is
        awaited before the headers of an answer that is not streamed."""
        url = self._decode.engine_url + self._decode.dialect.paths[self._request.endpoint]
        with self._decode.busy():
            reply = await self._engines.send(url, body, self._headers)
            try:
                if reply.status != 200:
                    await self._refusal(reply, spare_server_errors)
                elif self._stream is not None and reply.content_type == "text/event-stream":
                    await self._relay(reply, self._stream)
                else:
                    await self._whole(reply, before_whole)
            finally:
                # Does nothing to a connection whose answer was read to its end; ends the engine's work otherwise.
                reply.close()

    async def _relay(self, reply: aiohttp.ClientResponse, stream: EventStream) -> None:
        try:
            tail = await stream.relay(reply.content.iter_any(), self._first)
        except (aiohttp.ClientError, OSError, StreamCut) as error:
            self._broken(reply, error)
            raise ApiError(502, "the engine broke off in the middle of its answer", code="upstream_cut") from error
        self._story.completion_tokens = completion_tokens(tail)
        await stream.quiesce()
        await self._response.end()

    async def _whole(self, reply: aiohttp.ClientResponse, before_whole: Callable[[], Awaitable[None]]) -> None:
        try:
            body = await reply.read()
        except (aiohttp.ClientError, OSError) as error:
            raise self._broken(reply, error) from error
        self._first()
        self._story.completion_tokens = completion_tokens(body)
        await before_whole()
        await self._settle_stream()
        if self._response.started:
            # Asked to stream, kept alive with comments, and then answered with plain JSON: as one event it is legal.
            await self._response.end(b"data: " + body.replace(b"\n", b" ") + b"\n\ndata: [DONE]\n\n")
        else:
            await self._response.whole(200, body, reply.headers.get("content-type", "application/json").encode())

    async def _refusal(self, reply: aiohttp.ClientResponse, spare_server_errors: bool) -> None:
        try:
            body = await reply.content.read(MAX_ERROR_BODY_BYTES)
            while not reply.content.at_eof() and len(body) < MAX_ERROR_BODY_BYTES:
                body += await reply.content.read(MAX_ERROR_BODY_BYTES)
        except (aiohttp.ClientError, OSError) as error:
            raise self._broken(reply, error) from error
        if reply.status >= 500 and spare_server_errors:
            raise DecodeFailed(f"status {reply.status}: {body[:200].decode('utf-8', 'replace')}")
        self._story.error = body[:200].decode("utf-8", "replace")
        await self._settle_stream()
        shaped = _openai_error(reply.status, body)
        if self._response.started:
            await self._response.end(b"data: " + shaped + b"\n\ndata: [DONE]\n\n")
            return
        retry_after = reply.headers.get("retry-after")
        extra = [(b"retry-after", retry_after.encode("latin-1"))] if retry_after else []
        await self._response.whole(reply.status, shaped, JSON, extra)

    def _first(self) -> None:
        self._has_begun = True
        self._on_first()

    async def _settle_stream(self) -> None:
        if self._stream is not None:
            await self._stream.quiesce()

    def _broken(self, reply: aiohttp.ClientResponse, error: Exception) -> UpstreamDown:
        """Raises UpstreamDown if the client has seen nothing of this answer; logs otherwise."""
        down = UpstreamDown(f"{reply.url}: {type(error).__name__} {error}".rstrip())
        if not self._has_begun:
            raise down from error
        logger.warning("answer cut request_id=%s error=%s", self._story.request_id, down)
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
