"""The remote half of one request: reserve a landing, prefill elsewhere, wait until every byte has landed.

Laws of this file:
- Decode is never sent a request before its landing is `landed`.
- Prefill and landing are watched together, so a failure on either side is seen at once, not at the deadline.
- Whatever happens after the reservation was asked for, the landing is dropped unless decode takes it over.
- A prefill that moved nothing is a failure (`zero_bytes`), never a success.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from prfaas.core.wire.node_api import (
    FINAL_STATES,
    OPEN_STATES,
    LandingRecord,
    LandingState,
    Reserved,
    Until,
)
from prfaas.engines.dialect import PrefillPrompt
from prfaas.gateway.background import Background
from prfaas.gateway.fallback import (
    FallbackReason,
    OffloadFailed,
    check_landed,
    check_prefill,
    reserve_reason,
)
from prfaas.gateway.fleet import Instance
from prfaas.gateway.upstream.clients import Engines, UpstreamDown
from prfaas.gateway.upstream.nodes import NodeRefused, Nodes
from prfaas.gateway.upstream.params import OffloadSpec, prefill_params

logger = logging.getLogger("prfaas.gateway")

#: A landing is renewed thrice within its lease, so that one lost renewal does not end it.
RENEWALS_PER_LEASE: Final = 3
MAX_POLL_S: Final = 10.0
#: One lost poll may be an idle connection that the node has just closed; two in a row are a dead node.
MAX_LOST_POLLS: Final = 2
#: After landed, a prefill engine has only its answer left to send.
PREFILL_LINGER_S: Final = 10.0
#: Decode reports what it loaded at its first token; a busy node may take a moment longer.
FINAL_RECORD_WAIT_S: Final = 5.0
#: An engine claims a landing before it computes anything, so what decode has not claimed at its first byte it never
#: will, and there is nothing to wait for; but its word of why may be on its way to the node.
CLAIM_GRACE_S: Final = 0.25
DROP_ATTEMPTS: Final = 3

WAITING_STATES: Final = OPEN_STATES | {LandingState.LANDED}


@dataclass(frozen=True, slots=True)
class OffloadClients:
    """What an offload talks through."""

    engines: Engines
    nodes: Nodes
    background: Background


class Offload:
    """One transfer's life. `run` it; then either decode and `settle`, or `release`. All of it in one task."""

    def __init__(
        self,
        spec: OffloadSpec,
        decode: Instance,
        prefill: Instance,
        clients: OffloadClients,
        on_phase: Callable[[str], object],
    ) -> None:
        self.spec = spec
        self.decode = decode
        self.prefill = prefill
        self.num_bytes = 0
        self.bytes_landed = 0
        self._clients = clients
        self._on_phase = on_phase
        #: The life of the decode engine that `spec.skip_tokens` was matched with.
        self._boot_id = decode.record.boot_id
        self._reserving: asyncio.Task[Reserved] | None = None
        self._prefilling: asyncio.Task[None] | None = None
        self._released = False

    async def run(self) -> None:
        """Return once landed. Raises OffloadFailed; on any exit but success the landing has been given up."""
        try:
            async with asyncio.timeout(self.spec.deadline_s):
                landing = await self._reserve()
                self._on_phase("reserved")
                await self._prefill_and_land(landing)
                self._on_phase("landed")
        except BaseException as error:
            self.release()
            if isinstance(error, TimeoutError):
                detail = f"not landed within {self.spec.deadline_s:g} s"
                raise OffloadFailed(FallbackReason.DEADLINE, detail) from None
            raise

    def release(self) -> None:
        """Give the landing up. Idempotent; the work goes on in the background even if this task is cancelled."""
        if self._prefilling is not None:
            self._prefilling.cancel()
        if not self._released:
            self._released = True
            self._clients.background.spawn(self._drop())

    async def keep_lease(self) -> None:
        """Renew while the request waits in decode's queue. Returns when the engine has taken the landing."""
        while True:
            await asyncio.sleep(self.spec.lease_s / RENEWALS_PER_LEASE)
            try:
                record = await self._renew()
            except (UpstreamDown, NodeRefused):
                continue
            if record.state not in WAITING_STATES:
                return

    async def settle(self) -> LandingRecord | None:
        """The final record, with the landing freed; None if the node does not give one."""
        node, transfer_id = self.decode.kvnode_url, self.spec.transfer_id
        try:
            record = await self._clients.nodes.record(node, transfer_id, until=Until.FINAL, wait_s=CLAIM_GRACE_S)
            if record.state is LandingState.CLAIMED:
                wait_s = FINAL_RECORD_WAIT_S
                record = await self._clients.nodes.record(node, transfer_id, until=Until.FINAL, wait_s=wait_s)
            if record.state not in FINAL_STATES:
                record = await self._clients.nodes.drop(node, transfer_id)
        except (UpstreamDown, NodeRefused) as error:
            logger.warning("no final record transfer_id=%s node=%s error=%s", transfer_id, self.decode.name, error)
            self.release()
            return None
        self._released = True
        return record

    async def _reserve(self) -> Reserved:
        landing = await self._reserve_once()
        restarted = self.decode.observe_engine(landing.block_tokens, landing.engine_boot_id, landing.kv_group_kinds)
        # A probe may have seen the new life first, after the match and before this answer.
        restarted = restarted or self.decode.record.boot_id != self._boot_id
        if restarted and self.spec.skip_tokens:
            # What was to be skipped went with the engine's former life: an image without it would be useless.
            await self._clients.nodes.drop(self.decode.kvnode_url, self.spec.transfer_id)
            raise OffloadFailed(FallbackReason.LANDING_LOST, "the decode engine restarted")
        self.num_bytes = landing.num_bytes
        if self.num_bytes == 0:
            raise OffloadFailed(FallbackReason.ZERO_BYTES, "the landing has no bytes")
        return landing

    async def _reserve_once(self) -> Reserved:
        nodes, spec = self._clients.nodes, self.spec
        asking = nodes.reserve(self.decode.kvnode_url, spec.reservation())
        # Shielded: were it cancelled half way, nobody would know whether there is a landing to drop.
        self._reserving = asyncio.ensure_future(asking)
        try:
            return await asyncio.shield(self._reserving)
        except UpstreamDown as error:
            self.decode.node_ready = self.decode.node_ready and not error.refused
            raise OffloadFailed(FallbackReason.NODE_UNREACHABLE, str(error)) from error
        except NodeRefused as error:
            raise OffloadFailed(reserve_reason(error.code), str(error)) from error

    async def _prefill_and_land(self, landing: Reserved) -> None:
        self._prefilling = asyncio.create_task(self._run_prefill(landing))
        landing_task = asyncio.create_task(self._watch_landing())
        self._prefilling.add_done_callback(_retrieved)
        landing_task.add_done_callback(_retrieved)
        try:
            await asyncio.wait({self._prefilling, landing_task}, return_when=asyncio.FIRST_COMPLETED)
            if self._prefilling.done():
                # Raises what prefill raised. If it staged everything, only the bytes' arrival is left to wait for.
                self._prefilling.result()
            self.bytes_landed = await landing_task
        finally:
            landing_task.cancel()
        if not self._prefilling.done():
            self._clients.background.spawn(_linger(self._prefilling))

    async def _run_prefill(self, landing: Reserved) -> None:
        dialect, spec = self.prefill.dialect, self.spec
        url = self.prefill.engine_url + dialect.prefill_path
        prompt = PrefillPrompt(spec.model, spec.token_ids, spec.cache_salt)
        sent = dialect.prefill_body(prompt, prefill_params(spec, landing))
        with self.prefill.busy():
            try:
                status, body = await self._clients.engines.post(url, sent, spec.headers)
            except UpstreamDown as error:
                if error.refused:
                    self.prefill.engine_silent(refused=True)
                raise OffloadFailed(FallbackReason.PREFILL_UNREACHABLE, str(error)) from error
        self._on_phase("prefilled")
        check_prefill(dialect.read_prefill(status, body))

    async def _watch_landing(self) -> int:
        """Bytes landed."""
        poll_s = min(MAX_POLL_S, self.spec.lease_s / RENEWALS_PER_LEASE)
        num_lost = 0
        while True:
            try:
                record = await self._poll(poll_s)
                num_lost = 0
            except UpstreamDown as error:
                num_lost += 1
                if error.refused or num_lost >= MAX_LOST_POLLS:
                    raise OffloadFailed(FallbackReason.NODE_UNREACHABLE, str(error)) from error
                continue
            except NodeRefused as error:
                raise OffloadFailed(FallbackReason.LANDING_LOST, str(error)) from error
            if record.state not in OPEN_STATES:
                return check_landed(record)
            await self._renew_quietly()

    async def _poll(self, wait_s: float) -> LandingRecord:
        node, transfer_id = self.decode.kvnode_url, self.spec.transfer_id
        return await self._clients.nodes.record(node, transfer_id, until=Until.LANDED, wait_s=wait_s)

    async def _renew(self) -> LandingRecord:
        return await self._clients.nodes.renew(self.decode.kvnode_url, self.spec.transfer_id, self.spec.lease_s)

    async def _renew_quietly(self) -> None:
        try:
            await self._renew()
        except (UpstreamDown, NodeRefused) as error:
            # The next poll meets the same node and decides.
            logger.info("lease not renewed transfer_id=%s error=%s", self.spec.transfer_id, error)

    async def _drop(self) -> None:
        if self._reserving is not None:
            await asyncio.wait([self._reserving])
        node, transfer_id = self.decode.kvnode_url, self.spec.transfer_id
        for attempt in range(DROP_ATTEMPTS):
            try:
                await self._clients.nodes.drop(node, transfer_id)
                return
            except NodeRefused:
                return
            except UpstreamDown as error:
                # If the node stays away its lease frees the space.
                logger.info("landing not dropped transfer_id=%s attempt=%d error=%s", transfer_id, attempt, error)
                await asyncio.sleep(0.2 * (attempt + 1))


def _retrieved(task: asyncio.Task[Any]) -> None:
    # When both sides fail, only the first is raised; asyncio shall not report the other as forgotten.
    if not task.cancelled():
        task.exception()


async def _linger(prefilling: asyncio.Task[None]) -> None:
    await asyncio.wait([prefilling], timeout=PREFILL_LINGER_S)
    prefilling.cancel()
