"""The gateway between fake engines and nodes on real sockets: whatever breaks, the client's request succeeds, the
reason is told, and no landing stays behind."""

from __future__ import annotations

import asyncio
import json
import math
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from prfaas.core.control.events import NodeSeen
from prfaas.core.control.fallback import FallbackReason
from prfaas.core.model.layout import KVGroupKind
from prfaas.core.wire.node_api import VERSION
from prfaas.engines.dialect import EngineLoad
from prfaas.gateway.api.openai import ApiRequest
from prfaas.gateway.prompt.tokenize import PromptTokenizer
from prfaas.launch.addresses import free_ports
from prfaas.testing.fake_engine import EngineFaults
from prfaas.testing.gateway_rig import MODEL, Rig, gateway_rig, until, write_tiny_model

LONG = "a long prompt that goes to the other datacenter"
SHORT = "short"


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    """A model directory with a one-character tokenizer."""
    write_tiny_model(tmp_path)
    return tmp_path


def drive(model_dir: Path, scenario: Callable[[Rig], Awaitable[None]], **settings: Any) -> None:
    """Run a scenario; at its end no landing may hold space."""

    async def main() -> None:
        async with asyncio.timeout(30), gateway_rig(model_dir, **settings) as rig:
            await scenario(rig)
            await until(lambda: rig.num_live_landings == 0)
            assert rig.service.num_inflight == 0
            assert all(instance.num_inflight == 0 for instance in rig.service.fleet.all)

    asyncio.run(main())


def test_short_prompt_stays_local_and_its_body_is_forwarded_byte_for_byte(model_dir: Path) -> None:
    """Below the threshold nothing is touched."""

    async def scenario(rig: Rig) -> None:
        raw = b'{ "model":"tiny", "prompt":"short",  "vendor_thing":{"x":1.50}, "stop":["z"], "max_tokens":3 }'
        async with rig.session.post(f"{rig.url}/v1/completions", data=raw) as reply:
            assert reply.status == 200
            assert reply.headers["x-prfaas-route"] == "local"
            assert reply.headers["x-prfaas-reason"] == "below_threshold"
        assert rig.decoders[0].seen[-1].raw == raw
        assert rig.prefillers[0].seen == []

    drive(model_dir, scenario)


def test_long_prompt_is_prefilled_remotely_and_decode_gets_the_clients_body(model_dir: Path) -> None:
    """The two legs are what docs/protocols.md says, and the story proves the transfer."""

    async def scenario(rig: Rig) -> None:
        body = {"prompt": LONG, "max_tokens": 5, "seed": 7, "logit_bias": {"3": 1.0}}
        reply, answer = await rig.complete(**body)
        (prefill,) = rig.prefillers[0].seen
        (decode,) = rig.decoders[0].seen
        assert prefill.leg == "prefill"
        assert prefill.body["max_tokens"] == 1
        assert prefill.body["stream"] is False
        assert len(prefill.body["prompt"]) == len(LONG)
        params = prefill.body["kv_transfer_params"]["prfaas"]
        assert params["peer"] == "pd-0"
        assert params["num_bytes"] == (len(LONG) - 1) * 64
        sent = dict(decode.body)
        assert sent.pop("kv_transfer_params")["prfaas"]["transfer_id"] == params["transfer_id"]
        assert sent == {"model": MODEL, **body}
        assert reply.headers["x-prfaas-route"] == "remote"
        assert reply.headers["x-prfaas-kv-bytes"] == str((len(LONG) - 1) * 64)
        assert reply.headers["x-prfaas-tokens-recomputed"] == "1"
        story = await rig.story(reply)
        assert (story["route"], story["reason"], story["outcome"]) == ("remote", "above_threshold", "ok")
        assert (story["tokens_loaded"], story["tokens_recomputed"]) == (len(LONG) - 1, 1)
        assert {"tokenized", "routed", "reserved", "landed", "first_byte"} <= story["phases_s"].keys()
        assert await rig.metric('prfaas_requests_total{outcome="ok",route="remote"}') == 1
        assert await rig.metric("prfaas_kv_bytes_moved_total") == (len(LONG) - 1) * 64
        _, local = await rig.complete(**body, n=2)
        assert local["choices"][0]["text"] == answer["choices"][0]["text"]

    drive(model_dir, scenario)


def test_stream_carries_every_event_usage_and_done(model_dir: Path) -> None:
    """A streamed offloaded answer equals the engine's own."""

    async def scenario(rig: Rig) -> None:
        reply, data = await rig.stream(prompt=LONG, max_tokens=4, stream_options={"include_usage": True})
        assert reply.headers["content-type"].startswith("text/event-stream")
        assert reply.headers["x-prfaas-route"] == "remote"
        events = data.decode().split("\n\n")
        assert events[-2:] == ["data: [DONE]", ""]
        assert json.loads(events[-3].removeprefix("data: "))["usage"]["completion_tokens"] == 4
        assert len(events) == 4 + 3
        story = await rig.story(reply)
        assert story["completion_tokens"] == 4
        assert story["tokens_recomputed"] == 1
        assert story["ttft_s"] <= story["total_s"]

    drive(model_dir, scenario)


