"""The remote legs of a request, as tasks whose result is one event each: reserve, prefill, watch, renew, settle, drop.

Laws of this file:
- A reservation is never stopped half way: nobody would know whether there is a landing to drop.
- A prefill tells its end also when it is stopped.
- One lost poll may be an idle connection that the node has just closed; two in a row are a dead node.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
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

Feed = Callable[[e.RequestEvent], None]


class Transfers:
    """Runs legs; `feed` takes their events."""

    def __init__(self, engines: Engines, nodes: Nodes, feed: Feed) -> None:
        self._engines = engines
        self._nodes = nodes
        self._feed = feed

    async def reserve(self, live: LiveRequest) -> None:
        assert live.spec is not None, "a transfer is specified before its landing is reserved"
        request_id = live.request_id
        try:
            live.landing = await self._nodes.reserve(live.node_url, live.spec.reservation())
        except UpstreamDown as error:
            failure = Failure(FallbackReason.NODE_UNREACHABLE, str(error), error.refused)
            self._feed(e.ReserveFailed(request_id, failure))
        except NodeRefused as error:
            self._feed(e.ReserveFailed(request_id, Failure(_reserve_reason(error.code), str(error))))
        else:
            landing = live.landing
            self._feed(
                e.LandingReserved(
                    request_id, landing.num_bytes, landing.block_tokens, landing.engine_boot_id, landing.kv_group_kinds
                )
            )

    async def prefill(self, live: LiveRequest, member: Instance) -> None:
        assert live.spec is not None, "a transfer is specified before its prompt is prefilled"
        assert live.landing is not None, "a prompt is prefilled into a landing"
        spec, dialect = live.spec, dialect_of(member.kind)
        prompt = PrefillPrompt(spec.model, spec.token_ids, spec.cache_salt)
        sent = dialect.prefill_body(prompt, prefill_params(spec, live.landing))
        failure: Failure | None = None
        try:
            status, body = await self._engines.post(member.engine_url + dialect.prefill_path, sent, spec.headers)
            failure = failure_of(dialect.read_prefill(status, body))
        except UpstreamDown as error:
            failure = Failure(FallbackReason.PREFILL_UNREACHABLE, str(error), error.refused)
        finally:
            self._feed(e.PrefillEnded(live.request_id, failure))

    async def watch(self, live: LiveRequest, lease_s: float) -> None:
        """Poll until the landing is past receiving."""
        num_lost = 0
        while True:
            try:
                record = await self._record(live, Until.LANDED, min(MAX_POLL_S, lease_s))
                num_lost = 0
            except UpstreamDown as error:
                num_lost += 1
                if error.refused or num_lost >= MAX_LOST_POLLS:
                    self._landing_failed(live, FallbackReason.NODE_UNREACHABLE, str(error))
                    return
                continue
            except NodeRefused as error:
                self._landing_failed(live, FallbackReason.LANDING_LOST, str(error))
                return
            if record.state not in OPEN_STATES:
                self._landing_over(live, record)
                return

    async def renew(self, live: LiveRequest, lease_s: float) -> None:
        is_held = True
        try:
            record = await self._nodes.renew(live.node_url, self._transfer_id(live), lease_s)
            is_held = record.state in WAITING_STATES
        except (UpstreamDown, NodeRefused) as error:
            # The poll meets the same node and decides.
            logger.info("lease not renewed request_id=%s error=%s", live.request_id, error)
        self._feed(e.LeaseRenewed(live.request_id, is_held))

    async def settle(self, live: LiveRequest) -> None:
        """The final record, with the landing freed."""
        try:
            record = await self._record(live, Until.FINAL, CLAIM_GRACE_S)
            if record.state is LandingState.CLAIMED:
                record = await self._record(live, Until.FINAL, FINAL_RECORD_WAIT_S)
            if record.state not in FINAL_STATES:
                record = await self._nodes.drop(live.node_url, self._transfer_id(live))
        except (UpstreamDown, NodeRefused) as error:
            logger.warning("no final record request_id=%s node=%s error=%s", live.request_id, live.node_url, error)
            self._feed(e.LandingSettled(live.request_id, None))
            return
        final = e.FinalRecord(
            record.state, record.reason, record.tokens_loaded, record.tokens_recomputed, record.bytes_resent
        )
        self._feed(e.LandingSettled(live.request_id, final))

    async def drop(self, live: LiveRequest) -> None:
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
        self._feed(e.LandingDropped(live.request_id))

    async def _record(self, live: LiveRequest, until: Until, wait_s: float) -> LandingRecord:
        return await self._nodes.record(live.node_url, self._transfer_id(live), until=until, wait_s=wait_s)

    def _transfer_id(self, live: LiveRequest) -> str:
        assert live.spec is not None, "only a transfer has a landing"
        return live.spec.transfer_id

    def _landing_over(self, live: LiveRequest, record: LandingRecord) -> None:
        if record.state is LandingState.LANDED:
            self._feed(e.LandingEnded(live.request_id, record.bytes_landed))
            return
        expired = record.state is LandingState.EXPIRED
        reason = FallbackReason.LANDING_EXPIRED if expired else FallbackReason.LANDING_ABORTED
        self._landing_failed(live, reason, str(record.reason))

    def _landing_failed(self, live: LiveRequest, reason: FallbackReason, detail: str) -> None:
        self._feed(e.LandingEnded(live.request_id, failure=Failure(reason, detail)))


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
