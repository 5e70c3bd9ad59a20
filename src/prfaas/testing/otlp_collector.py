"""A collector of OpenTelemetry spans: OTLP over HTTP, protobuf, on loopback. Needs opentelemetry-proto."""

from __future__ import annotations

import gzip
import http.server
import threading
from types import TracebackType
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

#: Nobody's test waits longer for an answer that is held back.
MAX_HOLD_S = 30.0


class Collector(http.server.ThreadingHTTPServer):
    """Listens while its `with` block runs, and keeps the spans of every batch that it accepts. `status` is what it
    answers; it answers nothing while `may_answer` is not set."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.spans: list[Span] = []
        self.resources: list[dict[str, Any]] = []
        self.num_asked = 0
        self.status = 200
        self.may_answer = threading.Event()
        self.may_answer.set()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> Collector:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.may_answer.set()
        self.shutdown()
        self._thread.join()
        self.server_close()

    def take(self, body: bytes) -> None:
        """One ExportTraceServiceRequest."""
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append(attributes(resource.resource))
            for scope in resource.scope_spans:
                self.spans += scope.spans


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        good = self.path == "/v1/traces" and self.headers["content-type"] == "application/x-protobuf"
        self.server.num_asked += 1
        self.server.may_answer.wait(MAX_HOLD_S)
        status = self.server.status if good else 400
        if status == 200:
            self.server.take(gzip.decompress(body) if self.headers["content-encoding"] == "gzip" else body)
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def attributes(owner: Any) -> dict[str, Any]:
    """Of a span or a resource, as plain values."""
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in owner.attributes}
