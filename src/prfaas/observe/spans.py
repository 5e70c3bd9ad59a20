"""Spans of a finished request: one for the request, one below it for each phase. Pure; `otlp` sends them.

Laws of this file:
- Spans are folded from what is known at the end, never opened and closed on the way: a request does not wait for them
  and cannot leave one open.
- Ids follow from the request's own span (`TraceContext.child`): the n-th phase of a name has the id that the engine of
  that phase was told.
- Phases may overlap, as prefill and transfer do. No span ends before it starts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Literal

from prfaas.observe.trace_context import TraceContext

Value = str | int | float | bool
Attributes = Mapping[str, Value]


class PhaseName(StrEnum):
    """Parts of a request's life, as docs/gateway.md lists them."""

    TOKENIZE = "tokenize"
    QUEUE = "queue"
    RESERVE = "reserve"
    PREFILL = "prefill"
    TRANSFER = "transfer"
    DECODE = "decode"


#: Phases in which another process is called; the others are spent here or wait for it.
CALLS: Final = frozenset({PhaseName.RESERVE, PhaseName.PREFILL, PhaseName.DECODE})


@dataclass(frozen=True, slots=True)
class Phase:
    """One part of a request's life. Seconds since `began_unix_ns` of its request; `error` says why it failed."""

    name: PhaseName
    start_s: float
    end_s: float
    attributes: Attributes = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True, slots=True)
class RequestTrace:
    """A finished request. `trace_context` is that of its own span; `name` is what was asked for, as `POST /path`."""

    request_id: str
    trace_context: TraceContext
    began_unix_ns: int
    duration_s: float
    phases: Sequence[Phase]
    status: Literal["ok", "error"]
    name: str = "request"
    error: str | None = None
    attributes: Attributes = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Span:
    """`error` is None unless the span's status is error; the text may be empty."""

    name: str
    context: TraceContext
    kind: Literal["server", "client", "internal"]
    start_unix_ns: int
    end_unix_ns: int
    attributes: Attributes
    error: str | None


def spans_of(trace: RequestTrace) -> list[Span]:
    """The request's span and then those of its phases, in order."""
    failed = (trace.error or "") if trace.status == "error" else None
    attributes = {**trace.attributes, "prfaas.request_id": trace.request_id}
    spans = [_span(trace, trace.name, trace.trace_context, "server", 0.0, trace.duration_s, attributes, failed)]
    attempts: Counter[str] = Counter()
    for phase in trace.phases:
        context = trace.trace_context.child(phase.name, attempts[phase.name])
        attempts[phase.name] += 1
        kind: Literal["client", "internal"] = "client" if phase.name in CALLS else "internal"
        spans.append(_span(trace, phase.name, context, kind, phase.start_s, phase.end_s, phase.attributes, phase.error))
    return spans


def _span(
    trace: RequestTrace,
    name: str,
    context: TraceContext,
    kind: Literal["server", "client", "internal"],
    start_s: float,
    end_s: float,
    attributes: Attributes,
    error: str | None,
) -> Span:
    start_ns = trace.began_unix_ns + round(start_s * 1e9)
    end_ns = max(start_ns, trace.began_unix_ns + round(end_s * 1e9))
    return Span(str(name), context, kind, start_ns, end_ns, attributes, error)