def test_openai_client_chat_and_completions(model_dir: Path) -> None:
    """The official client is content, streamed and not, and meets its own error classes."""
    openai = pytest.importorskip("openai")

    async def scenario(rig: Rig) -> None:
        client = openai.AsyncOpenAI(base_url=f"{rig.url}/v1", api_key="x", max_retries=0)
        messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
        chat = await client.chat.completions.create(model=MODEL, messages=messages, max_tokens=3)
        stream = await client.chat.completions.create(model=MODEL, messages=messages, max_tokens=3, stream=True)
        pieces = [chunk.choices[0].delta.content async for chunk in stream]
        assert "".join(pieces) == chat.choices[0].message.content
        assert [model.id async for model in client.models.list()] == [MODEL]
        with pytest.raises(openai.NotFoundError):
            await client.completions.create(model="other", prompt="x")
        with pytest.raises(openai.BadRequestError):
            await client.completions.create(model=MODEL, prompt="x" * 5000)
        await client.close()
        rendered = "<|system|>be brief\n<|user|>hello\n<|assistant|>"
        assert len(rig.prefillers[0].seen[0].body["prompt"]) == len(rendered)

    drive(model_dir, scenario)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("die", FallbackReason.PREFILL_UNREACHABLE),
        ("error", FallbackReason.PREFILL_HTTP_ERROR),
        ("failed", FallbackReason.PREFILL_FAILED),
        ("silent", FallbackReason.ZERO_BYTES),
        ("zero_bytes", FallbackReason.ZERO_BYTES),
        ("stage_only", FallbackReason.DEADLINE),
        ("stall", FallbackReason.DEADLINE),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_prefill_fault_falls_back(model_dir: Path, fault: Any, reason: FallbackReason, stream: bool) -> None:
    """The client gets the local answer, the original body runs as a fresh request, the reason is counted."""

    async def scenario(rig: Rig) -> None:
        rig.prefillers[0].faults.prefill = fault
        reply, answer = await (rig.stream if stream else rig.complete)(prompt=LONG, max_tokens=3)
        assert reply.status == 200, answer
        assert b"[DONE]" in answer if stream else len(answer["choices"]) == 1
        assert reply.headers["x-prfaas-route"] == "local"
        assert reply.headers["x-prfaas-reason"] == f"fallback:{reason}"
        assert [seen.leg for seen in rig.decoders[0].seen] == ["fresh"]
        assert (await rig.story(reply))["fallback_reason"] == reason
        assert await rig.metric(f'prfaas_fallback_total{{reason="{reason}"}}') == 1
        zero = 1 if reason is FallbackReason.ZERO_BYTES else 0
        assert await rig.metric("prfaas_zero_byte_offloads_total") == zero
        rig.prefillers[0].release.set()

    # Short only where the deadline is what happens: on a busy machine it would come before every other fault.
    deadline = "300ms" if reason is FallbackReason.DEADLINE else "20s"
    drive(model_dir, scenario, transfer={"deadline": deadline})


@pytest.mark.parametrize("code", ["no_engine", "arena_full", "too_many_landings", "something_new"])
def test_refused_reservation_falls_back(model_dir: Path, code: str) -> None:
    """A node without room costs latency only."""

    async def scenario(rig: Rig) -> None:
        rig.decode_nodes[0].faults.refuse_reservations = code
        reply, _ = await rig.complete(prompt=LONG)
        known = code if code != "something_new" else "reserve_error"
        assert reply.headers["x-prfaas-reason"] == f"fallback:{known}"
        assert rig.prefillers[0].seen == []

    drive(model_dir, scenario)


def test_node_killed_while_prefill_runs_falls_back(model_dir: Path) -> None:
    """A dead decode-side node is seen at once, not at the deadline."""

    async def scenario(rig: Rig) -> None:
        rig.prefillers[0].faults.prefill = "stall"
        asking = asyncio.create_task(rig.complete(prompt=LONG))
        await until(lambda: bool(rig.prefillers[0].seen))
        await rig.decode_nodes[0].kill()
        reply, _ = await asyncio.wait_for(asking, 5)
        assert reply.headers["x-prfaas-reason"] == "fallback:node_unreachable"
        await until(lambda: rig.prefillers[0].seen[0].is_cut_by_client)

    drive(model_dir, scenario)


def test_prefill_engine_killed_falls_back_and_then_is_not_used(model_dir: Path) -> None:
    """After the fallback the probes keep later requests local, with the reason."""

    async def scenario(rig: Rig) -> None:
        rig.prefillers[0].faults.prefill = "stall"
        asking = asyncio.create_task(rig.complete(prompt=LONG))
        await until(lambda: bool(rig.prefillers[0].seen))
        await rig.prefillers[0].kill()
        reply, _ = await asking
        assert reply.headers["x-prfaas-reason"] == "fallback:prefill_unreachable"
        await until(lambda: not rig.service.fleet.prefillers[0].engine_healthy)
        reply, _ = await rig.complete(prompt=LONG + "!" * 20)
        assert reply.headers["x-prfaas-reason"] == "prfaas_unhealthy"
        rig.prefillers[0].faults.prefill = "none"
        await rig.prefillers[0].start()
        await until(lambda: rig.service.fleet.prefillers[0].engine_healthy)
        reply, _ = await rig.complete(prompt="?" * 40)
        assert reply.headers["x-prfaas-route"] == "remote"

    drive(model_dir, scenario)


@pytest.mark.parametrize("how", ["aborted", "expired"])
def test_landing_that_ends_early_falls_back(model_dir: Path, how: str) -> None:
    """The gateway sees the landing's end while prefill still runs, and cancels the prefill."""

    async def scenario(rig: Rig) -> None:
        node = rig.decode_nodes[0]
        rig.prefillers[0].faults.prefill = "stall"
        asking = asyncio.create_task(rig.complete(prompt=LONG))
        await until(lambda: bool(rig.prefillers[0].seen))
        (landing,) = node.landings.values()
        if how == "aborted":
            node.abort(landing.transfer_id, "sender gone")
        else:
            node.expire(landing.transfer_id)
        reply, _ = await asyncio.wait_for(asking, 5)
        assert reply.headers["x-prfaas-reason"] == f"fallback:landing_{how}"
        await until(lambda: rig.prefillers[0].seen[0].is_cut_by_client)

    drive(model_dir, scenario)


