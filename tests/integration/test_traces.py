"""Traces from the gateway to a collector that speaks OTLP over HTTP: one tree per request, whatever becomes of it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from prometheus_client import CollectorRegistry

from prfaas.observe.metrics import Metrics, build
from prfaas.observe.otlp import OtlpExporter
from prfaas.observe.spans import Phase, PhaseName, RequestTrace
from prfaas.observe.trace_context import TraceContext
from prfaas.testing.gateway_rig import Rig, gateway_rig, until, write_tiny_model
from prfaas.testing.node_pair import wait_until
from prfaas.testing.otlp_collector import Collector, attributes

LONG = "a long prompt that goes to the other datacenter"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
W3C = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "vendor=1"}


@pytest.fixture
def collector() -> Iterator[Collector]:
    """Listens until the test ends."""
    with Collector() as collector:
        yield collector


def tree(collector: Collector, num_spans: int) -> tuple[Span, dict[str, Span]]:
    """The one span that has no parent here, and those below it by name. Waits for `num_spans`."""
    wait_until(lambda: len(collector.spans) >= num_spans)
    assert len(collector.spans) == num_spans, [span.name for span in collector.spans]
    ids = {span.span_id for span in collector.spans}
    (top,) = [span for span in collector.spans if span.parent_span_id not in ids]
    below = {span.name: span for span in collector.spans if span is not top}
    assert len(below) == num_spans - 1
    assert {span.parent_span_id for span in below.values()} == {top.span_id}
    assert {span.trace_id for span in collector.spans} == {top.trace_id}
    return top, below


def drive(tmp_path: Path, url: str, scenario: Callable[[Rig], Awaitable[None]], **telemetry: Any) -> None:
    """Run a scenario at a gateway whose spans go to `url`; returns when it has stopped."""
    write_tiny_model(tmp_path)
    settings = {"telemetry": {"otlp_endpoint": url, **telemetry}}

    async def main() -> None:
        async with asyncio.timeout(60), gateway_rig(tmp_path, gateway=settings) as rig:
            await scenario(rig)
            await until(lambda: rig.num_live_landings == 0)

    asyncio.run(main())


async def ask(rig: Rig, prompt: str = LONG, headers: dict[str, str] | None = None) -> int:
    """The status of a completion's answer, with the story closed."""
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 3}
    async with rig.session.post(f"{rig.url}/v1/completions", json=body, headers=headers) as reply:
        await reply.read()
        await rig.story(reply)
        return reply.status


def test_an_offloaded_request_is_one_trace(tmp_path: Path, collector: Collector) -> None:
    """The gateway's span is below the caller's, every phase below it, and each engine is told its phase's span."""

    async def scenario(rig: Rig) -> None:
        assert await ask(rig, headers=W3C) == 200
        (prefill,), (decode,) = rig.prefillers[0].seen, rig.decoders[0].seen
        top, below = await asyncio.to_thread(tree, collector, 7)
        assert set(below) == {"tokenize", "queue", "reserve", "prefill", "transfer", "decode"}
        assert (top.trace_id.hex(), top.parent_span_id.hex(), top.trace_state) == (TRACE, SPAN, "vendor=1")
        assert (top.name, top.kind, top.status.code) == ("POST /v1/completions", Span.SPAN_KIND_SERVER, 0)
        for seen, name in ((prefill, "prefill"), (decode, "decode")):
            assert seen.headers["traceparent"] == f"00-{TRACE}-{below[name].span_id.hex()}-01"
            assert seen.headers["tracestate"] == "vendor=1"
            assert below[name].kind == Span.SPAN_KIND_CLIENT
        told = attributes(top)
        assert told["prfaas.request_id"] == prefill.headers["x-request-id"]
        assert (told["prfaas.route"], told["prfaas.outcome"]) == ("remote", "ok")
        assert (told["gen_ai.usage.input_tokens"], told["http.response.status_code"]) == (len(LONG), 200)
        assert attributes(below["transfer"])["prfaas.kv_bytes_moved"] == (len(LONG) - 1) * 64
        assert attributes(below["prefill"]) == {"prfaas.instance": "prfaas-0"}
        assert attributes(below["decode"])["prfaas.tokens_recomputed"] == 1
        for span in below.values():
            assert top.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
            assert span.end_time_unix_nano <= top.end_time_unix_nano
        in_order = [below[name].start_time_unix_nano for name in ("tokenize", "queue", "reserve", "transfer", "decode")]
        assert in_order == sorted(in_order)
        assert below["transfer"].end_time_unix_nano <= below["decode"].start_time_unix_nano
        await until_metric(rig, "prfaas_spans_exported_total", 7)
        # Whoever reads the collector cannot load the landing.
        secret, transfer_id = decode.params["claim_secret"], decode.params["transfer_id"]
        assert not [word for word in (secret, transfer_id) if word in str(collector.spans)]

    drive(tmp_path, collector.url, scenario)
    (resource,) = collector.resources
    assert resource["service.name"] == "prfaas-gateway"


