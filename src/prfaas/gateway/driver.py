"""The life of one request: count, route, offload or not, answer, prove.

Laws of this file:
- What fails before decode's first byte runs locally as a fresh request with the client's own body, once.
- What fails after the first byte ends the stream with an error event; nothing is ever answered twice.
- A landing that was reserved is either settled or released, also when the client goes away.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
import uuid
from collections.abc import Callable
from typing import Final

from prfaas.core.cache.hashing import token_digest
from prfaas.core.control.router import RequestFacts, Route, RouteKind, decide, least_busy
from prfaas.gateway.answer import Answer, DecodeFailed
from prfaas.gateway.api.errors import ApiError
from prfaas.gateway.api.http import Response
from prfaas.gateway.api.openai import ApiRequest
from prfaas.gateway.api.streaming import EventStream
from prfaas.gateway.fallback import FallbackReason, OffloadFailed
from prfaas.gateway.fleet import Instance, match_prefix
from prfaas.gateway.offload import Offload
from prfaas.gateway.prompt.prompt_tokens import PromptCount
from prfaas.gateway.service import Service
from prfaas.gateway.settlement import Settlement
from prfaas.gateway.story import Story
from prfaas.gateway.tracing import RequestTracing
from prfaas.gateway.upstream.clients import UpstreamDown
from prfaas.gateway.upstream.params import OffloadSpec, decode_params
from prfaas.observe.spans import PhaseName

#: A whole answer waits this long for the proof that goes into its headers; a stream does not wait.
MAX_PROOF_WAIT_S: Final = 2.0

logger = logging.getLogger("prfaas.gateway")


class RequestDriver:
    """One valid request. `run` it once."""

    def __init__(
        self, service: Service, response: Response, request: ApiRequest, story: Story, tracing: RequestTracing
    ) -> None:
        self._service = service
        self._response = response
        self._request = request
        self._story = story
        self._tracing = tracing
        self._began_s = time.monotonic()
        self._count = PromptCount(service, request, story)
        self._stream: EventStream | None = None
        self.settling: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Answer the client. Raises ApiError if nothing was answered yet."""
        if self._request.stream:
            self._stream = EventStream(self._response, self._service.deployment.gateway.keep_alive)
            self._stream.arm()
        try:
            if self._count.is_surely_short:
                await self._serve(self._route())
                await self._count.count_late()
            else:
                await self._count.count()
                self.phase("tokenized")
                await self._serve(self._route())
        finally:
            if self._stream is not None:
                self._stream.disarm()

    async def quiesce(self) -> None:
        """Let a comment that is on its way finish, so that an error can follow it."""
        if self._stream is not None:
            await self._stream.quiesce()

    def _route(self) -> Route:
        fleet = self._service.fleet
        facts = RequestFacts(self._count.num_tokens, self._request.obstacle)
        decoders = [instance.candidate(match_prefix(instance, self._count.chains)) for instance in fleet.decoders]
        route = decide(facts, self._service.policy, decoders, [i.candidate() for i in fleet.prefillers])
        if self._count.token_ids is not None:
            self._story.uncached_tokens = route.num_uncached_tokens
        self._tell_route(route.kind, route.reason)
        return route

    async def _serve(self, route: Route) -> None:
        if route.kind is RouteKind.NONE:
            raise _no_engine()
        decode = self._service.fleet.by_name[route.decode]
        if route.kind is RouteKind.LOCAL:
            await self._local(decode)
            return
        offload = await self._offload(decode, self._service.fleet.by_name[route.prefill])
        if offload is None:
            await self._local(self._another(decode, avoid=False))
        elif not await self._decode_landed(offload):
            await self._local(self._another(decode, avoid=True), may_retry=False)

    async def _offload(self, decode: Instance, prefill: Instance) -> Offload | None:
        """None if it failed and the request must run locally."""
        offload = Offload(self._spec(decode), decode, prefill, self._service.clients, self.phase)
        story = self._story
        story.skip_tokens = offload.spec.skip_tokens
        story.decode_instance, story.prefill_instance = decode.name, prefill.name
        story.hidden = (offload.spec.transfer_id, offload.spec.claim_secret)
        # Only the log joins the two ids: the story, which clients can read, must not name the landing.
        logger.info("offload request_id=%s transfer_id=%s", story.request_id, offload.spec.transfer_id)
        try:
            with decode.busy():
                await offload.run()
        except OffloadFailed as failed:
            self._fall_back(failed.reason, failed.detail)
            return None
        finally:
            story.kv_bytes_expected, story.kv_bytes_moved = offload.num_bytes, offload.bytes_landed
        self._service.metrics.counter("prfaas_kv_bytes_moved_total").inc(offload.bytes_landed)
        landed_s = story.phases_s["landed"] - story.phases_s["routed"]
        self._service.metrics.histogram("prfaas_kv_landed_seconds").observe(landed_s)
        self._response.set_header(b"x-prfaas-kv-bytes", str(offload.bytes_landed))
        return offload

    def _spec(self, decode: Instance) -> OffloadSpec:
        assert self._count.token_ids is not None, "only counted prompts are offloaded"
        transfer = self._service.deployment.transfer
        return OffloadSpec(
            transfer_id=uuid.uuid4().hex,
            token_ids=self._count.token_ids,
            token_digest=token_digest(self._count.packed),
            claim_secret=secrets.token_urlsafe(32),
            skip_tokens=match_prefix(decode, self._count.chains).skippable_tokens,
            model=self._service.deployment.served_model.name,
            cache_salt=self._request.cache_salt,
            headers=self._tracing.headers(PhaseName.PREFILL),
            deadline_s=transfer.deadline,
            lease_s=transfer.lease,
        )

    async def _decode_landed(self, offload: Offload) -> bool:
        """False if decode failed before its first byte, and the request must run locally."""
        chain = self._count.chains.get(offload.decode.block_tokens or 0)
        settlement = Settlement(self._service, self._story, offload, chain)
        keeper = asyncio.create_task(offload.keep_lease())

        def on_first() -> None:
            keeper.cancel()
            self.settling = self._service.background.spawn(settlement.settle())

        answer = self._answer(offload.decode, on_first)
        try:
            body = offload.decode.dialect.decode_body(self._request.body, decode_params(offload.spec))
            await answer.send(body, spare_server_errors=True, before_whole=self._show_proof)
            return True
        except UpstreamDown as error:
            self._decode_lost(offload.decode, error)
            self._fall_back(FallbackReason.DECODE_UNREACHABLE, str(error))
            return False
        except DecodeFailed as error:
            self._fall_back(FallbackReason.DECODE_ERROR, str(error))
            return False
        finally:
            keeper.cancel()
            if self.settling is None:
                offload.release()

    async def _local(self, decode: Instance, *, may_retry: bool = True) -> None:
        self._story.decode_instance = decode.name

        try:
            await self._answer(decode, lambda: self._count.ran_on(decode)).send(self._request.forwarded())
        except UpstreamDown as error:
            self._decode_lost(decode, error)
            if error.is_own:
                raise ApiError(503, "the gateway has no connection left", code="overloaded", retry_after_s=1) from error
            if not may_retry:
                raise ApiError(502, "the engine broke off before it answered", code="upstream_down") from error
            self._story.decode_retried = True
            self._service.metrics.counter("prfaas_decode_retries_total").inc()
            await self._local(self._another(decode, avoid=True), may_retry=False)

    def _answer(self, decode: Instance, on_first: Callable[[], None]) -> Answer:
        def first() -> None:
            self._story.ttft_s = self.phase("first_byte")
            if self._request.stream:
                route = self._story.route or "none"
                ttft = self._service.metrics.histogram("prfaas_time_to_first_token_seconds", route=route)
                ttft.observe(self._story.ttft_s)
            on_first()

        headers = self._tracing.headers(PhaseName.DECODE)
        return Answer(self._service.engines, self._response, self._request, self._story, decode, headers,
                      self._stream, first)  # fmt: skip

    async def _show_proof(self) -> None:
        if self.settling is not None:
            await asyncio.wait([self.settling], timeout=MAX_PROOF_WAIT_S)
        if self._story.tokens_recomputed is not None:
            self._response.set_header(b"x-prfaas-tokens-recomputed", str(self._story.tokens_recomputed))

    def _another(self, used: Instance, *, avoid: bool) -> Instance:
        """A healthy decode engine; with `avoid`, `used` only if there is no other."""
        healthy = [instance for instance in self._service.fleet.decoders if instance.engine_healthy]
        others = [instance for instance in healthy if instance is not used] if avoid else healthy
        candidates = [instance.candidate(match_prefix(instance, self._count.chains)) for instance in others or healthy]
        chosen = least_busy(candidates)
        if chosen is None:
            raise _no_engine()
        return self._service.fleet.by_name[chosen.name]

    def _decode_lost(self, decode: Instance, error: UpstreamDown) -> None:
        if error.refused:
            decode.engine_silent(refused=True)
        logger.warning("decode lost request_id=%s instance=%s error=%s", self._story.request_id, decode.name, error)

    def _fall_back(self, reason: FallbackReason, detail: str) -> None:
        story, metrics = self._story, self._service.metrics
        logger.warning("fallback request_id=%s reason=%s detail=%s", story.request_id, reason, detail)
        metrics.counter("prfaas_fallback_total", reason=reason).inc()
        if reason is FallbackReason.ZERO_BYTES:
            metrics.counter("prfaas_zero_byte_offloads_total").inc()
        story.fallback_reason, story.fallback_detail = str(reason), detail
        self.phase("fell_back")
        self._tell_route(RouteKind.LOCAL, f"fallback:{reason}")

    def _tell_route(self, kind: RouteKind, reason: str) -> None:
        self._story.route, self._story.reason = str(kind), str(reason)
        self._response.set_header(b"x-prfaas-route", str(kind))
        self._response.set_header(b"x-prfaas-reason", str(reason))
        self.phase("routed")

    def phase(self, name: str) -> float:
        """Note that `name` was reached; the first time counts. Returns seconds since the request was read."""
        now_s = time.monotonic() - self._began_s
        self._story.phases_s.setdefault(name, now_s)
        return now_s


def _no_engine() -> ApiError:
    return ApiError(503, "no healthy engine can serve this model now", code="no_healthy_engine", retry_after_s=1)