def test_unknown_landing_falls_back(model_dir: Path) -> None:
    """A node that has forgotten the landing (it restarted) is a failure, not a wait."""

    async def scenario(rig: Rig) -> None:
        rig.decode_nodes[0].faults.forgetful = True
        rig.prefillers[0].faults.prefill = "stall"
        reply, _ = await rig.complete(prompt=LONG)
        assert reply.headers["x-prfaas-reason"] == "fallback:landing_lost"

    drive(model_dir, scenario)


@pytest.mark.parametrize(("fault", "reason"), [("die", "decode_unreachable"), ("error", "decode_error")])
def test_decode_that_fails_before_its_first_byte_runs_locally(model_dir: Path, fault: Any, reason: str) -> None:
    """The landing is dropped and the original body goes out once more."""

    async def scenario(rig: Rig) -> None:
        rig.decoders[0].faults = EngineFaults(decode=fault, remaining=1)
        reply, _ = await rig.complete(prompt=LONG)
        assert reply.status == 200
        assert reply.headers["x-prfaas-reason"] == f"fallback:{reason}"
        assert [seen.leg for seen in rig.decoders[0].seen] == ["decode", "fresh"]

    drive(model_dir, scenario)


@pytest.mark.parametrize("stream", [False, True])
def test_decode_that_does_not_load_is_counted(model_dir: Path, stream: bool) -> None:
    """The answer is right, but the transfer was for nothing: never silently."""

    async def scenario(rig: Rig) -> None:
        rig.decoders[0].faults.decode = "decline"
        reply, _ = await (rig.stream if stream else rig.complete)(prompt=LONG)
        story = await rig.story(reply)
        assert story["route"] == "remote"
        assert story["fallback_reason"] == "not_loaded"
        assert story["tokens_recomputed"] == len(LONG)
        assert await rig.metric("prfaas_zero_byte_offloads_total") == 1
        assert await rig.metric('prfaas_fallback_total{reason="not_loaded"}') == 1

    drive(model_dir, scenario)


def test_nobody_waits_for_the_proof_of_a_landing_that_decode_has_not_claimed(model_dir: Path) -> None:
    """Its engine may know nothing of its node, so the record would never change: the header is there at once."""

    async def scenario(rig: Rig) -> None:
        rig.decoders[0].faults.decode = "decline"
        reply, _ = await rig.complete(prompt=LONG)
        assert reply.headers["x-prfaas-tokens-recomputed"] == str(len(LONG))

    drive(model_dir, scenario)


@pytest.mark.parametrize(("fault", "where"), [("none", "everywhere"), ("failed", "prefill"), ("error", "decode")])
def test_no_client_learns_what_a_landing_is_loaded_with(model_dir: Path, fault: Any, where: str) -> None:
    """Neither from the answer nor from the story of a request, also when an engine's error repeats what it was sent.
    The token goes to prefill alone and the claim secret to decode alone; both get the transfer's id."""

    async def scenario(rig: Rig) -> None:
        if where == "prefill":
            rig.prefillers[0].faults.prefill = fault
        elif where == "decode":
            rig.decoders[0].faults = EngineFaults(decode=fault, remaining=1)
        for engine in (*rig.prefillers, *rig.decoders):
            engine.faults.echo = True
        reply, answer = await rig.complete(prompt=LONG)
        assert reply.status == 200
        secrets = {rig.prefillers[0].seen[0].params["transfer_id"], rig.prefillers[0].seen[0].params["token"]}
        assert "claim_secret" not in rig.prefillers[0].seen[0].params
        for leg in rig.decoders[0].legs("decode"):
            assert "token" not in leg.params
            secrets |= {leg.params["transfer_id"], leg.params["claim_secret"]}
        shown = json.dumps([await rig.story(reply), answer, dict(reply.headers)], ensure_ascii=False)
        assert [secret for secret in secrets if secret in shown] == []
        assert ("…" in shown) == (where != "everywhere"), "the error was there, without its secrets"

    drive(model_dir, scenario)


def test_a_decode_engine_with_another_prompt_or_secret_loads_nothing(model_dir: Path) -> None:
    """Whoever reaches the decode engine's port with a transfer's id: the landing stays for its own request."""

    async def scenario(rig: Rig) -> None:
        rig.decoders[0].faults.decode = "stall"
        asking = asyncio.create_task(rig.complete(prompt=LONG, max_tokens=2))
        await until(lambda: bool(rig.decoders[0].legs("decode")))
        (seen,) = rig.decoders[0].legs("decode")
        (landing,) = rig.decode_nodes[0].live_landings
        rig.decoders[0].faults.decode = "none"
        for prompt in (LONG, "my own prompt"):
            guess = {"claim_secret": "a guess, long enough to be one"}
            stolen = {**seen.body["kv_transfer_params"], "prfaas": {**seen.params, **guess}}
            body = {"model": MODEL, "prompt": prompt, "kv_transfer_params": stolen}
            async with rig.session.post(f"{rig.decoders[0].url}/v1/completions", json=body) as reply:
                assert reply.status == 200
            assert landing.state == "landed"
        rig.decoders[0].release.set()
        reply, _ = await asking
        assert (await rig.story(reply))["tokens_recomputed"] == 1

    drive(model_dir, scenario)