async def until_metric(rig: Rig, line: str, value: float) -> None:
    """Spans are counted after the collector has answered."""
    async with asyncio.timeout(20):
        # The exporter's thread counts, and wakes nobody.
        while await rig.metric(line) != value:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def test_a_trace_begins_here_if_nobody_began_it(tmp_path: Path, collector: Collector) -> None:
    """A short prompt has no transfer; its engine is told the trace all the same."""

    async def scenario(rig: Rig) -> None:
        assert await ask(rig, "short") == 200
        top, below = await asyncio.to_thread(tree, collector, 4)
        assert top.parent_span_id == b""
        assert set(below) == {"tokenize", "queue", "decode"}
        expected = f"00-{top.trace_id.hex()}-{below['decode'].span_id.hex()}-03"
        assert rig.decoders[0].seen[0].headers["traceparent"] == expected

    drive(tmp_path, collector.url, scenario)


def test_a_caller_that_speaks_b3_keeps_its_trace(tmp_path: Path, collector: Collector) -> None:
    """Engines get both languages."""

    async def scenario(rig: Rig) -> None:
        assert await ask(rig, headers={"X-B3-TraceId": TRACE, "X-B3-SpanId": SPAN, "X-B3-Sampled": "1"}) == 200
        top, below = await asyncio.to_thread(tree, collector, 7)
        assert (top.trace_id.hex(), top.parent_span_id.hex()) == (TRACE, SPAN)
        told = rig.prefillers[0].seen[0].headers
        assert told["traceparent"] == f"00-{TRACE}-{below['prefill'].span_id.hex()}-01"
        assert (told["x-b3-traceid"], told["x-b3-spanid"]) == (TRACE, below["prefill"].span_id.hex())
        assert (told["x-b3-parentspanid"], told["x-b3-sampled"]) == (top.span_id.hex(), "1")

    drive(tmp_path, collector.url, scenario)


def test_a_fallback_shows_what_failed_and_what_served(tmp_path: Path, collector: Collector) -> None:
    """The request is fine, its prefill is not, and nothing of the way not taken is invented."""

    async def scenario(rig: Rig) -> None:
        rig.prefillers[0].faults.prefill = "failed"
        assert await ask(rig) == 200
        top, below = await asyncio.to_thread(tree, collector, 7)
        assert (top.status.code, attributes(top)["prfaas.fallback_reason"]) == (0, "prefill_failed")
        assert below["transfer"].status.code == Status.STATUS_CODE_ERROR
        assert below["transfer"].status.message == "out of blocks"
        assert below["transfer"].end_time_unix_nano <= below["decode"].start_time_unix_nano
        assert below["decode"].status.code == 0

    drive(tmp_path, collector.url, scenario)


