"""Trace context: what the W3C and B3 specifications accept, refuse and demand to be passed on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from prfaas.observe.trace_context import Format, TraceContext, begin, passed_on, read_trace_context

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
MINE = "1111111111111111"
FRESH = "f" * 32


def read(*headers: tuple[str, str]) -> TraceContext | None:
    """As the server hands headers over."""
    return read_trace_context([(name.lower().encode(), value.encode("latin-1")) for name, value in headers])


@pytest.mark.parametrize(
    ("text", "sampled", "random"),
    [
        (f"00-{TRACE}-{SPAN}-01", True, False),
        (f"00-{TRACE}-{SPAN}-00", False, False),
        (f"00-{TRACE}-{SPAN}-03", True, True),
        (f"00-{TRACE}-{SPAN}-fe", False, True),
        (f" \t00-{TRACE}-{SPAN}-01 \t", True, False),
        (f"cc-{TRACE}-{SPAN}-01", True, False),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like", True, False),
        (f"01-{TRACE}-{SPAN}-01-", True, False),
    ],
)
def test_good_traceparents(text: str, sampled: bool, random: bool) -> None:
    """Also of later versions, which may be longer; of the flags two are known."""
    assert read(("traceparent", text)) == TraceContext(TRACE, SPAN, is_sampled=sampled, is_random=random)


@pytest.mark.parametrize(
    "text",
    [
        "", "00", f"00-{TRACE}-{SPAN}", f"00-{TRACE}-{SPAN}-", f"00-{TRACE}-{SPAN}-0", f"00-{TRACE}-{SPAN}-001",
        f"00-{TRACE}-{SPAN}-01-", f"00-{TRACE}-{SPAN}-01-x", f"00-{TRACE}-{SPAN}-01.", f"cc-{TRACE}-{SPAN}-01.what",
        f"ff-{TRACE}-{SPAN}-01", f"0-{TRACE}-{SPAN}-01", f"0x-{TRACE}-{SPAN}-01", f"000-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01", f"00-{TRACE[1:]}-{SPAN}-01", f"00-{TRACE}0-{SPAN}-01",
        f"00-{TRACE}-{SPAN[1:]}-01", f"00-{TRACE}-{SPAN}0-01", f"00-{TRACE.upper()}-{SPAN}-01", f"00-{TRACE}-{SPAN}-0X",
        f"00-{TRACE[:-1]}.-{SPAN}-01", f"00-{TRACE}-{SPAN[:-1]}.-01", f"00 {TRACE} {SPAN} 01", f"CC-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-\u00b21", f"00-{TRACE}-{SPAN}-01,00-{TRACE}-{SPAN}-01",
    ],
)  # fmt: skip
def test_bad_traceparents(text: str) -> None:
    """Count as absent, and their tracestate with them."""
    assert read(("traceparent", text), ("tracestate", "a=1")) is None


def test_two_traceparents_are_none() -> None:
    """Nobody knows which of them is meant."""
    assert read(("traceparent", f"00-{TRACE}-{SPAN}-01"), ("traceparent", f"00-{TRACE}-{SPAN}-01")) is None


@pytest.mark.parametrize(
    ("headers", "state"),
    [
        (["foo=1"], "foo=1"), (["foo=1,bar=2"], "foo=1,bar=2"), (["foo=1", "bar=2"], "foo=1,bar=2"),
        (["foo=1 \t , \t bar=2, "], "foo=1,bar=2"), (["", "foo=1", ""], "foo=1"), ([",,foo=1,,"], "foo=1"),
        ([f"{'z' * 256}=1"], f"{'z' * 256}=1"), ([f"{'t' * 241}@{'v' * 14}=1"], f"{'t' * 241}@{'v' * 14}=1"),
        (["3t@v=1"], "3t@v=1"), (["a_-*/1=~!"], "a_-*/1=~!"), ([f"a={'v' * 256}"], f"a={'v' * 256}"),
        ([",".join(f"k{i}=1" for i in range(32))], ",".join(f"k{i}=1" for i in range(32))),
        ([",".join(f"k{i}=1" for i in range(33))], ""), ([f"{'z' * 257}=1"], ""), ([f"{'t' * 242}@v=1"], ""),
        ([f"t@{'v' * 15}=1"], ""), (["t@=1"], ""), (["@v=1"], ""), (["a@b@c=1"], ""), (["foo"], ""), (["foo="], ""),
        (["=1"], ""), (["foo=1=2"], ""), (["FOO=1"], ""), (["foo =1"], ""), (["foo=bar\u00e4"], ""), (["foo=1,foo=2"], ""),
        (["foo=1", "foo=1"], ""), (["foo@=1,bar=2"], ""), ([f"a={'v' * 257}"], ""), (["a=\t1"], ""), (["1foo=1"], ""),
    ],
)  # fmt: skip
def test_tracestate(headers: list[str], state: str) -> None:
    """Several are one list; a broken one is dropped whole, and traceparent stays."""
    context = read(("traceparent", f"00-{TRACE}-{SPAN}-01"), *(("tracestate", text) for text in headers))
    assert context is not None
    assert (context.trace_id, context.state) == (TRACE, state)


B3_CASES = [
    (f"{TRACE}-{SPAN}-1", TRACE, True), (f"{TRACE}-{SPAN}-0", TRACE, False), (f"{TRACE}-{SPAN}-d", TRACE, True),
    (f"{TRACE}-{SPAN}", TRACE, None), (f"{TRACE}-{SPAN}-1-{MINE}", TRACE, True),
    (f"{SPAN}-{SPAN}-1", "0" * 16 + SPAN, True), (f"{TRACE.upper()}-{SPAN}-1", TRACE, True),
]  # fmt: skip


@pytest.mark.parametrize(("text", "trace_id", "sampled"), B3_CASES)
def test_good_b3_in_one_header(text: str, trace_id: str, sampled: bool | None) -> None:
    """Short trace ids are filled up with zeros; a decision may be missing."""
    is_debug = text.split("-")[2:3] == ["d"]
    expected = TraceContext(trace_id, SPAN, is_sampled=sampled, is_debug=is_debug, format=Format.B3_SINGLE)
    assert read(("b3", text)) == expected


@pytest.mark.parametrize(("text", "trace_id", "sampled"), B3_CASES)
def test_good_b3_in_several_headers(text: str, trace_id: str, sampled: bool | None) -> None:
    """The same, spelled out."""
    ids = dict(zip(("X-B3-TraceId", "X-B3-SpanId", "X-B3-Sampled", "X-B3-ParentSpanId"), text.split("-"), strict=False))
    is_debug = ids.get("X-B3-Sampled") == "d"
    if is_debug:
        del ids["X-B3-Sampled"]
        ids["X-B3-Flags"] = "1"
    expected = TraceContext(trace_id, SPAN, is_sampled=sampled, is_debug=is_debug, format=Format.B3_MULTI)
    assert read(*ids.items()) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "2", "x", TRACE, f"{TRACE}-", f"{TRACE}-{SPAN}-", f"{TRACE}-{SPAN}-2", f"{TRACE}-{SPAN}-1-", f"{TRACE}-{SPAN}-1-x",
        f"{TRACE}-{SPAN}-1-{MINE}-0", f"{'0' * 32}-{SPAN}-1", f"{TRACE}-{'0' * 16}-1", f"{TRACE[1:]}-{SPAN}-1",
        f"{TRACE}-{SPAN[1:]}-1", f"-{SPAN}-1",
    ],
)  # fmt: skip
def test_bad_b3(text: str) -> None:
    """Counts as absent."""
    assert read(("b3", text)) is None


@pytest.mark.parametrize(
    "headers",
    [{"X-B3-TraceId": TRACE}, {"X-B3-SpanId": SPAN}, {"X-B3-TraceId": "x", "X-B3-SpanId": SPAN}, {"X-B3-Sampled": "x"}],
)
def test_b3_with_half_of_its_headers(headers: dict[str, str]) -> None:
    """Counts as absent too."""
    assert read(*headers.items()) is None


@pytest.mark.parametrize(
    ("header", "sampled"),
    [(("b3", "0"), False), (("b3", "1"), True), (("b3", "d"), True), (("X-B3-Sampled", "0"), False),
     (("X-B3-Sampled", "true"), True), (("X-B3-Flags", "1"), True)],
)  # fmt: skip
def test_a_decision_without_ids_holds_for_the_trace_that_begins(header: tuple[str, str], sampled: bool) -> None:
    """B3 may say no more than whether to sample."""
    context = begin(read(header), FRESH, MINE, 0.0 if sampled else 1.0)
    assert (context.trace_id, context.span_id, context.parent_id, context.is_sampled) == (FRESH, MINE, "", sampled)


def test_one_request_has_one_context() -> None:
    """traceparent before b3 before X-B3-*; a broken one gives way to the next."""
    w3c, single = ("traceparent", f"00-{TRACE}-{SPAN}-01"), ("b3", f"{FRESH}-{SPAN}-0")
    multi = [("X-B3-TraceId", "a" * 32), ("X-B3-SpanId", SPAN)]
    contexts = [read(w3c, single, *multi), read(("traceparent", "00"), single, *multi), read(("b3", "x"), *multi)]
    assert [context and context.trace_id for context in contexts] == [TRACE, FRESH, "a" * 32]
    assert read(("authorization", "Bearer x")) is None


def test_children_name_their_trace_and_their_parent() -> None:
    """Ids are told apart by name and attempt, and follow from the parent's alone."""
    mine = begin(read(("traceparent", f"00-{TRACE}-{SPAN}-03"), ("tracestate", "a=1")), FRESH, MINE, 0.0)
    assert (mine.trace_id, mine.span_id, mine.parent_id) == (TRACE, MINE, SPAN)
    children = [mine.child("prefill"), mine.child("decode"), mine.child("decode", 1)]
    assert len({child.span_id for child in children}) == 3
    assert mine.child("decode", 1) == children[2]
    for child in children:
        assert child.parent_id == MINE
        assert child.headers() == {"traceparent": f"00-{TRACE}-{child.span_id}-03", "tracestate": "a=1"}