@pytest.mark.parametrize("fault", ["cut", "half_event", "no_done"])
@pytest.mark.parametrize("prompt", [SHORT, LONG])
def test_stream_that_breaks_ends_with_an_error_event_and_done(model_dir: Path, fault: Any, prompt: str) -> None:
    """Every event that the client gets is whole, and the last two are an error and [DONE]."""

    async def scenario(rig: Rig) -> None:
        rig.decoders[0].faults.decode = fault
        reply, data = await rig.stream(prompt=prompt, max_tokens=4)
        assert reply.status == 200
        events = [event.removeprefix("data: ") for event in data.decode().split("\n\n")]
        assert events[-2:] == ["[DONE]", ""]
        assert json.loads(events[-3])["error"]["code"] == "upstream_cut"
        assert all(json.loads(event)["choices"] for event in events[:-3])
        assert (await rig.story(reply))["outcome"] == "error"

    drive(model_dir, scenario)


def test_local_request_is_tried_on_another_engine(model_dir: Path) -> None:
    """One dead decode engine costs nobody a request."""

    async def scenario(rig: Rig) -> None:
        rig.decoders[0].faults.decode = "die"
        reply, _ = await rig.complete(prompt=SHORT)
        assert reply.status == 200
        story = await rig.story(reply)
        assert (story["decode_instance"], story["decode_retried"]) == ("pd-1", True)

    drive(model_dir, scenario, num_decoders=2)


def test_no_engine_left_is_502_then_503(model_dir: Path) -> None:
    """When every path is gone the client is told so in OpenAI's shape."""

    async def scenario(rig: Rig) -> None:
        rig.decoders[0].faults.decode = "die"
        reply, answer = await rig.complete(prompt=SHORT)
        assert reply.status == 502
        assert answer["error"]["code"] == "upstream_down"
        rig.decoders[0].faults.healthy = False
        await until(lambda: not rig.service.fleet.healthy)
        reply, answer = await rig.complete(prompt=SHORT)
        assert reply.status == 503
        assert answer["error"]["type"] == "service_unavailable_error"
        assert reply.headers["retry-after"] == "1"
        async with rig.session.get(f"{rig.url}/health") as health:
            assert health.status == 503
        async with rig.session.get(f"{rig.url}/live") as live:
            assert live.status == 200

    drive(model_dir, scenario)


@pytest.mark.parametrize("stage", ["prefill", "decode", "fresh"])
@pytest.mark.parametrize("stream", [False, True])
def test_client_that_leaves_cancels_upstream_and_frees_the_landing(model_dir: Path, stage: str, stream: bool) -> None:
    """At whatever moment: both legs see the end of the connection, and the landing is deleted."""

    async def scenario(rig: Rig) -> None:
        engine = rig.prefillers[0] if stage == "prefill" else rig.decoders[0]
        setattr(engine.faults, "prefill" if stage == "prefill" else "decode", "stall")
        prompt = SHORT if stage == "fresh" else LONG
        asking = asyncio.create_task((rig.stream if stream else rig.complete)(prompt=prompt))
        await until(lambda: bool(engine.seen))
        asking.cancel()
        await until(lambda: engine.seen[0].is_cut_by_client)
        await until(lambda: rig.num_live_landings == 0)
        await until(lambda: rig.service.num_inflight == 0)
        route = "local" if stage == "fresh" else "remote"
        assert await rig.metric(f'prfaas_requests_total{{outcome="cancelled",route="{route}"}}') == 1

    drive(model_dir, scenario)


def test_keep_alive_comments_while_a_prefill_runs(model_dir: Path) -> None:
    """The 200 goes out with the first comment, and the events follow."""

    async def scenario(rig: Rig) -> None:
        rig.prefillers[0].faults.prefill = "stall"
        body = {"model": MODEL, "prompt": LONG, "stream": True, "max_tokens": 2}
        async with rig.session.post(f"{rig.url}/v1/completions", json=body) as reply:
            assert reply.status == 200
            assert await reply.content.readexactly(14) == b": keep-alive\n\n"
            assert await reply.content.readexactly(14) == b": keep-alive\n\n"
            rig.prefillers[0].release.set()
            rest = await reply.read()
        assert rest.endswith(b"data: [DONE]\n\n")
        assert rest.count(b"data: {") == 2

    drive(model_dir, scenario, gateway={"keep_alive": "30ms"})


def test_error_after_keep_alive_is_an_event(model_dir: Path) -> None:
    """A status that comes too late for the headers comes as an error event."""

    async def scenario(rig: Rig) -> None:
        rig.decoders[0].faults.decode = "stall"
        body = {"model": MODEL, "prompt": SHORT, "stream": True}
        async with rig.session.post(f"{rig.url}/v1/completions", json=body) as reply:
            assert await reply.content.readexactly(14) == b": keep-alive\n\n"
            rest = (await reply.read()).replace(b": keep-alive\n\n", b"")
        events = rest.decode().split("\n\n")
        assert json.loads(events[0].removeprefix("data: "))["error"]["code"] == "timeout"
        assert events[1:] == ["data: [DONE]", ""]
        rig.decoders[0].release.set()

    drive(model_dir, scenario, gateway={"keep_alive": "30ms", "request_timeout": "300ms"})


def test_request_timeout_without_stream_is_504(model_dir: Path) -> None:
    """Everything has a deadline."""

    async def scenario(rig: Rig) -> None:
        rig.decoders[0].faults.decode = "stall"
        reply, answer = await rig.complete(prompt=SHORT)
        assert reply.status == 504
        assert answer["error"]["type"] == "timeout_error"
        rig.decoders[0].release.set()

    drive(model_dir, scenario, gateway={"request_timeout": "200ms"})


