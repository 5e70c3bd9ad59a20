"""The fold of a finished request to spans."""

from __future__ import annotations

from prfaas.observe.spans import Phase, PhaseName, RequestTrace, spans_of
from prfaas.observe.trace_context import TraceContext

CONTEXT = TraceContext("a" * 32, "b" * 16, parent_id="c" * 16, is_sampled=True)
BEGAN_NS = 1_700_000_000_123_456_789


def traced(*phases: Phase, status: str = "ok", error: str | None = None) -> RequestTrace:
    return RequestTrace("req-1", CONTEXT, BEGAN_NS, 2.0, phases, status, "POST /v1/completions", error, {"n": 1})  # type: ignore[arg-type]


def test_a_request_is_a_span_and_each_phase_is_one_below_it() -> None:
    """Times are whole nanoseconds, phases may overlap, and calls of other processes are told apart."""
    request, tokenize, prefill, transfer = spans_of(
        traced(
            Phase(PhaseName.TOKENIZE, 0.0, 0.25), Phase(PhaseName.PREFILL, 0.5, 1.5, {"prfaas.instance": "west-0"}),
            Phase(PhaseName.TRANSFER, 0.5, 1.75),
        )
    )  # fmt: skip
    assert (request.context, request.kind, request.name) == (CONTEXT, "server", "POST /v1/completions")
    assert request.attributes == {"n": 1, "prfaas.request_id": "req-1"}
    assert (request.start_unix_ns, request.end_unix_ns) == (BEGAN_NS, BEGAN_NS + 2_000_000_000)
    assert [span.context.parent_id for span in (tokenize, prefill, transfer)] == [CONTEXT.span_id] * 3
    assert {span.context.trace_id for span in (tokenize, prefill, transfer)} == {CONTEXT.trace_id}
    assert [span.kind for span in (tokenize, prefill, transfer)] == ["internal", "client", "internal"]
    assert (prefill.start_unix_ns, prefill.end_unix_ns) == (BEGAN_NS + 500_000_000, BEGAN_NS + 1_500_000_000)
    assert prefill.attributes == {"prfaas.instance": "west-0"}
    assert request.error is None


def test_repeated_phases_have_the_ids_that_their_engines_were_told() -> None:
    """The n-th of a name is the n-th attempt."""
    spans = spans_of(traced(Phase(PhaseName.DECODE, 0, 1, error="broke"), Phase(PhaseName.DECODE, 1, 2)))
    assert [span.context for span in spans[1:]] == [CONTEXT.child("decode"), CONTEXT.child("decode", 1)]
    assert [span.error for span in spans] == [None, "broke", None]


def test_a_failed_request_says_why() -> None:
    """A status of error without a text is one all the same, and no span ends before it starts."""
    spans = spans_of(traced(Phase(PhaseName.DECODE, 1.0, 0.5), status="error"))
    assert [span.error for span in spans] == ["", None]
    assert spans[1].end_unix_ns == spans[1].start_unix_ns
    assert spans_of(traced(status="error", error="no healthy engine"))[0].error == "no healthy engine"