@pytest.mark.parametrize(
    "header", [("b3", f"{TRACE}-{SPAN}-1"), ("b3", f"{TRACE}-{SPAN}-d"), ("b3", f"{TRACE}-{SPAN}-0")]
)
@pytest.mark.parametrize("form", ["single", "multi"])
def test_a_caller_of_b3_is_passed_on_in_both_languages(header: tuple[str, str], form: str) -> None:
    """Engines read traceparent; what is behind them may read B3. Both say the same."""
    trace_id, span_id, decision = header[1].split("-")
    headers = [header]
    if form == "multi":
        said = ("X-B3-Flags", "1") if decision == "d" else ("X-B3-Sampled", decision)
        headers = [("X-B3-TraceId", trace_id), ("X-B3-SpanId", span_id), said]
    child = begin(read(*headers), FRESH, MINE, 1.0).child("prefill")
    written = child.headers()
    assert written.pop("traceparent") == f"00-{TRACE}-{child.span_id}-0{int(decision != '0')}"
    again = read(*written.items())
    assert again is not None
    assert (again.trace_id, again.span_id, again.is_sampled) == (child.trace_id, child.span_id, child.is_sampled)
    assert (again.is_debug, again.format) == (child.is_debug, child.format)


def test_without_spans_b3_is_translated_and_w3c_left_alone() -> None:
    """An undecided caller stays undecided, which traceparent cannot say."""
    caller = read(("b3", f"{TRACE}-{SPAN}-1"))
    assert caller is not None
    assert passed_on(caller) == {"traceparent": f"00-{TRACE}-{SPAN}-01"}
    for text in (f"{TRACE}-{SPAN}", "0"):
        caller = read(("b3", text))
        assert caller is not None
        assert passed_on(caller) == {}
    assert passed_on(TraceContext(TRACE, SPAN, is_sampled=True)) == {}