def test_lease_is_renewed_through_prefill_and_decodes_queue(model_dir: Path) -> None:
    """A landing outlives its lease as long as the gateway wants it."""

    async def scenario(rig: Rig) -> None:
        rig.prefillers[0].faults.prefill = "stall"
        rig.decoders[0].faults.decode = "stall"
        asking = asyncio.create_task(rig.complete(prompt=LONG))
        await until(lambda: bool(rig.prefillers[0].seen))
        (landing,) = rig.decode_nodes[0].landings.values()
        renewals = rig.decode_nodes[0].faults.renewals
        await until(lambda: renewals[landing.transfer_id] >= 3)
        rig.prefillers[0].release.set()
        await until(lambda: bool(rig.decoders[0].seen))
        renewed = renewals[landing.transfer_id]
        await until(lambda: renewals[landing.transfer_id] >= renewed + 4)
        rig.decoders[0].release.set()
        reply, _ = await asking
        assert reply.headers["x-prfaas-route"] == "remote"
        assert landing.state == "consumed"

    drive(model_dir, scenario, transfer={"lease": "600ms"})


def test_fields_and_headers_that_steer_transfers_are_stripped(model_dir: Path) -> None:
    """Neither leg sees what a client says about transfers, bootstrap servers or ranks, wherever it is hidden."""

    async def scenario(rig: Rig) -> None:
        evil = {
            "kv_transfer_params": {"do_remote_prefill": True},
            "ec_transfer_params": {},
            "bootstrap_host": "169.254.169.254",
            "bootstrap_port": 1,
            "bootstrap_room": 2,
            "bootstrap_pair_key": "k",
            "routed_dp_rank": 1,
            "disagg_prefill_dp_rank": 1,
            "data_parallel_rank": 1,
            "vllm_xargs": {"kv_transfer_params": "x", "fine": 1},
        }
        headers = {
            "x-data-parallel-rank": "3",
            "x-prefiller-host-port": "10.0.0.1:1",
            "x-gateway-destination-endpoint": "10.0.0.1:1",
            "traceparent": "00-1-2-01",
            "x-request-id": "my id/1",
            "authorization": "Bearer k",
        }
        for prompt in (SHORT, LONG):
            body = {"model": MODEL, "prompt": prompt, "user": "u", **evil}
            async with rig.session.post(f"{rig.url}/v1/completions", json=body, headers=headers) as reply:
                assert reply.status == 200
                assert reply.headers["x-request-id"] == "my_id_1"
        fresh, decode = rig.decoders[0].seen
        assert fresh.body == {"model": MODEL, "prompt": SHORT, "user": "u", "vllm_xargs": {"fine": 1}}
        assert decode.body["kv_transfer_params"].keys() == {"do_remote_decode", "do_remote_prefill", "prfaas"}
        for seen in (fresh, decode, *rig.prefillers[0].seen):
            assert seen.headers["traceparent"] == "00-1-2-01"
            assert seen.headers["x-request-id"] == "my_id_1"
            assert seen.headers["authorization"] == "Bearer k"
            steering = ("x-data-parallel", "x-prefiller", "x-gateway")
            assert not [name for name in seen.headers if name.startswith(steering)]

    drive(model_dir, scenario)


class BrokenTokenizer(PromptTokenizer):
    """Has a defect."""

    async def token_ids(self, request: ApiRequest, max_model_tokens: int) -> list[int]:
        raise RuntimeError("a defect")


def test_a_request_that_cannot_be_counted_after_its_answer_is_closed_all_the_same(model_dir: Path) -> None:
    """Nothing of it stays in the gateway."""

    async def scenario(rig: Rig) -> None:
        rig.service.tokenizer = BrokenTokenizer(None, {}, None)
        reply, _ = await rig.complete(prompt=[1, 2, 3])
        assert reply.status == 200
        await until(lambda: not rig.service.scheduler.requests)
        assert not rig.app.driver.is_live(reply.headers["x-request-id"])
        assert (await rig.story(reply))["closed"]

    drive(model_dir, scenario, threshold_tokens=1000)


def test_two_requests_of_one_id_are_both_answered_also_while_their_bodies_are_on_their_way(model_dir: Path) -> None:
    """The second gets an id of its own: its story is not the first one's, and neither waits for ever."""

    async def scenario(rig: Rig) -> None:
        may_end = asyncio.Event()
        num_begun = 0

        async def slow_body() -> AsyncIterator[bytes]:
            nonlocal num_begun
            num_begun += 1
            yield b'{"model": "tiny", "prompt": "short",'
            await may_end.wait()
            yield b' "max_tokens": 2}'

        async def ask() -> tuple[int, str]:
            url, headers = f"{rig.url}/v1/completions", {"x-request-id": "twin"}
            async with rig.session.post(url, data=slow_body(), headers=headers) as reply:
                await reply.read()
                return reply.status, reply.headers["x-request-id"]

        asking = [asyncio.create_task(ask()) for _ in range(2)]
        await until(lambda: num_begun == 2 and len(rig.service.reading_ids) == 2)
        may_end.set()
        answers = await asyncio.gather(*asking)
        assert [status for status, _ in answers] == [200, 200]
        ids = {request_id for _, request_id in answers}
        assert len(ids) == 2
        assert "twin" in ids
        for request_id in ids:
            async with rig.session.get(f"{rig.url}/prfaas/requests/{request_id}") as reply:
                assert (await reply.json())["outcome"] == "ok"

    drive(model_dir, scenario)


