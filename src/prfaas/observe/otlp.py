"""Sends spans to an OpenTelemetry collector over OTLP/HTTP. Only this module knows OpenTelemetry (the extra `otel`).

Laws of this file:
- `offer` neither waits nor raises: what does not fit into the queue is dropped and counted.
- One thread folds, encodes and sends. A collector that is slow or away costs spans, never a request.
- Every span that was offered is counted once: as exported, or as dropped with a reason.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import Final

from prfaas import __version__
from prfaas.core.errors import PrfaasError
from prfaas.observe.metrics import Metrics
from prfaas.observe.spans import RequestTrace, Span, spans_of

try:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExportResult
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState
except ImportError as missing:
    raise PrfaasError(
        "gateway.telemetry.otlp_endpoint needs OpenTelemetry; install it with: pip install 'prfaas[otel]'"
    ) from missing

logger = logging.getLogger("prfaas.otlp")

#: About 1 KiB each; at hundreds of requests per second, some seconds of a collector's absence.
MAX_QUEUED_REQUESTS: Final = 2_048
#: Seven spans a request: a batch of these is about 1 MiB, and collectors take 4 MiB and more.
MAX_BATCH_REQUESTS: Final = 256
#: How long the first request of a batch waits for others.
FLUSH_EVERY_S: Final = 1.0
#: Longest attempt to send a batch, its repetitions included.
EXPORT_TIMEOUT_S: Final = 10.0

_KINDS: Final = {"server": SpanKind.SERVER, "client": SpanKind.CLIENT, "internal": SpanKind.INTERNAL}
_SCOPE: Final = InstrumentationScope("prfaas", __version__)


class OtlpExporter:
    """Owned by one process, from `start` to `close`. `endpoint` is a collector's base URL; headers, certificates and
    compression are taken from the environment (OTEL_EXPORTER_OTLP_HEADERS and so on)."""

    def __init__(
        self, endpoint: str, metrics: Metrics, service_name: str, instance_id: str, *,
        max_queued: int = MAX_QUEUED_REQUESTS, flush_every_s: float = FLUSH_EVERY_S,
        timeout_s: float = EXPORT_TIMEOUT_S,
    ) -> None:  # fmt: skip
        self._endpoint = endpoint
        self._metrics = metrics
        self._max_queued = max_queued
        self._flush_every_s = flush_every_s
        self._exporter = OTLPSpanExporter(endpoint=f"{endpoint}/v1/traces", timeout=timeout_s)
        self._resource = Resource.create(
            {"service.name": service_name, "service.version": __version__, "service.instance.id": instance_id}
        )
        self._queue: deque[RequestTrace] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="prfaas-otlp", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def offer(self, trace: RequestTrace) -> None:
        """Send the spans of a request some time; any thread."""
        with self._changed:
            if not self._closing and len(self._queue) < self._max_queued:
                self._queue.append(trace)
                if len(self._queue) in (1, MAX_BATCH_REQUESTS):
                    self._changed.notify()
                return
        self._drop("queue_full", 1 + len(trace.phases))

    def close(self, timeout_s: float) -> None:
        """Send what is queued, for at most `timeout_s`; what is left then is dropped."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        # Ends the repetitions of a batch that is being sent.
        self._exporter.shutdown()  # type: ignore[no-untyped-call]
        with self._changed:
            left = sum(1 + len(trace.phases) for trace in self._queue)
            self._queue.clear()
        if left:
            self._drop("closed", left)

    def _run(self) -> None:
        while batch := self._take():
            spans = [span for trace in batch for span in self._fold(trace)]
            if not spans:
                continue
            if self._send(spans):
                self._metrics.counter("prfaas_spans_exported_total").inc(len(spans))
            else:
                self._drop("export_failed", len(spans))

    def _take(self) -> list[RequestTrace]:
        """The next batch; waits for it. Empty once closed and drained."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing)
            end_s = time.monotonic() + self._flush_every_s
            while not self._closing and len(self._queue) < MAX_BATCH_REQUESTS and time.monotonic() < end_s:
                self._changed.wait(end_s - time.monotonic())
            return [self._queue.popleft() for _ in range(min(len(self._queue), MAX_BATCH_REQUESTS))]

    def _fold(self, trace: RequestTrace) -> list[ReadableSpan]:
        try:
            return [self._readable(span) for span in spans_of(trace)]
        except Exception:
            # One request's defect must cost neither the others' spans nor the thread.
            logger.exception("no spans can be made of request_id=%s", trace.request_id)
            self._drop("defect", 1 + len(trace.phases))
            return []

    def _send(self, spans: list[ReadableSpan]) -> bool:
        try:
            sent = self._exporter.export(spans) is SpanExportResult.SUCCESS
        except Exception:
            logger.exception("spans cannot be sent to %s", self._endpoint)
            sent = False
        if sent is self._failing:
            self._failing = not sent
            text = "spans reach %s again" if sent else "spans do not reach %s; they are dropped until it answers"
            logger.warning(text, self._endpoint)
        return sent

    def _drop(self, reason: str, count: int) -> None:
        self._metrics.counter("prfaas_spans_dropped_total", reason=reason).inc(count)

    def _readable(self, span: Span) -> ReadableSpan:
        context = span.context
        state = TraceState.from_header([context.state]) if context.state else TraceState()
        flags = TraceFlags(TraceFlags.SAMPLED)
        trace_id, is_top = int(context.trace_id, 16), span.kind == "server"
        parent = SpanContext(trace_id, int(context.parent_id, 16), is_top, flags) if context.parent_id else None
        status = Status() if span.error is None else Status(StatusCode.ERROR, span.error)
        return ReadableSpan(
            span.name,
            context=SpanContext(
                trace_id, int(context.span_id, 16), is_remote=False, trace_flags=flags, trace_state=state
            ),
            parent=parent,
            resource=self._resource,
            attributes=dict(span.attributes),
            kind=_KINDS[span.kind],
            status=status,
            start_time=span.start_unix_ns,
            end_time=span.end_unix_ns,
            instrumentation_scope=_SCOPE,
        )
