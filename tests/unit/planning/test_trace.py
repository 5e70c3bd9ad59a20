"""Traces in the Mooncake format: uncached lengths, and every bad line refused by its number."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
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
        (line(512, [1, 2]), "2 hash_ids are too many for 512 tokens"), ("[" * 100_000, "line 2: not JSON"),
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


@given(st.lists(st.binary(max_size=60) | st.sampled_from([GOOD.encode(), b"{}", b"null"]), max_size=4))
def test_nothing_but_trace_errors(lines: list[bytes]) -> None:
    """Whatever is in a file."""
    with contextlib.suppress(TraceError):
        assert read_trace(lines)
