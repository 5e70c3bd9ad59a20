"""Relays server-sent events from an engine to a client.

Laws of this file:
- Whole events only go to the client, so that a comment or an error can be put between two of them at any time. An
  engine sends whole events, so this costs one suffix test per chunk; a cut one is held until its rest comes.
- While nothing comes, a comment goes out every `keep_alive_s`, from the moment the request was accepted until `[DONE]`.
- A stream never just stops: it ends with the engine's own `[DONE]`, or with an error event and ours. What ends it is an
  event of its own: the same letters inside a text are text.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

import orjson

from prfaas.gateway.api.http import EVENT_STREAM, Response

KEEP_ALIVE: Final = b": keep-alive\n\n"
DONE: Final = b"data: [DONE]"
LAST_EVENT: Final = DONE + b"\n\n"
#: All that the standard allows (HTML, 9.2.5).
_EVENT_ENDS: Final = (b"\n\n", b"\r\n\r\n", b"\r\r")
#: One event with prompt logprobs of a long prompt can be megabytes; more than this is not an event stream.
MAX_HELD_BYTES: Final = 64 << 20
#: A usage chunk is a few hundred bytes and stands just before `[DONE]`.
TAIL_BYTES: Final = 2048


class StreamCut(Exception):
    """The engine's stream ended without `[DONE]`."""


class Source(Protocol):
    """An answer's body as it comes, such as `aiohttp.StreamReader`."""

    async def readany(self) -> bytes:
        """Wait for something and take all that is there; empty at the end."""

    def at_eof(self) -> bool:
        """All has come and was taken."""


class EventStream:
    """One client's stream. `arm` it when the request is accepted and `disarm` it in a finally."""

    def __init__(self, response: Response, keep_alive_s: float) -> None:
        self._response = response
        self._keep_alive_s = keep_alive_s
        self._loop = asyncio.get_running_loop()
        self._last_write_s = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._comment: asyncio.Task[None] | None = None

    def arm(self) -> None:
        """Begin to watch for silence."""
        self._timer = self._loop.call_later(self._keep_alive_s, self._tick)

    def disarm(self) -> None:
        """Send no more comments."""
        self._stop_timer()
        if self._comment is not None:
            self._comment.cancel()

    async def quiesce(self) -> None:
        """Send no more comments, and wait for one that is on its way."""
        self._stop_timer()
        await self._settled()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    async def relay(self, source: Source, on_first: Callable[[], None]) -> bytes:
        """Send an engine's events on. The response ends with the last of them, if the source has ended too by then.
        Returns the last bytes. Raises StreamCut, or what `source` raises."""
        held = b""
        tail = b""
        first = True
        while chunk := await source.readany():
            whole, held = split_events(held + chunk if held else chunk)
            if not whole:
                continue
            if first and not whole.startswith(b":"):
                first = False
                on_first()
            ends = False
            if whole.endswith(LAST_EVENT):
                self._stop_timer()  # an engine may take its time to end the answer
                ends = source.at_eof()
            await self._pass_on(whole, ends=ends)
            tail = whole if len(whole) >= TAIL_BYTES else (tail + whole)[-TAIL_BYTES:]
        if is_done(held):  # without the empty line behind it
            await self._pass_on(LAST_EVENT, ends=False)
        elif not is_done(tail):
            raise StreamCut
        return tail

    async def _pass_on(self, whole: bytes, *, ends: bool) -> None:
        if self._comment is not None:
            await self._settled()
        if not self._response.started:
            await self._response.start(200, EVENT_STREAM)
        self._last_write_s = self._loop.time()
        await (self._response.end(whole) if ends else self._response.write(whole))

    async def _settled(self) -> None:
        comment, self._comment = self._comment, None
        if comment is not None:
            await asyncio.wait([comment])

    def _tick(self) -> None:
        silent_s = self._loop.time() - self._last_write_s
        if silent_s >= self._keep_alive_s:
            if self._comment is None or self._comment.done():
                self._comment = self._loop.create_task(self._send_comment())
            silent_s = 0.0
        self._timer = self._loop.call_later(self._keep_alive_s - silent_s, self._tick)

    async def _send_comment(self) -> None:
        if not self._response.started:
            await self._response.start(200, EVENT_STREAM)
        self._last_write_s = self._loop.time()
        await self._response.write(KEEP_ALIVE)


def split_events(data: bytes, max_held_bytes: int = MAX_HELD_BYTES) -> tuple[bytes, bytes]:
    """(whole events, the begun one after them). Raises StreamCut if the begun one is too long."""
    if data.endswith(b"\n\n"):
        return data, b""
    end = max(_end_of_last(data, mark) for mark in _EVENT_ENDS)
    if len(data) - end > max_held_bytes:
        raise StreamCut
    return data[:end], data[end:]


def is_done(tail: bytes) -> bool:
    """Whether the last line with anything in it is the event that ends a stream."""
    lines = tail.replace(b"\r", b"\n").rstrip(b"\n").rsplit(b"\n", 1)
    return lines[-1].replace(b" ", b"", 1) == DONE.replace(b" ", b"", 1)


def _end_of_last(data: bytes, mark: bytes) -> int:
    at = data.rfind(mark)
    return at + len(mark) if at >= 0 else 0


def completion_tokens(tail: bytes) -> int | None:
    """`usage.completion_tokens` of a stream's last events or of a whole answer, if it is there."""
    if b'"completion_tokens"' not in tail:
        return None
    for line in reversed(tail.split(b"\n")):
        if b'"usage"' not in line:
            continue
        try:
            usage = orjson.loads(line.removeprefix(b"data:").strip()).get("usage")
        except (orjson.JSONDecodeError, AttributeError):
            return None
        count = usage.get("completion_tokens") if isinstance(usage, dict) else None
        return count if isinstance(count, int) else None
    return None