def test_each_attempt_to_decode_is_a_span(tmp_path: Path, collector: Collector) -> None:
    """The first broke before its first byte; each was told its own id."""

    async def scenario(rig: Rig) -> None:
        rig.decoders[0].faults.decode, rig.decoders[0].faults.remaining = "die", 1
        assert await ask(rig) == 200
        await asyncio.to_thread(wait_until, lambda: len(collector.spans) == 8)
        first, second = [span for span in collector.spans if span.name == "decode"]
        assert [first.status.code, second.status.code] == [Status.STATUS_CODE_ERROR, 0]
        told = [seen.headers["traceparent"].split("-")[2] for seen in rig.decoders[0].seen]
        assert told == [first.span_id.hex(), second.span_id.hex()]

    drive(tmp_path, collector.url, scenario)


def test_a_failed_request_is_a_span_of_status_error(tmp_path: Path, collector: Collector) -> None:
    """A client's mistake is none of ours."""

    async def scenario(rig: Rig) -> None:
        assert await ask(rig, 7) == 400  # type: ignore[arg-type]
        rig.decoders[0].faults.decode = "die"
        assert await ask(rig, "short") == 502
        await asyncio.to_thread(wait_until, lambda: len(collector.spans) == 6)
        mistake, failure = [span for span in collector.spans if span.kind == Span.SPAN_KIND_SERVER]
        assert (mistake.status.code, attributes(mistake)["prfaas.outcome"]) == (0, "client_error")
        assert (failure.status.code, attributes(failure)["prfaas.outcome"]) == (Status.STATUS_CODE_ERROR, "error")

    drive(tmp_path, collector.url, scenario)


def test_who_is_not_sampled_is_passed_on_and_not_sent(tmp_path: Path, collector: Collector) -> None:
    """A caller's no counts for all that follows, and so does a share of 0."""

    async def scenario(rig: Rig) -> None:
        assert await ask(rig, headers={"traceparent": f"00-{TRACE}-{SPAN}-00"}) == 200
        assert rig.prefillers[0].seen[0].headers["traceparent"].startswith(f"00-{TRACE}-")
        assert await ask(rig, "short") == 200
        assert [seen.headers["traceparent"][-2:] for seen in rig.decoders[0].seen] == ["00", "02"]
        assert await ask(rig, "short", headers=W3C) == 200
        top, _ = await asyncio.to_thread(tree, collector, 4)
        assert top.trace_id.hex() == TRACE

    drive(tmp_path, collector.url, scenario, sample_ratio=0.0)


def test_without_a_collector_context_goes_on_as_it_came(tmp_path: Path) -> None:
    """A process that makes no spans must not put itself between two others. B3 is told to engines in W3C's words too."""
    write_tiny_model(tmp_path)

    async def main() -> None:
        async with asyncio.timeout(30), gateway_rig(tmp_path) as rig:
            assert await ask(rig, headers=W3C) == 200
            assert await ask(rig, LONG.upper(), headers={"b3": f"{TRACE}-{SPAN}-1"}) == 200
            for engine in (rig.prefillers[0], rig.decoders[0]):
                assert {name: engine.seen[0].headers[name] for name in W3C} == W3C
                assert engine.seen[1].headers["b3"] == f"{TRACE}-{SPAN}-1"
                assert engine.seen[1].headers["traceparent"] == f"00-{TRACE}-{SPAN}-01"

    asyncio.run(main())


@pytest.mark.parametrize("trouble", ["refuses", "absent", pytest.param("hangs", marks=pytest.mark.slow)])
def test_a_collector_in_trouble_costs_spans_only(tmp_path: Path, collector: Collector, trouble: str) -> None:
    """Requests are answered while it refuses, is away or hangs; what it did not take is counted, also at the end."""
    url = collector.url
    metrics: Metrics | None = None
    if trouble == "refuses":
        collector.status = 400
    elif trouble == "absent":
        url = "http://127.0.0.1:9"
    else:
        collector.may_answer.clear()

    async def scenario(rig: Rig) -> None:
        nonlocal metrics
        metrics = rig.service.metrics
        for _ in range(3):
            assert await ask(rig, "short") == 200

    drive(tmp_path, url, scenario)
    assert metrics is not None
    # The gateway has stopped; a thread that was sending may count its batch a moment later.
    wait_until(lambda: dropped(metrics) == 3 * 4)
    assert total(metrics, "prfaas_spans_exported_total") == 0


