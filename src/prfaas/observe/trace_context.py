"""Trace context of a request, as headers carry it: W3C Trace Context and B3, read and written. Pure.

Laws of this file:
- A header that breaks its specification counts as absent. A broken `tracestate` does not take `traceparent` with it.
- `traceparent` wins over `b3`, and `b3` over `X-B3-*`: one request has one context.
- What is written has a `traceparent`, and B3 too where the caller spoke it. A caller's `tracestate` is passed on.
- Ids of spans follow from the id of the span above them, so nobody needs to remember which id an engine was told.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

#: Headers of all formats, in lower case.
TRACE_HEADERS: Final = frozenset({
    b"traceparent", b"tracestate",
    b"b3", b"x-b3-traceid", b"x-b3-spanid", b"x-b3-parentspanid", b"x-b3-sampled", b"x-b3-flags",
})  # fmt: skip
#: W3C Trace Context, section 3.3.1.1: a longer list may be dropped whole.
MAX_STATE_MEMBERS: Final = 32

_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_STATE_MEMBER: Final = re.compile(
    r"([a-z][a-z0-9_\-*/]{0,255}|[a-z0-9][a-z0-9_\-*/]{0,240}@[a-z][a-z0-9_\-*/]{0,13})"
    r"=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)
_B3_TRACE_ID: Final = re.compile(r"[0-9a-f]{16}|[0-9a-f]{32}")
_B3_SPAN_ID: Final = re.compile(r"[0-9a-f]{16}")
_B3_SAMPLED: Final = {"1": True, "true": True, "d": True, "0": False, "false": False}


class Format(StrEnum):
    """Which headers a caller used."""

    W3C = "w3c"
    B3_SINGLE = "b3"
    B3_MULTI = "x-b3"


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A span and the trace it belongs to. Ids are lower-case hex, 32 and 16 digits; `parent_id` is empty where a trace
    begins. A caller may send no ids and still decide whether to sample, and ids without that decision (None)."""

    trace_id: str = ""
    span_id: str = ""
    parent_id: str = ""
    is_sampled: bool | None = None
    is_debug: bool = False
    is_random: bool = False
    state: str = ""
    format: Format = Format.W3C

    def child(self, name: str, attempt: int = 0) -> TraceContext:
        """The context of a span below this one. `attempt` counts spans of the same name from 0."""
        digest = hashlib.sha256(f"{self.trace_id}-{self.span_id}-{name}-{attempt}".encode("ascii")).hexdigest()
        return replace(self, span_id=digest[:16], parent_id=self.span_id)

    def headers(self) -> dict[str, str]:
        """What tells the next process that this span is the one above its own. Needs ids."""
        sampled = bool(self.is_sampled)
        flags = sampled | self.is_random << 1
        written = {"traceparent": f"00-{self.trace_id}-{self.span_id}-{flags:02x}"}
        if self.state:
            written["tracestate"] = self.state
        if self.format is Format.B3_SINGLE:
            decision = "d" if self.is_debug else "1" if sampled else "0"
            written["b3"] = "-".join(filter(None, [self.trace_id, self.span_id, decision, self.parent_id]))
        elif self.format is Format.B3_MULTI:
            written |= {"x-b3-traceid": self.trace_id, "x-b3-spanid": self.span_id}
            written |= {"x-b3-flags": "1"} if self.is_debug else {"x-b3-sampled": "1" if sampled else "0"}
            if self.parent_id:
                written["x-b3-parentspanid"] = self.parent_id
        return written


def read_trace_context(headers: Iterable[tuple[bytes, bytes]]) -> TraceContext | None:
    """What the caller says of its span; None if it says nothing that can be used. Names are in lower case."""
    found: dict[str, list[str]] = {}
    for name, value in headers:
        if name in TRACE_HEADERS:
            found.setdefault(name.decode("ascii"), []).append(value.decode("latin-1").strip(" \t"))
    if not found:
        return None
    # Of a header that may come once only, two are as bad as none.
    once = {name: values[0] for name, values in found.items() if len(values) == 1}
    return _w3c(once, found.get("tracestate", [])) or _b3_single(once) or _b3_multi(once)


