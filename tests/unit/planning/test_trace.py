"""Traces in the Mooncake format: uncached lengths, and every bad line refused by its number."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prfaas.core.planning.trace import TraceError, read_trace


def line(tokens: int, hash_ids: list[int], **extra: object) -> str:
    return json.dumps({"timestamp": 1500, "input_length": tokens, "output_length": 7, "hash_ids": hash_ids, **extra})


def test_uncached_lengths_with_a_cache_that_never_forgets() -> None:
    """Whole blocks of the longest known prefix are subtracted; one token always remains."""
    trace = [line(1200, [1, 2, 3]), line(1300, [1, 2, 9]), line(1200, [1, 2, 3]), line(600, [7, 2]), line(512, [1])]
    requests = read_trace(trace)
    assert [request.uncached_tokens for request in requests] == [1200, 1300 - 1024, 1, 600, 1]
    assert (requests[0].arrival_s, requests[0].output_tokens) == (1.5, 7)


GOOD = line(1200, [1, 2, 3])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("", "line 2: empty"), ("   \n", "line 2: empty"), ("{", "line 2: not JSON"), ("[1]", "line 2: expected an object"),
        ("{}", "line 2: input_length is missing"), (line(0, []), "line 2: input_length must be 1 to"),
        (line(-5, []), "line 2: input_length must be 1 to"), (GOOD.replace("1200", '"1200"'), "must be a whole number"),
        (GOOD.replace("1200", "true"), "must be a whole number"), (GOOD.replace("1200", "12.5"), "must be a whole number"),
        (GOOD.replace("1200", "NaN"), "must be a whole number"), (GOOD.replace("1200", "1e30"), "input_length must be 1 to"),
        (GOOD.replace("1500", "-1"), "timestamp must be 0 to"), (GOOD.replace("7", "null"), "output_length is missing"),
        (GOOD.replace("[1, 2, 3]", '"x"'), "hash_ids must be a list"), (GOOD.replace("[1, 2, 3]", "[1.5]"), "hash_ids must be a list"),
        (line(512, [1, 2]), "2 hash_ids do not fit 512 tokens"), ("[" * 100_000, "line 2: not JSON"),
        (GOOD.replace('"timestamp": 1500, ', ""), "line 2: timestamp is missing"),
        (GOOD.replace('"output_length": 7, ', ""), "line 2: output_length is missing"),
        (GOOD.replace("1500", "false"), "timestamp must be a whole number"), (GOOD.replace("7", "-7"), "output_length must be 0 to"),
        (GOOD.replace("1500", "Infinity"), "timestamp must be a whole number"), (GOOD.replace("7", "1e400"), "output_length must be a whole number"),
        (GOOD.replace("1200", "9" * 400), "input_length must be 1 to"), (GOOD.replace("1200", "9" * 5000), "line 2: not JSON"),
        (GOOD.replace("[1, 2, 3]", "[1, true]"), "hash_ids must be a list"), (GOOD.replace("[1, 2, 3]", "null"), "hash_ids must be a list"),
        (GOOD.replace("[1, 2, 3]", "[[1]]"), "hash_ids must be a list"), ('{"a":' * 50_000, "line 2: not JSON"),
        ("null", "expected an object"), ('"text"', "expected an object"), ("\x00", "line 2: not JSON"), (GOOD + GOOD, "line 2: not JSON"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named(bad: str, message: str) -> None:
    """And nothing after it is read."""
    with pytest.raises(TraceError) as error:
        read_trace([GOOD, bad, "nonsense"])
    assert message in str(error.value)
    assert error.value.line == 2


def test_an_empty_trace_is_refused() -> None:
    """It has no lengths to plan for."""
    with pytest.raises(TraceError, match="empty"):
        read_trace([])


@pytest.mark.parametrize("bad", [b"\xff\xfe", b"\xef\xbb\xbf{", b"\x00{}", b'{"input_length": "\xed\xa0\x80"}'])
def test_bytes_that_are_no_text_are_named(bad: bytes) -> None:
    """Whatever encoding they pretend to be."""
    with pytest.raises(TraceError, match="line 2: "):
        read_trace([GOOD.encode(), bad])


@given(st.data())
def test_uncached_lengths_are_a_prefix_tree(data: st.DataObject) -> None:
    """With chained hashes, what is uncached is what no earlier request shares from its beginning on."""
    block = data.draw(st.integers(1, 5))
    seen: set[tuple[int, ...]] = set()
    lines, expected = [], []
    for _ in range(data.draw(st.integers(1, 8))):
        tokens = data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=20))
        prefixes = [tuple(tokens[: end + block]) for end in range(0, len(tokens), block)]
        known = 0
        while known < len(prefixes) and prefixes[known] in seen:
            known += 1
        seen.update(prefixes)
        lines.append(line(len(tokens), [hash(prefix) for prefix in prefixes]))
        expected.append(max(1, len(tokens) - known * block))
    assert [request.uncached_tokens for request in read_trace(lines, block_tokens=block)] == expected


WORDS = [
    b"{",
    b"}",
    b"[",
    b"]",
    b'"input_length":',
    b'"timestamp":',
    b'"output_length":7,',
    b'"hash_ids":',
    b",",
    b"1",
    b"-",
    b"e9",
    b"NaN",
    b"true",
    b'"',
    b"\\u",
    b"\xff",
]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(st.sampled_from(WORDS), max_size=12).map(b"".join), max_size=3))
def test_nothing_but_trace_errors_for_what_looks_like_json(lines: list[bytes]) -> None:
    """Pieces of good lines in any order."""
    with contextlib.suppress(TraceError):
        assert read_trace(lines)


@given(st.lists(st.binary(max_size=60) | st.sampled_from([GOOD.encode(), b"{}", b"null"]), max_size=4))
def test_nothing_but_trace_errors(lines: list[bytes]) -> None:
    """Whatever is in a file."""
    with contextlib.suppress(TraceError):
        assert read_trace(lines)
