"""A request's place in its caller's trace: headers for its engines while it runs, and a trace to export at its end.

This is where the gateway's story becomes a `RequestTrace`; nothing else of the gateway knows spans.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final, Protocol

from prfaas.deployment.model import Telemetry
from prfaas.gateway.api.http import Scope
from prfaas.observe.spans import Attributes, Phase, PhaseName, RequestTrace, Value
from prfaas.observe.story import Story
from prfaas.observe.trace_context import TRACE_HEADERS, TraceContext, begin, passed_on, read_trace_context

#: Outcomes that are the service's failure. A client that errs or leaves is none.
_FAILURES: Final = frozenset({"error", "timeout", "unavailable"})
#: Attributes of the request's span, by field of the story.
_REQUEST: Final = {
    "prompt_tokens": "gen_ai.usage.input_tokens", "completion_tokens": "gen_ai.usage.output_tokens",
    "status": "http.response.status_code", "outcome": "prfaas.outcome", "route": "prfaas.route",
    "reason": "prfaas.reason", "uncached_tokens": "prfaas.uncached_tokens", "skip_tokens": "prfaas.skip_tokens",
    "fallback_reason": "prfaas.fallback_reason", "decode_retried": "prfaas.decode_retried", "ttft_s": "prfaas.ttft_s",
}  # fmt: skip
_PREFILL: Final = {"prefill_instance": "prfaas.instance"}
_TRANSFER: Final = {
    "kv_bytes_expected": "prfaas.kv_bytes_expected", "kv_bytes_moved": "prfaas.kv_bytes_moved",
    "kv_bytes_resent": "prfaas.kv_bytes_resent", "landing_state": "prfaas.landing_state",
}  # fmt: skip
_DECODE: Final = {
    "decode_instance": "prfaas.instance", "tokens_loaded": "prfaas.tokens_loaded",
    "tokens_recomputed": "prfaas.tokens_recomputed",
}  # fmt: skip


class SpanSink(Protocol):
    """Takes finished requests; neither waits nor raises."""

    def offer(self, trace: RequestTrace) -> None: ...


class RequestTracing:
    """One request's. Made when its body has been read."""

    def __init__(
        self, scope: Scope, forwarded: dict[str, str], settings: Telemetry, sink: SpanSink | None, model: str
    ) -> None:
        self._name = f"{scope['method']} {scope['path']}"
        self._model = model
        self._sink = sink
        self._began_unix_ns = time.time_ns()
        self._began_s = time.monotonic()
        self._context: TraceContext | None = None
        self._attempts: dict[PhaseName, int] = {}
        self._decoding_s: list[float] = []
        came = _as_they_came(scope)
        caller = read_trace_context(scope["headers"]) if came else None
        if sink is None:
            self._headers = {**forwarded, **came, **({} if caller is None else passed_on(caller))}
        else:
            self._headers = forwarded
            self._context = begin(caller, secrets.token_hex(16), secrets.token_hex(8), settings.sample_ratio)

    def headers(self, phase: PhaseName) -> dict[str, str]:
        """For a request to an engine. Called once for each, when it is about to be sent."""
        if self._context is None:
            return self._headers
        attempt = self._attempts.get(phase, 0)
        context = self._context.child(phase, attempt)
        self._attempts[phase] = attempt + 1
        if phase is PhaseName.DECODE:
            self._decoding_s.append(time.monotonic() - self._began_s)
        return {**self._headers, **context.headers()}

    def finish(self, story: Story) -> None:
        """Nothing more will be learned of the request."""
        if self._sink is None or self._context is None or not self._context.is_sampled:
            return
        # Without the words that no client may learn: who reads a collector is not who reads the node's secrets.
        known = story.public()
        failed = story.outcome in _FAILURES
        self._sink.offer(
            RequestTrace(
                story.request_id,
                self._context,
                self._began_unix_ns,
                story.total_s or 0.0,
                phases_of(known, self._decoding_s),
                "error" if failed else "ok",
                self._name,
                known["error"] if failed else None,
                {"gen_ai.request.model": self._model, **_attributes(known, _REQUEST)},
            )
        )


def phases_of(story: Mapping[str, object], decoding_s: Sequence[float]) -> list[Phase]:
    """Phases of an ended request: from the marks of its story, and from when each request to a decode engine was sent.
    A phase that was not reached has no span; one that did not end has failed when the request fell back, or ended."""
    marks, total_s = story["phases_s"], story["total_s"]
    assert isinstance(marks, dict)
    end_s = total_s if isinstance(total_s, float) else 0.0
    given_up_s = marks.get("fell_back", end_s)
    detail = str(story["fallback_detail"] or "the request ended before this did")
    phases = []

    def add(name: PhaseName, after: str, *until: str, attributes: Attributes | None = None) -> None:
        start_s = 0.0 if not after else marks.get(after)
        if start_s is None:
            return
        stop_s = next((marks[mark] for mark in until if mark in marks), None)
        error = detail if stop_s is None else None
        phases.append(Phase(name, start_s, given_up_s if stop_s is None else stop_s, attributes or {}, error))

    if "tokenized" in marks:
        add(PhaseName.TOKENIZE, "", "tokenized")
        add(PhaseName.QUEUE, "tokenized", "routed")
    if story["prefill_instance"] is not None:
        add(PhaseName.RESERVE, "routed", "reserved")
        add(PhaseName.PREFILL, "reserved", "prefilled", "landed", attributes=_attributes(story, _PREFILL))
        add(PhaseName.TRANSFER, "reserved", "landed", attributes=_attributes(story, _TRANSFER))
    for start_s, stop_s in pairwise(decoding_s):
        phases.append(Phase(PhaseName.DECODE, start_s, stop_s, error="the engine broke off before its first byte"))
    for start_s in decoding_s[-1:]:
        phases.append(Phase(PhaseName.DECODE, start_s, end_s, _attributes(story, _DECODE)))
    return phases


def _attributes(story: Mapping[str, object], names: Mapping[str, str]) -> dict[str, Value]:
    found = ((name, story[field]) for field, name in names.items())
    return {name: value for name, value in found if isinstance(value, str | int | float)}


def _as_they_came(scope: Scope) -> dict[str, str]:
    return {name.decode(): value.decode("latin-1") for name, value in scope["headers"] if name in TRACE_HEADERS}