@pytest.mark.parametrize(
    ("raw", "status", "code"),
    [
        (b"", 400, "invalid_json"),
        (b"{", 400, "invalid_json"),
        (b"[1]", 400, "invalid_type"),
        (b'{"model":"tiny","prompt":NaN}', 400, "invalid_json"),
        (b'{"model":"tiny","prompt":"\\ud800"}', 400, "invalid_json"),
        (b'{"a":' * 10_000, 400, "invalid_json"),
        (b'{"model":"other","prompt":"x"}', 404, "model_not_found"),
        (b'{"model":"tiny"}', 400, "invalid_type"),
        (b'{"model":"tiny","prompt":"x","n":0}', 400, "invalid_type"),
        (b'{"model":"tiny","prompt":"x","n":true}', 400, "invalid_type"),
        (b'{"model":"tiny","prompt":"x","max_tokens":99999999999999999999}', 400, "invalid_type"),
        (b'{"model":"tiny","prompt":"x","max_tokens":4096}', 400, "context_length_exceeded"),
        (b'{"model":"tiny","prompt":"' + b"x" * 2000 + b'","stream":1}', 400, "invalid_type"),
        (b'{"model":"tiny","prompt":"' + b"x" * 100_000 + b'"}', 413, "body_too_large"),
    ],
)
def test_bad_bodies_get_a_clear_error_and_reach_no_engine(model_dir: Path, raw: bytes, status: int, code: str) -> None:
    """And the gateway goes on."""

    async def scenario(rig: Rig) -> None:
        async with rig.session.post(f"{rig.url}/v1/completions", data=raw) as reply:
            answer = await reply.json()
        assert (reply.status, answer["error"]["code"]) == (status, code)
        assert answer["error"].keys() == {"message", "type", "param", "code"}
        assert rig.decoders[0].seen == []
        reply, _ = await rig.complete(prompt=SHORT)
        assert reply.status == 200

    drive(model_dir, scenario, gateway={"max_body": 64 * 1024})


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 200), ("Application/JSON; charset=utf-8", 200), ("application/vnd.api+json", 200),
        ("text/plain", 415), ("application/x-www-form-urlencoded", 415), ("text/plain; a=application/json", 415),
        ("", 415),
    ],
)  # fmt: skip
def test_only_json_is_taken(model_dir: Path, kind: str, status: int) -> None:
    """A page in a browser may send plain text to any address, but not JSON."""

    async def scenario(rig: Rig) -> None:
        data = json.dumps({"model": MODEL, "prompt": SHORT}).encode()
        async with rig.session.post(f"{rig.url}/v1/completions", data=data, headers={"content-type": kind}) as reply:
            assert reply.status == status
        assert len(rig.decoders[0].seen) == (status == 200)

    drive(model_dir, scenario)


def test_unknown_routes_methods_and_chunked_bodies(model_dir: Path) -> None:
    """404, 405 with Allow, and a limit that holds without Content-Length."""

    async def scenario(rig: Rig) -> None:
        async def ask(method: str, path: str, **kwargs: Any) -> aiohttp.ClientResponse:
            async with rig.session.request(method, rig.url + path, **kwargs) as reply:
                await reply.read()
                return reply

        assert (await ask("GET", "/nowhere")).status == 404
        assert (await ask("GET", "/v1/completions")).status == 405
        assert (await ask("POST", "/health")).headers["allow"] == "GET, HEAD"
        head = await ask("HEAD", "/live")
        assert (head.status, head.headers["content-length"]) == (200, "15")
        assert (await ask("GET", "/prfaas/requests/unheard-of")).status == 404
        assert (await ask("GET", "/v1/models/tiny")).status == 200
        assert (await ask("GET", "/v1/models/other")).status == 404
        assert (await ask("GET", "/version")).status == 200
        assert (await ask("GET", "/ready")).status == 200

        async def endless() -> Any:
            for _ in range(100):
                yield b"x" * 1024

        assert (await ask("POST", "/v1/completions", data=endless())).status == 413

    drive(model_dir, scenario, gateway={"max_body": 4096})


def test_overload_is_429_with_retry_after(model_dir: Path) -> None:
    """Admission is by count."""

    async def scenario(rig: Rig) -> None:
        rig.decoders[0].faults.decode = "stall"
        asking = asyncio.create_task(rig.complete(prompt=SHORT))
        await until(lambda: bool(rig.decoders[0].seen))
        reply, answer = await rig.complete(prompt=SHORT)
        assert (reply.status, answer["error"]["type"]) == (429, "overloaded_error")
        assert reply.headers["retry-after"] == "1"
        rig.decoders[0].release.set()
        await asking

    drive(model_dir, scenario, gateway={"max_inflight_requests": 1})


def test_engines_refusal_is_passed_on_in_openai_shape(model_dir: Path) -> None:
    """Also one that an engine words in another shape, on both routes."""

    async def scenario(rig: Rig) -> None:
        rig.decoders[0].faults.decode = "refuse"
        for prompt in (SHORT, LONG):
            reply, answer = await rig.complete(prompt=prompt)
            assert reply.status == 400
            assert answer["error"]["message"] == "no such voice"

    drive(model_dir, scenario)


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({"n": 2}, "several_choices"),
        ({"best_of": 2}, "several_choices"),
        ({"echo": True}, "echo"),
        ({"suffix": "z"}, "suffix"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"use_beam_search": True}, "beam_search"),
        ({"prompt": [LONG, LONG]}, "several_prompts"),
        ({"prompt": [[1] * 40, [2] * 40]}, "several_prompts"),
        ({"truncate_prompt_tokens": 10}, "truncated_prompt"),
    ],
)
def test_features_that_need_the_prompts_engine_stay_local(model_dir: Path, extra: dict[str, Any], reason: str) -> None:
    """Each with its reason."""

    async def scenario(rig: Rig) -> None:
        reply, _ = await rig.complete(**{"prompt": LONG, **extra})
        assert reply.status == 200
        assert reply.headers["x-prfaas-reason"] == reason

    drive(model_dir, scenario)