def total(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(name, labels) or 0.0


def dropped(metrics: Metrics) -> float:
    """For whatever reason."""
    reasons = ("queue_full", "export_failed", "defect", "closed")
    return sum(total(metrics, "prfaas_spans_dropped_total", reason=reason) for reason in reasons)


def finished(number: int) -> RequestTrace:
    context = TraceContext("a" * 32, f"{number + 1:016x}", is_sampled=True)
    return RequestTrace(f"r{number}", context, 10**18, 1.0, [Phase(PhaseName.DECODE, 0.0, 1.0)], "ok")


def test_what_does_not_fit_the_queue_is_dropped_and_counted(collector: Collector) -> None:
    """And what fits is sent once the collector answers again, all of it before the end."""
    collector.may_answer.clear()
    metrics = build(CollectorRegistry(), "gateway")
    exporter = OtlpExporter(collector.url, metrics, "test", "1", max_queued=3, flush_every_s=0.0)
    exporter.start()
    exporter.offer(finished(0))
    wait_until(lambda: collector.num_asked == 1)
    for number in range(1, 6):
        exporter.offer(finished(number))
    assert total(metrics, "prfaas_spans_dropped_total", reason="queue_full") == 2 * 2
    collector.may_answer.set()
    exporter.close(20)
    assert {span.span_id.hex()[-1] for span in collector.spans if span.kind == Span.SPAN_KIND_SERVER} == set("1234")
    assert (total(metrics, "prfaas_spans_exported_total"), dropped(metrics)) == (8, 4)
    exporter.offer(finished(9))
    assert dropped(metrics) == 6, "a closed exporter takes nothing"


def test_one_broken_request_costs_its_own_spans_only(collector: Collector) -> None:
    """It is logged and counted, and the exporter lives on."""
    metrics = build(CollectorRegistry(), "gateway")
    exporter = OtlpExporter(collector.url, metrics, "test", "1", flush_every_s=0.0)
    exporter.start()
    exporter.offer(replace(finished(0), trace_context=TraceContext("no hex", "1")))
    wait_until(lambda: total(metrics, "prfaas_spans_dropped_total", reason="defect") == 2)
    exporter.offer(replace(finished(1), phases=[Phase(PhaseName.DECODE, 0.0, float("nan"))]))
    exporter.offer(finished(2))
    exporter.close(20)
    assert (len(collector.spans), dropped(metrics)) == (2, 4)


def test_without_the_extra_the_gateway_says_what_to_install(tmp_path: Path) -> None:
    """In one sentence, with status 2."""
    write_tiny_model(tmp_path)
    file = tmp_path / "deployment.yaml"
    file.write_text(
        f"""
model: {{name: tiny, path: {tmp_path}, max_model_tokens: 4096}}
clusters:
  pd: {{role: pd, endpoints: [{{engine: "http://127.0.0.1:9", kvnode: "http://127.0.0.1:10", lanes: "127.0.0.1:11"}}]}}
policy: {{kind: homogeneous}}
transfer: {{encryption: none}}
gateway: {{telemetry: {{otlp_endpoint: "http://127.0.0.1:9"}}}}
"""
    )
    program = "import sys; sys.modules['opentelemetry'] = None; from prfaas.cli.main import main; main()"
    ran = subprocess.run(
        [sys.executable, "-c", program, "gateway", str(file)], capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 2, ran.stderr
    assert "pip install 'prfaas[otel]'" in ran.stderr
    assert "Traceback" not in ran.stderr
