"""`prfaas bench e2e`: what is read from an answer's stream, however the network cuts it."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas.bench.e2e.answers import TOGETHER_S, AnswerReader
from prfaas.sim.engine import Gaps

USAGE = {"prompt_tokens": 12, "completion_tokens": 3}
DONE = b"data: [DONE]\n\n"


def event(content: Any) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def text(piece: str, **more: Any) -> bytes:
    return event({"choices": [{"index": 0, "text": piece, **more}]})


def delta(**fields: Any) -> bytes:
    return event({"choices": [{"index": 0, "delta": fields, "finish_reason": None}]})


def read(*arrivals: tuple[float, bytes], keeps: bool = False) -> tuple[AnswerReader, Gaps]:
    gaps = Gaps()
    reader = AnswerReader(gaps, keeps=keeps)
    for at_s, data in arrivals:
        reader.feed(data, at_s)
    return reader, gaps


def test_times_are_those_of_events_with_output() -> None:
    """Neither comments, nor usage, nor the end; events that arrive together have no wait between them."""
    reader, gaps = read(
        (0.5, b": keep-alive\n\n"), (1.0, text("a")), (1.5, text("b") + text("c")),
        (2.0, event({"choices": [], "usage": USAGE}) + DONE),
    )  # fmt: skip
    assert (reader.first_s, reader.last_s, reader.num_events, reader.is_done) == (1.0, 1.5, 3, True)
    assert (reader.output_tokens, reader.counted_by, reader.prompt_tokens) == (3, "usage", 12)
    assert gaps.percentile_s(50) == TOGETHER_S
    assert gaps.percentile_s(99) == 0.5


def test_a_chats_opening_and_closing_are_no_tokens() -> None:
    """A role without text, a reason without text; thoughts and tool calls are."""
    reader, _ = read(
        (1.0, delta(role="assistant", content="")), (2.0, delta(reasoning_content="hm")), (3.0, delta(content="x")),
        (4.0, delta(tool_calls=[{"index": 0}])), (5.0, delta()), (6.0, DONE), keeps=True,
    )  # fmt: skip
    assert (reader.first_s, reader.last_s, reader.num_events) == (2.0, 4.0, 3)
    assert "".join(reader.text) == "x"


def test_a_completions_token_may_have_no_text() -> None:
    """Half of a letter, or a special token: engines send an event with empty text for it."""
    reader, _ = read((1.0, text("")), (2.0, text("é")))
    assert (reader.first_s, reader.num_events) == (1.0, 2)


def test_tokens_are_counted_by_ids_where_nobody_says_usage() -> None:
    """An event may carry several; else each event is one."""
    reader, _ = read((1.0, text("ab", token_ids=[1, 2])), (2.0, text("c", token_ids=[3])), keeps=True)
    assert "".join(reader.text) == "abc"
    assert (reader.output_tokens, reader.counted_by, reader.token_ids) == (3, "token_ids", [1, 2, 3])
    reader, _ = read((1.0, text("ab")), (2.0, text("c")))
    assert (reader.output_tokens, reader.counted_by) == (2, "events")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (event({"error": {"message": "the engine broke off"}}) + DONE, "the engine broke off"),
        (b"data: {\n\n", "not JSON"),
        (b"data: 7\n\n", "not a JSON object"),
        (b"data: " + b"x" * (2 << 20), "a line of more than 1 MiB"),
    ],
)
def test_what_is_no_stream_is_told(data: bytes, message: str) -> None:
    """An error that comes inside of an answer too."""
    reader, _ = read((1.0, data))
    assert reader.error is not None
    assert message in reader.error


@given(cuts=st.lists(st.integers(0, 400), max_size=12), newline=st.sampled_from([b"\n", b"\r\n"]))
def test_cuts_of_the_network_change_nothing_but_times(cuts: list[int], newline: bytes) -> None:
    """Byte by byte or at once: as many events, the same counts."""
    stream = b"".join(
        [b": hello\n\n", text("a", token_ids=[4]), text("", token_ids=[5, 6]), event({"choices": [], "usage": USAGE}), DONE]
    ).replace(b"\n", newline)  # fmt: skip
    places = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    arrivals = [(float(n), stream[a:b]) for n, (a, b) in enumerate(pairwise(places)) if a < b]
    reader, _ = read(*arrivals, keeps=True)
    assert (reader.num_events, reader.output_tokens, reader.token_ids, reader.is_done) == (2, 3, [4, 5, 6], True)
    assert reader.error is None
