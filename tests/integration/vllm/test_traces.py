"""vLLM's own spans stand below the gateway's, because each engine was told the span of its phase."""

from __future__ import annotations

from pathlib import Path

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from prfaas.testing.node_pair import wait_until
from prfaas.testing.otlp_collector import Collector, attributes
from prfaas.testing.site import Site

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


def test_one_trace_shows_gateway_and_both_engines(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One span of vLLM below `prefill`, one below `decode`, all of one trace."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
    with Collector() as collector:
        arguments = ("--otlp-traces-endpoint", f"{collector.url}/v1/traces")
        gateway = {"telemetry": {"otlp_endpoint": collector.url}}
        with Site("qwen3-next", models=models, gateway=gateway, prefill_args=arguments, decode_args=arguments) as site:
            answer = site.ask(list(range(2, 202)), 4)
            assert site.story(answer)["route"] == "remote"

            def below(span: Span) -> dict[str, Span]:
                return {one.name: one for one in collector.spans if one.parent_span_id == span.span_id}

            def of_the_request() -> Span | None:
                return next(
                    (s for s in collector.spans if attributes(s).get("prfaas.request_id") == answer.request_id), None
                )

            top = wait_until(of_the_request)
            for phase in ("prefill", "decode"):
                engine = wait_until(lambda phase=phase: below(below(top)[phase]))  # type: ignore[misc]
                assert set(engine) == {"llm_request"}
                assert engine["llm_request"].trace_id == top.trace_id