@pytest.mark.parametrize("prompt", [[LONG], list(range(1, 40)), [list(range(1, 40))]])
def test_single_prompts_of_every_type_are_offloaded(model_dir: Path, prompt: Any) -> None:
    """A list of one is one prompt."""

    async def scenario(rig: Rig) -> None:
        reply, _ = await rig.complete(prompt=prompt)
        assert reply.headers["x-prfaas-route"] == "remote"

    drive(model_dir, scenario)


@pytest.mark.parametrize("probed", [True, False])
def test_prefix_that_ran_locally_is_skipped_until_the_engine_restarts(model_dir: Path, probed: bool) -> None:
    """`skip_tokens` is a multiple of the block size; a new boot id empties the record."""

    async def scenario(rig: Rig) -> None:
        prefix = "x" * 16
        await rig.complete(prompt=prefix, n=2, max_tokens=1)
        await rig.complete(prompt=prefix[:8], max_tokens=1)
        await rig.complete(prompt=prefix + "y" * 20, max_tokens=1)
        params = rig.prefillers[0].seen[0].body["kv_transfer_params"]["prfaas"]
        assert params["skip_tokens"] == 8
        rig.decode_nodes[0].engine_boot_id = "another life"
        if probed:
            await until(lambda: len(rig.service.fleet.decoders[0].cache) == 0)
        reply, _ = await rig.complete(prompt=prefix + "z" * 20, max_tokens=1)
        story = await rig.story(reply)
        # Between a restart and the probe that sees it, the reservation's answer tells.
        assert story["skip_tokens"] == 0 or (not probed and story["fallback_reason"] == "landing_lost")

    drive(model_dir, scenario)


@pytest.mark.parametrize(
    ("kinds", "route", "uncached"),
    [
        ((KVGroupKind.FULL_ATTENTION,), "local", 6),
        ((KVGroupKind.SLIDING_WINDOW, KVGroupKind.FULL_ATTENTION), "local", 6),
        ((KVGroupKind.LINEAR_STATE, KVGroupKind.FULL_ATTENTION), "remote", 50),
    ],
)
def test_the_next_turn_is_routed_by_the_kinds_that_the_engine_registered(
    model_dir: Path, kinds: tuple[KVGroupKind, ...], route: str, uncached: int
) -> None:
    """After 48 tokens landed, a prompt of 50 that begins with them: 44 are cached where no recurrent state is needed."""

    async def scenario(rig: Rig) -> None:
        first, _ = await rig.complete(prompt="x" * 48, max_tokens=1)
        assert first.headers["x-prfaas-route"] == "remote"
        await until(lambda: len(rig.service.fleet.decoders[0].cache) > 0)
        second, _ = await rig.complete(prompt="x" * 48 + "yz", max_tokens=1)
        assert second.headers["x-prfaas-route"] == route
        assert (await rig.story(second))["uncached_tokens"] == uncached

    drive(model_dir, scenario, kv_group_kinds=kinds)


def test_a_restart_that_a_probe_sees_before_the_reservation_is_no_secret(model_dir: Path) -> None:
    """What was to be skipped went with the engine's former life, whoever hears of the new one first."""

    async def scenario(rig: Rig) -> None:
        node = rig.decode_nodes[0]

        def restart() -> None:
            node.engine_boot_id = "another life"
            instance = rig.service.fleet.decoders[0]
            kinds = (KVGroupKind.FULL_ATTENTION,)
            rig.app.driver.feed(NodeSeen(instance.name, True, instance.block_tokens, "another life", kinds))

        await rig.complete(prompt="x" * 16 + "y" * 20, max_tokens=1)
        node.faults.before_reserving = restart
        reply, _ = await rig.complete(prompt="x" * 16 + "z" * 20, max_tokens=1)
        story = await rig.story(reply)
        assert (story["skip_tokens"], story["fallback_reason"]) == (16, "landing_lost")

    drive(model_dir, scenario)