def begin(caller: TraceContext | None, trace_id: str, span_id: str, sample_ratio: float) -> TraceContext:
    """The context of a request's own span. It goes on with the caller's trace, or begins one named `trace_id`, whose
    digits must be random. Who has decided on sampling is followed; otherwise `sample_ratio` of all traces are."""
    if caller is None:
        caller = TraceContext()
    if caller.trace_id:
        mine = replace(caller, span_id=span_id, parent_id=caller.span_id)
    else:
        mine = replace(caller, trace_id=trace_id, span_id=span_id, is_random=True)
    if mine.is_sampled is None:
        mine = replace(mine, is_sampled=int(mine.trace_id[16:], 16) < sample_ratio * 2**64)
    return mine


def passed_on(caller: TraceContext) -> dict[str, str]:
    """For a process that makes no spans: a B3 caller's context for engines that read W3C only; else nothing to add."""
    if caller.format is Format.W3C or not caller.trace_id or caller.is_sampled is None:
        return {}
    return {"traceparent": caller.headers()["traceparent"]}


def _w3c(once: Mapping[str, str], states: list[str]) -> TraceContext | None:
    match = _TRACEPARENT.fullmatch(once.get("traceparent", ""))
    if match is None:
        return None
    version, trace_id, span_id, flags, rest = match.groups()
    if version == "ff" or (version == "00" and rest is not None) or not (int(trace_id, 16) and int(span_id, 16)):
        return None
    bits = int(flags, 16)
    return TraceContext(
        trace_id, span_id, is_sampled=bool(bits & 1), is_random=bool(bits & 2), state=_state(",".join(states))
    )


def _state(text: str) -> str:
    members = [member for part in text.split(",") if (member := part.strip(" \t"))]
    keys = {member.partition("=")[0] for member in members}
    good = all(_STATE_MEMBER.fullmatch(member) for member in members)
    return ",".join(members) if good and len(members) <= MAX_STATE_MEMBERS and len(keys) == len(members) else ""


def _b3_single(once: Mapping[str, str]) -> TraceContext | None:
    parts = once.get("b3", "").lower().split("-")
    if len(parts) == 1:
        return _decision(parts[0], Format.B3_SINGLE) if parts[0] in ("0", "1", "d") else None
    if len(parts) > 4 or (len(parts) > 2 and parts[2] not in ("0", "1", "d")):
        return None
    if len(parts) == 4 and not _is_b3_id(_B3_SPAN_ID, parts[3]):
        return None
    return _b3(parts[0], parts[1], parts[2] if len(parts) > 2 else "", Format.B3_SINGLE)


def _b3_multi(once: Mapping[str, str]) -> TraceContext | None:
    fields = {name.removeprefix("x-b3-"): value.lower() for name, value in once.items() if name.startswith("x-b3-")}
    decision = "d" if fields.get("flags") == "1" else fields.get("sampled", "")
    if "traceid" not in fields and "spanid" not in fields:
        return _decision(decision, Format.B3_MULTI) if decision in _B3_SAMPLED else None
    return _b3(fields.get("traceid", ""), fields.get("spanid", ""), decision, Format.B3_MULTI)


def _b3(trace_id: str, span_id: str, decision: str, form: Format) -> TraceContext | None:
    if not (_is_b3_id(_B3_TRACE_ID, trace_id) and _is_b3_id(_B3_SPAN_ID, span_id)):
        return None
    return replace(_decision(decision, form), trace_id=trace_id.rjust(32, "0"), span_id=span_id)


def _decision(decision: str, form: Format) -> TraceContext:
    return TraceContext(is_sampled=_B3_SAMPLED.get(decision), is_debug=decision == "d", format=form)


def _is_b3_id(pattern: re.Pattern[str], text: str) -> bool:
    return pattern.fullmatch(text) is not None and int(text, 16) != 0
