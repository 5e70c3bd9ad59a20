"""An OpenAI-compatible engine without a model: deterministic tokens, `kv_transfer_params`, and faults to switch on.

The answer depends on the prompt alone, so a test can tell whether an offloaded answer equals a local one.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
from aiohttp import web

from prfaas.core.cache.hashing import pack_tokens, token_digest
from prfaas.core.transfer.landings import ClaimKey
from prfaas.core.wire.contract import BadMessage
from prfaas.core.wire.params import (
    DecodeParams,
    PrefillParams,
    PrefillReport,
    PrefillStatus,
    ours,
    read_leg,
    report_leg,
    text_of,
)
from prfaas.engines.dialect import EngineLoad
from prfaas.testing.fake_kvnode import FakeKVNode
from prfaas.testing.fake_server import FakeServer

PrefillFault = Literal["none", "die", "error", "failed", "silent", "zero_bytes", "stage_only", "stall"]
DecodeFault = Literal["none", "die", "error", "refuse", "cut", "half_event", "no_done", "stall", "decline"]


@dataclass
class EngineFaults:
    """`prefill`: die (connection cut), error (500), failed (status failed), silent (no transfer spoken of),
    zero_bytes (staged nothing), stage_only (staged, but nothing ever lands), stall (never answers).
    `decode`: die (cut before the first byte), error (500), refuse (400), cut (after some events), half_event (in the
    middle of one), no_done (ends without [DONE]), stall (headers only after `release`), decline (does not load).
    `echo`: errors repeat our part of the request, as engines' validation errors do."""

    prefill: PrefillFault = "none"
    decode: DecodeFault = "none"
    healthy: bool = True
    echo: bool = False
    event_gap_s: float = 0.0
    fresh_only: bool = False
    remaining: int | None = None

    def take(self, fault: str) -> str:
        """The fault to play now; `remaining` counts down to none."""
        if fault == "none" or self.remaining is None:
            return fault
        self.remaining -= 1
        return fault if self.remaining >= 0 else "none"