def test_a_share_of_new_traces_is_sampled() -> None:
    """By the digits of the id, so that every process that knows the ratio decides alike."""
    low, high = "a" * 16 + "0" * 15 + "1", "a" * 16 + "f" * 16
    assert [begin(None, low, MINE, ratio).is_sampled for ratio in (0.0, 0.1, 1.0)] == [False, True, True]
    assert [begin(None, high, MINE, ratio).is_sampled for ratio in (0.0, 0.9, 1.0)] == [False, False, True]


hex_digits = st.text("0123456789abcdef", min_size=0, max_size=33)
nearly = st.builds(
    "{}-{}-{}-{}{}".format, st.sampled_from(["00", "01", "ff", "cc"]), st.just(TRACE) | hex_digits,
    st.just(SPAN) | hex_digits, st.sampled_from(["00", "01", "ff", "1", "zz"]), st.sampled_from(["", "-", "-x", "x"]),
)  # fmt: skip


@given(nearly)
def test_opentelemetry_reads_traceparent_alike(text: str) -> None:
    """Its propagator is the yardstick for what other processes will make of the same header."""
    theirs = trace.get_current_span(TraceContextTextMapPropagator().extract({"traceparent": text})).get_span_context()
    ours = read(("traceparent", text))
    assert (ours is not None) == theirs.is_valid
    if ours is not None:
        assert (int(ours.trace_id, 16), int(ours.span_id, 16)) == (theirs.trace_id, theirs.span_id)
        assert ours.is_sampled == theirs.trace_flags.sampled


@given(st.lists(st.tuples(st.sampled_from(["traceparent", "tracestate", "b3", "x-b3-traceid", "x-b3-spanid", "x-b3-sampled"]),
                          st.text(st.characters(max_codepoint=255), max_size=80)), max_size=6))  # fmt: skip
def test_any_headers_are_read_or_ignored(headers: list[tuple[str, str]]) -> None:
    """Nothing raises, and what is written can be read again."""
    context = read(*headers)
    if context is not None and context.trace_id:
        assert read(*begin(context, FRESH, MINE, 1.0).headers().items()) is not None
