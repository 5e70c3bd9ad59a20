"""The remote legs of a request: reserve, prefill, watch, renew, settle, drop. Each returns the event that it ends in.

Laws of this file:
- What a node or an engine answers, or that it does not, is an event. Only a defect of ours is raised.
- One lost poll may be an idle connection that the node has just closed; two in a row are a dead node.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from prfaas.core.control import events as e
from prfaas.core.control.fallback import Failure, FallbackReason
from prfaas.core.topology import Instance
from prfaas.core.wire.node_api import FINAL_STATES, OPEN_STATES, LandingRecord, LandingState, Until
from prfaas.engines.dialect import PrefillAnswer, PrefillFault, PrefillPrompt
from prfaas.engines.kinds import dialect_of
from prfaas.gateway.live_request import LiveRequest
from prfaas.gateway.upstream.clients import Engines, UpstreamDown
from prfaas.gateway.upstream.nodes import NodeRefused, Nodes
from prfaas.gateway.upstream.params import prefill_params

logger = logging.getLogger("prfaas.gateway")

MAX_POLL_S: Final = 10.0
MAX_LOST_POLLS: Final = 2
#: Decode reports what it loaded at its first token; a busy node may take a moment longer.
FINAL_RECORD_WAIT_S: Final = 5.0
#: An engine claims a landing before it computes anything, so what decode has not claimed at its first byte it never
#: will, and there is nothing to wait for; but its word of why may be on its way to the node.
CLAIM_GRACE_S: Final = 0.25
DROP_ATTEMPTS: Final = 3
WAITING_STATES: Final = OPEN_STATES | {LandingState.LANDED}


class Transfers:
    """Of all requests of one gateway."""

    def __init__(self, engines: Engines, nodes: Nodes) -> None:
        self._engines = engines
        self._nodes = nodes

    async def reserve(self, live: LiveRequest) -> e.LandingReserved | e.ReserveFailed:
        assert live.spec is not None, "a transfer is specified before its landing is reserved"
        try:
            landing = live.landing = await self._nodes.reserve(live.node_url, live.spec.reservation())
        except UpstreamDown as error:
            failure = Failure(FallbackReason.NODE_UNREACHABLE, str(error), error.refused)
            return e.ReserveFailed(live.request_id, failure)
        except NodeRefused as error:
            return e.ReserveFailed(live.request_id, Failure(_reserve_reason(error.code), str(error)))
        kinds, boot_id = landing.kv_group_kinds, landing.engine_boot_id
        return e.LandingReserved(live.request_id, landing.num_bytes, landing.block_tokens, boot_id, kinds)

    async def prefill(self, live: LiveRequest, member: Instance, deadline_s: float) -> e.PrefillEnded:
        assert live.spec is not None, "a transfer is specified before its prompt is prefilled"
        assert live.landing is not None, "a prompt is prefilled into a landing"
        spec, dialect = live.spec, dialect_of(member.kind)
        prompt = PrefillPrompt(spec.model, spec.token_ids, spec.cache_salt)
        sent = dialect.prefill_body(prompt, prefill_params(spec, live.landing, deadline_s))
        try:
            status, body = await self._engines.post(member.engine_url + dialect.prefill_path, sent, spec.headers)
        except UpstreamDown as error:
            failure = Failure(FallbackReason.PREFILL_UNREACHABLE, str(error), error.refused)
            return e.PrefillEnded(live.request_id, failure)
        return e.PrefillEnded(live.request_id, failure_of(dialect.read_prefill(status, body)))

    async def watch(self, live: LiveRequest, lease_s: float) -> e.LandingEnded:
        """Poll until the landing is past receiving."""
        num_lost = 0
        while True:
            try:
                record = await self._record(live, Until.LANDED, min(MAX_POLL_S, lease_s))
                num_lost = 0
            except UpstreamDown as error:
                num_lost += 1
                if error.refused or num_lost >= MAX_LOST_POLLS:
                    return _landing_failed(live, FallbackReason.NODE_UNREACHABLE, str(error))
                continue
            except NodeRefused as error:
                return _landing_failed(live, FallbackReason.LANDING_LOST, str(error))
            if record.state not in OPEN_STATES:
                return _landing_over(live, record)

    async def renew(self, live: LiveRequest, lease_s: float) -> e.LeaseRenewed:
        try:
            record = await self._nodes.renew(live.node_url, self._transfer_id(live), lease_s)
        except (UpstreamDown, NodeRefused) as error:
            # The poll meets the same node and decides.
            logger.info("lease not renewed request_id=%s error=%s", live.request_id, error)
            return e.LeaseRenewed(live.request_id, is_held=True)
        return e.LeaseRenewed(live.request_id, record.state in WAITING_STATES)

    async def settle(self, live: LiveRequest) -> e.LandingSettled:
        """The final record, with the landing freed."""
        try:
            record = await self._record(live, Until.FINAL, CLAIM_GRACE_S)
            if record.state is LandingState.CLAIMED:
                record = await self._record(live, Until.FINAL, FINAL_RECORD_WAIT_S)
            if record.state not in FINAL_STATES:
                record = await self._nodes.drop(live.node_url, self._transfer_id(live))
        except (UpstreamDown, NodeRefused) as error:
            logger.warning("no final record request_id=%s node=%s error=%s", live.request_id, live.node_url, error)
            return e.LandingSettled(live.request_id, None)
        final = e.FinalRecord(
            record.state, record.reason, record.tokens_loaded, record.tokens_recomputed, record.bytes_resent
        )
        return e.LandingSettled(live.request_id, final)

    async def drop(self, live: LiveRequest) -> e.LandingDropped:
        for attempt in range(DROP_ATTEMPTS):
            try:
                await self._nodes.drop(live.node_url, self._transfer_id(live))
                break
            except NodeRefused:
                break
            except UpstreamDown as error:
                # If the node stays away its lease frees the space.
                logger.info("landing not dropped request_id=%s attempt=%d error=%s", live.request_id, attempt, error)
                await asyncio.sleep(0.2 * (attempt + 1))
        return e.LandingDropped(live.request_id)

    async def _record(self, live: LiveRequest, until: Until, wait_s: float) -> LandingRecord:
        return await self._nodes.record(live.node_url, self._transfer_id(live), until=until, wait_s=wait_s)

    def _transfer_id(self, live: LiveRequest) -> str:
        assert live.spec is not None, "only a transfer has a landing"
        return live.spec.transfer_id


def _landing_over(live: LiveRequest, record: LandingRecord) -> e.LandingEnded:
    if record.state is LandingState.LANDED:
        return e.LandingEnded(live.request_id, record.bytes_landed)
    expired = record.state is LandingState.EXPIRED
    reason = FallbackReason.LANDING_EXPIRED if expired else FallbackReason.LANDING_ABORTED
    return _landing_failed(live, reason, str(record.reason))


def _landing_failed(live: LiveRequest, reason: FallbackReason, detail: str) -> e.LandingEnded:
    return e.LandingEnded(live.request_id, failure=Failure(reason, detail))


_OF_PREFILL: Final = {
    PrefillFault.HTTP_ERROR: FallbackReason.PREFILL_HTTP_ERROR,
    PrefillFault.NO_TRANSFER: FallbackReason.ZERO_BYTES,
    PrefillFault.FAILED: FallbackReason.PREFILL_FAILED,
    PrefillFault.NO_BYTES: FallbackReason.ZERO_BYTES,
}


def failure_of(answer: PrefillAnswer) -> Failure | None:
    """Why a prefill that was answered is of no use; None if it staged every byte."""
    return None if answer.fault is None else Failure(_OF_PREFILL[answer.fault], answer.detail)


def _reserve_reason(code: str) -> FallbackReason:
    known = (FallbackReason.NO_ENGINE, FallbackReason.ARENA_FULL, FallbackReason.TOO_MANY_LANDINGS)
    return FallbackReason(code) if code in known else FallbackReason.RESERVE_ERROR