def test_a_node_of_another_version_is_not_used(model_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Requests run locally, the log says once which two versions met, and the node is used when it is upgraded."""

    async def scenario(rig: Rig) -> None:
        (decoder,) = rig.service.fleet.decoders
        rig.decode_nodes[0].faults.version = VERSION + 1
        await until(lambda: not decoder.node_ready)
        reply, _ = await rig.complete(prompt=LONG)
        assert (reply.headers["x-prfaas-route"], reply.headers["x-prfaas-reason"]) == ("local", "no_landing_node")
        rig.decode_nodes[0].faults.version = VERSION
        await until(lambda: decoder.node_ready)
        reply, _ = await rig.complete(prompt="?" * 40)
        assert reply.headers["x-prfaas-route"] == "remote"

    drive(model_dir, scenario)
    told = [record.getMessage() for record in caplog.records if "is not used" in record.getMessage()]
    assert len(told) == 1
    assert f"speaks version {VERSION + 1}, this process version {VERSION}; upgrade the older one" in told[0]


def test_surely_short_prompt_is_counted_after_its_answer(model_dir: Path) -> None:
    """It does not wait for the tokenizer; story and prefix record learn its tokens all the same."""

    async def scenario(rig: Rig) -> None:
        await rig.complete(prompt="x" * 16, max_tokens=1)
        reply, _ = await rig.complete(prompt="x" * 16 + "yyyy", max_tokens=1)
        story = await rig.story(reply)
        assert (story["prompt_tokens"], story["uncached_tokens"]) == (20, 4)
        assert list(story["phases_s"]) == ["routed", "first_byte"]
        reply, _ = await rig.complete(messages=None, prompt="z" * 200, max_tokens=1)
        assert list((await rig.story(reply))["phases_s"]) == ["tokenized", "routed", "first_byte"]

    drive(model_dir, scenario, threshold_tokens=200)


def test_tokenizing_after_the_answer_is_not_taken_for_a_lost_client(model_dir: Path) -> None:
    """Servers report a disconnect once an answer is out, and long texts are tokenized in a thread."""

    async def scenario(rig: Rig) -> None:
        reply, _ = await rig.complete(prompt="x" * 10_000, max_tokens=1)
        await until(lambda: rig.service.num_inflight == 0)
        story = await rig.story(reply)
        assert (story["outcome"], story["prompt_tokens"]) == ("ok", 10_000)

    drive(model_dir, scenario, threshold_tokens=20_000, max_model_tokens=30_000)


def test_homogeneous_policy_never_offloads(model_dir: Path) -> None:
    """The policy is the deployment's."""

    async def scenario(rig: Rig) -> None:
        reply, _ = await rig.complete(prompt=LONG)
        assert reply.headers["x-prfaas-reason"] == "policy"

    drive(model_dir, scenario, policy="homogeneous")


def test_nothing_is_prefilled_for_a_node_to_which_no_lane_is_up(model_dir: Path) -> None:
    """As while a node that was restarted is dialled again: a whole prefill would be for nothing."""

    async def scenario(rig: Rig) -> None:
        (west,) = rig.service.fleet.prefillers
        rig.prefill_nodes[0].faults.cut_off_from.add("pd-0")
        await until(lambda: bool(west.cut_off_from))
        reply, _ = await rig.complete(prompt=LONG)
        assert reply.headers["x-prfaas-reason"] == "prfaas_unhealthy"
        assert rig.prefillers[0].seen == []
        rig.prefill_nodes[0].faults.cut_off_from.clear()
        await until(lambda: not west.cut_off_from)
        reply, _ = await rig.complete(prompt="another " + LONG)
        assert reply.headers["x-prfaas-route"] == "remote"

    drive(model_dir, scenario)


def test_node_without_an_engine_keeps_requests_local(model_dir: Path) -> None:
    """No landing node, no offload, no failure."""

    async def scenario(rig: Rig) -> None:
        rig.decode_nodes[0].has_engine = False
        await until(lambda: not rig.service.fleet.decoders[0].node_ready)
        reply, _ = await rig.complete(prompt=LONG)
        assert reply.headers["x-prfaas-reason"] == "no_landing_node"

    drive(model_dir, scenario)


def test_the_gateway_hears_how_busy_each_engine_is(model_dir: Path) -> None:
    """By the engine's own count, of all its clients; an engine that says nothing counts as unknown, not as idle."""

    async def scenario(rig: Rig) -> None:
        engine, instance = rig.decoders[0], rig.service.fleet.decoders[0]
        row = 'prfaas_engine_requests{instance="pd-0",state="%s"}'
        assert math.isnan(await rig.metric(row % "waiting"))
        engine.load = EngineLoad(running=3, waiting=2)
        await until(lambda: instance.num_requests == 5)
        await until(lambda: instance.engine_healthy)
        engine.load = EngineLoad(running=0, waiting=0)
        await until(lambda: instance.num_requests == 0)
        assert await rig.metric(row % "running") == 0
        await engine.kill()
        await until(lambda: instance.num_requests is None)
        assert math.isnan(await rig.metric(row % "running"))

    drive(model_dir, scenario)


def test_forty_mixed_requests_at_once(model_dir: Path) -> None:
    """Every one succeeds with its own answer, over two engines on each side, one of which fails now and then."""

    async def scenario(rig: Rig) -> None:
        rig.prefillers[0].faults = EngineFaults(prefill="die", remaining=5)
        prompts = [f"{index:02d}" + ("p" * (30 if index % 2 else 3)) for index in range(40)]
        answers = await asyncio.gather(*(rig.complete(prompt=prompt, max_tokens=2) for prompt in prompts))
        again = await asyncio.gather(*(rig.complete(prompt=prompt, max_tokens=2, n=2) for prompt in prompts))
        for (reply, answer), (_, local) in zip(answers, again, strict=True):
            assert reply.status == 200
            assert answer["choices"][0]["text"] == local["choices"][0]["text"]
        assert await rig.metric('prfaas_fallback_total{reason="prefill_unreachable"}') == 5

    drive(model_dir, scenario, num_decoders=2, num_prefillers=2)


def test_the_process_serves_a_deployment_file_and_ends_on_sigterm(model_dir: Path) -> None:
    """As `prfaas gateway FILE` starts it; it works without a PrfaaS cluster and before any engine is up."""
    (port,) = free_ports(1)
    file = model_dir / "deployment.yaml"
    endpoint = '{engine: "http://127.0.0.1:9", kvnode: "http://127.0.0.1:10", lanes: "127.0.0.1:11"}'
    file.write_text(
        f"model: {{name: tiny, path: ., max_model_tokens: 64}}\n"
        f"clusters:\n  pd: {{role: pd, endpoints: [{endpoint}]}}\n"
        f"policy: {{kind: homogeneous}}\ngateway: {{port: {port}}}\n"
    )
    code = "import sys, pathlib; from prfaas.gateway.server import run; run(pathlib.Path(sys.argv[1]))"
    process = subprocess.Popen([sys.executable, "-c", code, str(file)])
    try:
        health = asyncio.run(asyncio.wait_for(first_answer(f"http://127.0.0.1:{port}/health"), 20))
        assert health == 503
    finally:
        process.terminate()
        assert process.wait(10) in (0, -signal.SIGTERM)


async def first_answer(url: str) -> int:
    """The status of the first answer that comes."""
    async with aiohttp.ClientSession() as session:
        while True:
            try:
                async with session.get(url) as reply:
                    return reply.status
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.02)
