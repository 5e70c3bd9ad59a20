"""After decode: did the KVCache that was sent really serve the request? What is learned goes into story and metrics."""

from __future__ import annotations

import logging

from prfaas.core.cache.hashing import TokenChain
from prfaas.core.wire.node_api import LandingRecord, LandingState
from prfaas.gateway.fallback import FallbackReason
from prfaas.gateway.offload import Offload
from prfaas.gateway.service import Service
from prfaas.gateway.story import Story

logger = logging.getLogger("prfaas.gateway")


class Settlement:
    """One offloaded request's last act."""

    def __init__(self, service: Service, story: Story, offload: Offload, chain: TokenChain | None) -> None:
        self._service = service
        self._story = story
        self._offload = offload
        self._chain = chain

    async def settle(self) -> None:
        """Fetch the landing's final record, free it, and draw the conclusions."""
        record = await self._offload.settle()
        if record is None:
            self._service.metrics.counter("prfaas_unproven_offloads_total").inc()
            self._story.events.append("the node gave no final record")
            return
        self._note(record)
        if record.state is LandingState.CONSUMED and record.tokens_loaded:
            self._loaded()
        else:
            self._not_loaded(record)

    def _note(self, record: LandingRecord) -> None:
        story = self._story
        story.landing_state = record.state.value
        story.tokens_loaded, story.tokens_recomputed = record.tokens_loaded, record.tokens_recomputed
        story.kv_bytes_resent = record.bytes_resent

    def _loaded(self) -> None:
        recomputed = self._story.tokens_recomputed or 0
        self._service.metrics.counter("prfaas_tokens_recomputed_total").inc(recomputed)
        if self._chain is not None:
            self._offload.decode.record.landed(self._chain)

    def _not_loaded(self, record: LandingRecord) -> None:
        story, metrics = self._story, self._service.metrics
        if story.tokens_recomputed is None:
            story.tokens_recomputed = story.prompt_tokens
        metrics.counter("prfaas_zero_byte_offloads_total").inc()
        metrics.counter("prfaas_fallback_total", reason=FallbackReason.NOT_LOADED).inc()
        metrics.counter("prfaas_tokens_recomputed_total").inc(story.tokens_recomputed or 0)
        story.fallback_reason = str(FallbackReason.NOT_LOADED)
        story.fallback_detail = str(record.reason)
        logger.warning(
            "fallback request_id=%s reason=not_loaded landing=%s detail=%s",
            story.request_id, story.landing_state, story.fallback_detail,
        )  # fmt: skip
        if self._chain is not None:
            # It may have refused because it no longer held what was skipped; then it has computed all of it now.
            self._offload.decode.record.forget(self._chain)
            self._offload.decode.record.ran_locally(self._chain)
