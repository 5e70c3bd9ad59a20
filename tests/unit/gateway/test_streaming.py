"""Events are relayed whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas.gateway.api.http import Response
from prfaas.gateway.api.streaming import EventStream, StreamCut, completion_tokens, is_done, split_events
from prfaas.testing.gateway_rig import until


@pytest.mark.parametrize(
    ("data", "whole", "held"),
    [
        (b"", b"", b""),
        (b"data: 1\n\n", b"data: 1\n\n", b""),
        (b"data: 1\n\ndata: 2", b"data: 1\n\n", b"data: 2"),
        (b"data: 1\n", b"", b"data: 1\n"),
        (b"data: 1\r\n\r\nda", b"data: 1\r\n\r\n", b"da"),
        (b"data: 1\r\n\r\n", b"data: 1\r\n\r\n", b""),
        (b"data: 1\r\rda", b"data: 1\r\r", b"da"),
        (b"\n\nx", b"\n\n", b"x"),
        (b"d", b"", b"d"),
    ],
)
def test_split(data: bytes, whole: bytes, held: bytes) -> None:
    """At the last event's end."""
    assert split_events(data) == (whole, held)


def test_an_event_without_end_is_cut() -> None:
    """Memory is bounded."""
    assert split_events(b"x" * 10, max_held_bytes=10) == (b"", b"x" * 10)
    with pytest.raises(StreamCut):
        split_events(b"x" * 11, max_held_bytes=10)


class Sink:
    """Collects what an response sends; checks that each write ends an event."""

    def __init__(self) -> None:
        self.body = b""

    async def __call__(self, message: Any) -> None:
        chunk = message.get("body", b"")
        assert not chunk or chunk.endswith(b"\n\n"), chunk
        self.body += chunk


class Chunks:
    """A source of what an iterator gives; `ends_with` is the last chunk, if its end comes with it."""

    def __init__(self, chunks: AsyncIterator[bytes], ends_with: bytes | None = None) -> None:
        self._chunks, self._ends_with, self._last = chunks, ends_with, b""

    async def readany(self) -> bytes:
        """As the iterator has it."""
        self._last = await anext(self._chunks, b"")
        return self._last

    def at_eof(self) -> bool:
        """Right after the last chunk."""
        return self._last in (self._ends_with, b"")


async def _each(parts: list[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


@given(st.lists(st.text(alphabet='ab:"{}', max_size=12), max_size=12), st.lists(st.integers(0, 200), max_size=20))
def test_any_cut_of_a_stream_is_relayed_unchanged_in_whole_events(texts: list[str], cuts: list[int]) -> None:
    """Whole, byte by byte, or anything between."""
    data = "".join(f"data: {text}\n\n" for text in texts).encode() + b"data: [DONE]\n\n"
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    parts = [data[a:b] for a, b in pairwise(edges) if a < b]

    async def main() -> None:
        sink, firsts = Sink(), []
        stream = EventStream(Response(sink), 60.0)
        await stream.relay(Chunks(_each(parts)), lambda: firsts.append(1))
        assert sink.body == data
        assert firsts == [1]

    asyncio.run(main())


@pytest.mark.parametrize(
    "end",
    [
        b"data: [DONE]\n\n",
        b"data:[DONE]\n\n",
        b"data: [DONE]\r\n\r\n",
        b"data: [DONE]\r\r",
        b"data: [DONE]\n",
        b"data: [DONE]",
    ],
)
def test_a_stream_ends_with_its_last_event_however_it_is_written(end: bytes) -> None:
    """Also without the empty line behind it: the client gets one."""

    async def main() -> None:
        sink = Body()
        await EventStream(Response(sink), 60.0).relay(Chunks(_each([b"data: 1\n\n", end])), lambda: None)
        assert is_done(sink.body)
        assert sink.body.endswith((b"\n\n", b"\r\n\r\n", b"\r\r"))

    asyncio.run(main())


@pytest.mark.parametrize(
    "last",
    [b'data: {"text":"data: [DONE]"}\n\n', b"data: [DONE] no\n\n", b"event: x\ndata: 1\n\n", b": data: [DONE]\n\n"],
)
def test_a_text_about_the_end_is_no_end(last: bytes) -> None:
    """A stream that breaks off behind it was cut."""

    async def main() -> None:
        with pytest.raises(StreamCut):
            await EventStream(Response(Body()), 60.0).relay(Chunks(_each([last])), lambda: None)

    asyncio.run(main())


class Body:
    """Collects what a response sends."""

    def __init__(self) -> None:
        self.body = b""

    async def __call__(self, message: Any) -> None:
        self.body += message.get("body", b"")


def test_an_engines_own_comments_are_not_its_first_token() -> None:
    """TTFT is about events."""

    async def main() -> None:
        order: list[str] = []
        stream = EventStream(Response(Sink()), 60.0)

        async def chunks() -> AsyncIterator[bytes]:
            yield b": keep-alive\n\n"
            order.append("comment")
            yield b"data: 1\n\ndata: [DONE]\n\n"

        await stream.relay(Chunks(chunks()), lambda: order.append("first"))
        assert order == ["comment", "first"]

    asyncio.run(main())


def test_nothing_follows_the_last_event() -> None:
    """Also while the engine takes its time to end its answer: comments keep alive what goes on."""

    async def main() -> None:
        sink = Sink()
        stream = EventStream(Response(sink), 0.01)

        async def chunks() -> AsyncIterator[bytes]:
            await until(lambda: bool(sink.body))
            yield b"data: 1\n\ndata: [DONE]\n\n"
            await asyncio.sleep(0.05)

        stream.arm()
        await stream.relay(Chunks(chunks()), lambda: None)
        assert sink.body.startswith(b": keep-alive\n\n")
        assert sink.body.endswith(b"data: 1\n\ndata: [DONE]\n\n")

    asyncio.run(main())


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        (b'data: {"choices":[],"usage":{"completion_tokens":7}}\n\ndata: [DONE]\n\n', 7),
        (b'{"usage":{"completion_tokens":3}}', 3),
        (b'data: {"usage":null}\n\ndata: [DONE]\n\n', None),
        (b'oken":1,"usage":{"completion_tokens":7}}\n\n', None),
        (b"data: [DONE]\n\n", None),
        (b'data: ["usage"]\n\n', None),
    ],
)
def test_usage_is_read_from_the_end(tail: bytes, expected: int | None) -> None:
    """None when it is not there or cut."""
    assert completion_tokens(tail) == expected


@pytest.mark.parametrize("is_over", [True, False])
def test_the_last_event_ends_the_response_if_the_engine_has_ended_its_answer(is_over: bool) -> None:
    """Otherwise it goes out alone, and the end follows the engine's."""
    sent: list[tuple[bytes, bool]] = []

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            sent.append((message["body"], message["more_body"]))

    async def main() -> None:
        response = Response(send)
        parts = [b"data: 1\n\n", b"data: [DONE]\n\n"]
        source = Chunks(_each(parts), parts[-1] if is_over else None)
        await EventStream(response, 60.0).relay(source, lambda: None)
        assert sent == [(parts[0], True), (parts[1], not is_over)]
        assert response.ended is is_over

    asyncio.run(main())
