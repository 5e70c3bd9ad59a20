"""Raw ASGI: reading a bounded body, and one response that is started once and always ended."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from prfaas.gateway.api.errors import ApiError

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

JSON: Final = b"application/json"
EVENT_STREAM: Final = b"text/event-stream; charset=utf-8"


class ClientGone(Exception):
    """The client went away before its request was whole."""


def headers_of(scope: Scope) -> dict[bytes, bytes]:
    """Request headers, names in lower case; of repeated ones the last."""
    return dict(scope["headers"])


async def read_body(receive: Receive, headers: dict[bytes, bytes], max_body: int, take: Callable[[int], None]) -> bytes:
    """The whole body. Raises ApiError 413 before buffering more than `max_body` bytes, and what `take` raises, which is
    told of each piece's bytes."""
    declared = headers.get(b"content-length", b"")
    if declared.isdigit() and int(declared) > max_body:
        raise _too_large(max_body)
    message = await receive()
    body = _part(message)
    num_bytes = len(body)
    take(num_bytes)
    parts = [body]
    while message.get("more_body", False) and num_bytes <= max_body:
        message = await receive()
        parts.append(_part(message))
        take(len(parts[-1]))
        num_bytes += len(parts[-1])
    if num_bytes > max_body:
        raise _too_large(max_body)
    return body if len(parts) == 1 else b"".join(parts)


def check_content_type(headers: dict[bytes, bytes]) -> None:
    """Raises ApiError 415 unless it is JSON. A page in a browser may send anything else to any address without asking,
    and so have a gateway on the reader's own machine generate."""
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind != JSON and not (kind.startswith(b"application/") and kind.endswith(b"+json")):
        raise ApiError(415, "content-type must be application/json", code="content_type")


def _part(message: Message) -> bytes:
    if message["type"] == "http.disconnect":
        raise ClientGone
    part: bytes = message.get("body", b"")
    return part


def _too_large(max_body: int) -> ApiError:
    return ApiError(413, f"the body is larger than {max_body} bytes", code="body_too_large")


class Response:
    """One response. `headers` may grow until `start`; later additions are silently too late, by design."""

    __slots__ = ("_send", "ended", "headers", "started", "status")

    def __init__(self, send: Send, headers: list[tuple[bytes, bytes]] | None = None) -> None:
        self._send = send
        self.headers: list[tuple[bytes, bytes]] = headers or []
        self.started = False
        self.ended = False
        self.status = 0

    def set_header(self, name: bytes, value: str) -> None:
        """Set or replace one header; characters that a header cannot carry become `?`."""
        clean = value.encode("latin-1", "replace").replace(b"\r", b" ").replace(b"\n", b" ")
        self.headers = [pair for pair in self.headers if pair[0] != name]
        self.headers.append((name, clean))

    async def start(self, status: int, content_type: bytes, extra: list[tuple[bytes, bytes]] | None = None) -> None:
        assert not self.started, "a response starts once"
        self.started, self.status = True, status
        headers = [(b"content-type", content_type), *self.headers, *(extra or ())]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    def write(self, chunk: bytes) -> Awaitable[None]:
        """Send part of the body; waits while the client reads too slowly."""
        return self._send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def end(self, chunk: bytes = b"") -> None:
        self.ended = True
        await self._send({"type": "http.response.body", "body": chunk, "more_body": False})

    async def whole(
        self, status: int, body: bytes, content_type: bytes = JSON, extra: list[tuple[bytes, bytes]] | None = None
    ) -> None:
        length = (b"content-length", b"%d" % len(body))
        await self.start(status, content_type, [length, *(extra or ())])
        await self.end(body)

    async def error(self, error: ApiError) -> None:
        """Tell the client what went wrong, in whatever form the response's progress still allows."""
        if self.ended:
            return
        if not self.started:
            await self.whole(error.status, error.body(), extra=error.headers())
        else:
            await self.end(b"data: " + error.body() + b"\n\ndata: [DONE]\n\n")
