"""Reading a completion's events."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas.profiles.measure.stream import MAX_LINE_BYTES, BadStream, Event, EventReader, Usage, said

WHOLE = (
    b": a comment\n\n"
    b'data: {"choices": [{"text": "\xc3\xa4"}], "usage": null}\r\n\r\n'
    b'data:{"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2,'
    b' "prompt_tokens_details": {"cached_tokens": 3}}}\n\n'
    b"data: [DONE]\n\n"
)
EVENTS = [Event(has_output=True), Event(usage=Usage(7, 2, 3)), Event(is_end=True)]


@given(st.lists(st.integers(0, len(WHOLE)), max_size=8))
def test_events_do_not_depend_on_how_the_network_cut_them(cuts: list[int]) -> None:
    """Wherever it did."""
    reader = EventReader()
    edges = [0, *sorted(cuts), len(WHOLE)]
    pieces = [WHOLE[a:b] for a, b in pairwise(edges)]
    assert [event for piece in pieces for event in reader.feed(piece)] == EVENTS


def test_byte_by_byte() -> None:
    """The same events."""
    reader = EventReader()
    assert [event for byte in WHOLE for event in reader.feed(bytes([byte]))] == EVENTS


@pytest.mark.parametrize("data", [b"5", b"[1]", b"null", b"{", b"", b'"x"', b"\xff"])
def test_what_is_not_an_object_is_refused(data: bytes) -> None:
    """With a sentence, not with whatever Python would raise."""
    with pytest.raises(BadStream, match="not a JSON object"):
        list(EventReader().feed(b"data: " + data + b"\n"))


@pytest.mark.parametrize("usage", [b"3", b'"x"', b"[]", b'{"prompt_tokens": "7", "completion_tokens": true}'])
def test_odd_counts_are_no_counts(usage: bytes) -> None:
    """A number that is none is as good as not told."""
    (event,) = EventReader().feed(b'data: {"choices": [], "usage": ' + usage + b"}\n")
    assert event.usage in (None, Usage())


def test_an_error_in_the_stream_is_told() -> None:
    """In the server's own words."""
    with pytest.raises(BadStream, match="the server failed: out of blocks"):
        list(EventReader().feed(b'data: {"error": {"message": "out of\\n blocks", "code": 500}}\n'))


def test_a_line_without_end_is_refused() -> None:
    """Before it fills the memory."""
    reader = EventReader()
    half = b"x" * (MAX_LINE_BYTES // 2 + 1)
    assert list(reader.feed(half)) == []
    with pytest.raises(BadStream, match="more than 1 MiB"):
        list(reader.feed(half))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"error": {"message": "a\nb"}}, "a b"),
        ({"error": "plain"}, "plain"),
        ({"message": "old", "code": 400}, "old"),
        ({"detail": "x"}, "{'detail': 'x'}"),
        ("text", "text"),
        (["l"], "['l']"),
        ("y" * 1000, "y" * 300),
    ],
)
def test_errors_of_every_shape_are_one_short_line(body: object, expected: str) -> None:
    """OpenAI's, vLLM's older one, FastAPI's, a proxy's page."""
    assert said(body) == expected