@dataclass
class Seen:
    """One request as it came in."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    raw: bytes
    is_done: bool = False
    is_cut_by_client: bool = False

    @property
    def params(self) -> dict[str, Any]:
        """Our part of `kv_transfer_params`; empty for a fresh request."""
        return dict((self.body.get("kv_transfer_params") or {}).get("prfaas") or {})

    @property
    def leg(self) -> str:
        """`prefill`, `decode` or `fresh`."""
        params = self.body.get("kv_transfer_params") or {}
        return "prefill" if params.get("do_remote_decode") else "decode" if params.get("do_remote_prefill") else "fresh"


@dataclass(eq=False)
class FakeEngine(FakeServer):
    """`nodes` are the KV nodes that it can ship to, by name; `node` is the one beside it, from which it loads.
    `tokenize` makes token ids of a body; without it, the engine takes the digest that came along for its prompt's.
    `load` is what its metrics say; None for an engine that has none."""

    nodes: Mapping[str, FakeKVNode] = field(default_factory=dict)
    node: FakeKVNode | None = None
    tokenize: Callable[[dict[str, Any]], list[int]] | None = None
    faults: EngineFaults = field(default_factory=EngineFaults)
    load: EngineLoad | None = None
    seen: list[Seen] = field(default_factory=list)
    release: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        FakeServer.__init__(self)

    def legs(self, leg: str) -> list[Seen]:
        """Requests of one kind, in order."""
        return [seen for seen in self.seen if seen.leg == leg]

    def routes(self) -> list[web.RouteDef]:
        """OpenAI's and vLLM's."""
        return [
            web.get("/health", self._health),
            web.get("/metrics", self._metrics),
            web.post("/v1/completions", self._generate),
            web.post("/v1/chat/completions", self._generate),
        ]

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if self.faults.healthy else 503)

    async def _metrics(self, request: web.Request) -> web.Response:
        if self.load is None:
            return web.Response(status=404)
        labels = '{engine="0",model_name="tiny"}'
        return web.Response(
            text=f"vllm:num_requests_running{labels} {self.load.running}.0\n"
            f"vllm:num_requests_waiting{labels} {self.load.waiting}.0\n"
        )

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        seen = Seen(request.path, {k.lower(): v for k, v in request.headers.items()}, json.loads(raw), raw)
        self.seen.append(seen)
        try:
            answer = await (self._prefill(request, seen) if seen.leg == "prefill" else self._decode(request, seen))
        except (asyncio.CancelledError, ConnectionResetError):
            seen.is_cut_by_client = True
            raise
        seen.is_done = True
        return answer

    async def _prefill(self, request: web.Request, seen: Seen) -> web.StreamResponse:
        fault = self.faults.take(self.faults.prefill)
        if fault == "die":
            return _cut(request)
        if fault == "error":
            return self._died(seen)
        if fault == "stall":
            await self.release.wait()
        reply: dict[str, Any] = {**_answer(seen.body, 1, "text_completion")}
        if fault != "silent":
            reply["kv_transfer_params"] = report_leg(await self.ship(seen, fault))
        return web.json_response(reply)

    async def ship(self, seen: Seen, fault: str) -> PrefillReport:
        """Send the prompt's KVCache, and say how it went."""
        part = seen.params
        try:
            params = read_leg(part, PrefillParams)
        except BadMessage as bad:
            return failed_report(part, str(bad))
        if fault == "failed":
            return failed_report(part, f"out of blocks for {_repeated(part)}" if self.faults.echo else "out of blocks")
        said = PrefillReport(
            transfer_id=params.transfer_id, status=PrefillStatus.STAGED, num_bytes=params.num_bytes, error=None
        )
        if fault == "zero_bytes":
            return msgspec.structs.replace(said, num_bytes=0)
        if fault != "stage_only":
            self.nodes[params.peer].land(params.transfer_id, params.token)
        return said

    def _died(self, seen: Seen) -> web.Response:
        message = f"engine died of {_repeated(seen.params)}" if self.faults.echo else "engine died"
        return web.json_response({"error": {"message": message, "type": "InternalServerError"}}, status=500)

    async def _decode(self, request: web.Request, seen: Seen) -> web.StreamResponse:
        wanted = "none" if self.faults.fresh_only and seen.leg != "fresh" else self.faults.decode
        fault = self.faults.take(wanted)
        if fault == "die":
            return _cut(request)
        if fault == "error":
            return self._died(seen)
        if fault == "refuse":
            return web.json_response({"object": "error", "message": "no such voice", "code": 400}, status=400)
        if fault == "stall":
            await self.release.wait()
        if seen.leg == "decode" and fault != "decline":
            await self.take_landing(seen)
        num_tokens = seen.body.get("max_completion_tokens") or seen.body.get("max_tokens") or 16
        kind = "chat.completion" if "chat" in seen.path else "text_completion"
        if not seen.body.get("stream"):
            return web.json_response(_answer(seen.body, num_tokens, kind))
        return await self._stream(request, seen.body, num_tokens, kind, fault)

    async def take_landing(self, seen: Seen) -> None:
        """Load what has landed for a request, or say why not."""
        body = seen.body
        part = ours(body.get("kv_transfer_params"), DecodeParams)
        if self.node is None or part is None:
            return
        try:
            params = read_leg(part, DecodeParams)
        except BadMessage as error:
            self.node.decline(text_of(part, "transfer_id"), text_of(part, "claim_secret"), str(error))
            return
        digest, num_tokens = params.token_digest, params.num_prompt_tokens
        if self.tokenize is not None:
            token_ids = self.tokenize(body)
            digest, num_tokens = token_digest(pack_tokens(token_ids)), len(token_ids)
        self.node.load(params.transfer_id, ClaimKey(num_tokens, digest, params.claim_secret))

    async def _stream(
        self, request: web.Request, body: dict[str, Any], num_tokens: int, kind: str, fault: str
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        num_sent = 0
        async for event in self._events(body, num_tokens, kind):
            if fault in ("cut", "half_event") and num_sent == 2:
                if fault == "half_event":
                    await response.write(event[: len(event) // 2])
                return _cut(request)
            await response.write(event)
            num_sent += 1
        if fault != "no_done":
            await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    async def _events(self, body: dict[str, Any], num_tokens: int, kind: str) -> AsyncIterator[bytes]:
        for piece in _pieces(body, num_tokens):
            yield _event(_chunk(body, kind, piece))
            if self.faults.event_gap_s:
                await asyncio.sleep(self.faults.event_gap_s)
        if (body.get("stream_options") or {}).get("include_usage"):
            yield _event({**_chunk(body, kind, None), "choices": [], "usage": _usage(num_tokens)})


def failed_report(part: dict[str, Any], error: str) -> PrefillReport:
    """Of a transfer that did not come about."""
    transfer_id = text_of(part, "transfer_id")
    return PrefillReport(transfer_id=transfer_id, status=PrefillStatus.FAILED, num_bytes=0, error=error)


def _repeated(params: dict[str, Any]) -> str:
    # Short, because the gateway keeps only an error's beginning.
    return " ".join(str(params[name]) for name in ("transfer_id", "claim_secret") if name in params)


def _cut(request: web.Request) -> web.Response:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


def answer_text(prompt: str, num_tokens: int) -> str:
    """What every engine of this kind answers to a prompt."""
    return "".join(_pieces({"prompt": prompt}, num_tokens))


def _pieces(body: dict[str, Any], num_tokens: int) -> list[str]:
    prompt = json.dumps(body.get("prompt", body.get("messages")), sort_keys=True)
    seed = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).digest()
    return [f"t{seed[index % 32]}-{index} " for index in range(num_tokens)]


def _answer(body: dict[str, Any], num_tokens: int, kind: str) -> dict[str, Any]:
    text = "".join(_pieces(body, num_tokens))
    choice: dict[str, Any] = {"index": 0, "finish_reason": "length"}
    if kind == "chat.completion":
        choice["message"] = {"role": "assistant", "content": text}
    else:
        choice["text"] = text
    return {"id": "fake", "object": kind, "created": 0, "model": body["model"], "choices": [choice],
            "usage": _usage(num_tokens)}  # fmt: skip


def _chunk(body: dict[str, Any], kind: str, piece: str | None) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": 0, "finish_reason": None}
    if kind == "chat.completion":
        choice["delta"] = {"content": piece}
        kind = "chat.completion.chunk"
    else:
        choice["text"] = piece
    return {"id": "fake", "object": kind, "created": 0, "model": body["model"], "choices": [choice]}


def _usage(num_tokens: int) -> dict[str, int]:
    return {"prompt_tokens": 0, "completion_tokens": num_tokens, "total_tokens": num_tokens}


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"
