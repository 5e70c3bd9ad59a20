"""The scheduler's half of the connector: which requests ship, which load, and what the node must be told.

Runs inside the engine's scheduling loop, so every call to the node has a short deadline, and a node that does not
answer costs a transfer, never a request.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from prfaas.core.cache.hashing import pack_tokens, token_digest
from prfaas.core.errors import PrfaasError, Refused
from prfaas.core.wire.contract import BadMessage
from prfaas.core.wire.engine import Claim, Declined, StageClose, StageOpen
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
from prfaas.engines.node_client import NodeClient
from prfaas.engines.vllm.metadata import LoadOrder, ShipStep, StepMetadata

if TYPE_CHECKING:
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request

logger = logging.getLogger("vllm.prfaas")

#: What the gateway shows of an error; the engine's log has the rest.
MAX_ERROR_CHARS = 2000


@dataclass
class Outgoing:
    """A request whose prompt is prefilled here for another cluster."""

    transfer_id: str
    num_prompt_tokens: int
    skip_tokens: int
    node_boot_id: str = ""
    arena_offset: int = 0
    num_bytes: int = 0
    error: str | None = None
    worker_knows: bool = False
    all_scheduled: bool = False


class LoadStage(Enum):
    """Where an incoming landing stands. CLAIMED: ours, not yet ordered; ORDERED: the worker copies; OVER: no more."""

    CLAIMED = 1
    ORDERED = 2
    OVER = 3


@dataclass
class Incoming:
    """A request whose prompt was prefilled elsewhere and has landed at our node."""

    transfer_id: str
    claim_secret: str = field(repr=False)
    num_prompt_tokens: int
    stage: LoadStage
    node_boot_id: str = ""
    arena_offset: int = 0
    skip_tokens: int = 0


class SchedulerSide:
    """One per engine; called by vLLM's scheduler from one thread."""

    def __init__(self, client: NodeClient, has_linear_state: bool) -> None:
        self._client = client
        self._has_linear_state = has_linear_state
        self._outgoing: dict[str, Outgoing] = {}
        self._incoming: dict[str, Incoming] = {}
        self._orders: list[LoadOrder] = []

    # -- prefill side

    def new_request(self, request: Request) -> None:
        """Drop the last prompt token and open the transfer, if this request is prefilled for another cluster."""
        part = ours(request.kv_transfer_params, PrefillParams)
        if part is None or request.request_id in self._outgoing:
            return
        outgoing = Outgoing(text_of(part, "transfer_id"), request.num_prompt_tokens, 0)
        self._outgoing[request.request_id] = outgoing
        try:
            self._open(request, read_leg(part, PrefillParams), outgoing)
        except (PrfaasError, ValueError) as error:
            outgoing.error = f"{type(error).__name__}: {error}"
            logger.warning("transfer %s is not shipped: %s", outgoing.transfer_id, outgoing.error)

    def _open(self, request: Request, params: PrefillParams, outgoing: Outgoing) -> None:
        if request.prompt_token_ids is None or request.num_prompt_tokens != params.num_prompt_tokens:
            raise ValueError(f"the prompt has {request.num_prompt_tokens} tokens, not {params.num_prompt_tokens}")
        if request.num_prompt_tokens < 2 or request.get_skip_reading_prefix_cache():
            raise ValueError("this prompt cannot be prefilled for another cluster")
        outgoing.skip_tokens = params.skip_tokens
        opened = self._client.stage_open(
            StageOpen(
                transfer_id=params.transfer_id,
                peer=params.peer,
                token=params.token,
                num_bytes=params.num_bytes,
                deadline_s=params.deadline_s,
            )
        )
        outgoing.node_boot_id = opened.node_boot_id
        outgoing.arena_offset, outgoing.num_bytes = opened.arena_offset, opened.num_bytes
        # Recurrent state cannot be rolled back: compute N - 1 tokens here, so that what is shipped is the state
        # after N - 1, and decode computes the last one itself.
        del request.prompt_token_ids[-1:]
        del request._all_token_ids[-1:]
        request.num_prompt_tokens -= 1
        request.max_tokens = 1

    def ships(self, output: SchedulerOutput) -> list[ShipStep]:
        """What the worker shall ship in this step."""
        if not self._outgoing or output.kv_connector_block_state is None:
            return []
        computed = {new.req_id: new.num_computed_tokens for new in output.scheduled_new_reqs}
        cached = output.scheduled_cached_reqs
        computed.update(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        steps: list[ShipStep] = []
        for request_id, num_scheduled in output.num_scheduled_tokens.items():
            outgoing = self._outgoing.get(request_id)
            block_ids = output.kv_connector_block_state.get_block_ids(request_id)
            if outgoing is None or outgoing.error is not None or block_ids is None:
                continue
            total = outgoing.num_prompt_tokens - 1
            end = min(computed[request_id] + num_scheduled, total)
            outgoing.worker_knows = True
            outgoing.all_scheduled = outgoing.all_scheduled or end == total
            tables = tuple(list(table) for table in block_ids)
            steps.append(
                ShipStep(
                    request_id, outgoing.transfer_id, outgoing.node_boot_id, outgoing.arena_offset,
                    outgoing.num_prompt_tokens, outgoing.skip_tokens, end, tables,
                )
            )  # fmt: skip
        return steps

    # -- decode side

    def num_tokens_to_load(self, request: Request, num_computed_tokens: int) -> int:
        """Tokens beyond `num_computed_tokens` that a landing holds; 0 if the engine must compute them.

        Called again for as long as the request waits, so a claim is made once and remembered.
        """
        part = ours(request.kv_transfer_params, DecodeParams)
        if part is None:
            return 0
        incoming = self._incoming.get(request.request_id)
        if incoming is None:
            incoming = self._incoming[request.request_id] = self._claim(request, part)
        if incoming.stage is not LoadStage.CLAIMED:
            return 0
        if num_computed_tokens < incoming.skip_tokens:
            why = f"engine holds {num_computed_tokens} tokens of the prefix, {incoming.skip_tokens} were left out"
            self._decline(incoming, why, request.num_prompt_tokens - num_computed_tokens)
            return 0
        return max(0, incoming.num_prompt_tokens - 1 - num_computed_tokens)

    def _claim(self, request: Request, part: dict[str, Any]) -> Incoming:
        num_tokens = request.num_prompt_tokens
        incoming = Incoming(text_of(part, "transfer_id"), text_of(part, "claim_secret"), num_tokens, LoadStage.OVER)
        # Of the tokens that this engine has, whatever digest came along: the node compares it with the reserved one.
        digest = token_digest(pack_tokens(request.prompt_token_ids or []))
        try:
            params = read_leg(part, DecodeParams)
            if digest != params.token_digest:
                raise Refused("other_prompt", "the engine tokenized the prompt differently from the gateway")
            claimed = self._client.claim(
                Claim(
                    transfer_id=params.transfer_id,
                    num_prompt_tokens=num_tokens,
                    token_digest=digest,
                    claim_secret=params.claim_secret,
                )
            )
        except Refused as error:
            self._decline(incoming, f"{error.code}: {error.message}", num_tokens)
            return incoming
        except BadMessage as error:
            self._decline(incoming, str(error), num_tokens)
            return incoming
        except PrfaasError as error:
            logger.warning("transfer %s cannot be loaded: %s", incoming.transfer_id, error)
            return incoming
        incoming.stage = LoadStage.CLAIMED
        incoming.node_boot_id, incoming.skip_tokens = claimed.node_boot_id, claimed.skip_tokens
        incoming.arena_offset = claimed.arena_offset
        return incoming

    def allocated(self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int) -> None:
        """The scheduler gave the request blocks: order the load, or let the landing go if it wants none."""
        incoming = self._incoming.get(request.request_id)
        if incoming is None or incoming.stage is not LoadStage.CLAIMED:
            return
        if num_external_tokens == 0:
            # The cache holds N - 1 tokens. With linear state in the model that is not enough, because the state
            # there may be gone, and vLLM then computes from an earlier boundary that it does not tell.
            recomputed = request.num_prompt_tokens if self._has_linear_state else 1
            self._decline(incoming, "the engine's own prefix cache reaches as far", recomputed)
            return
        incoming.stage = LoadStage.ORDERED
        tables = tuple(list(table) for table in blocks.get_block_ids())
        self._orders.append(
            LoadOrder(
                request.request_id, incoming.transfer_id, incoming.node_boot_id, incoming.arena_offset,
                incoming.num_prompt_tokens, incoming.skip_tokens,
                incoming.num_prompt_tokens - 1 - num_external_tokens, tables,
            )
        )  # fmt: skip

    # -- both

    def step(self, output: SchedulerOutput) -> StepMetadata:
        """This step's work for the worker."""
        orders, self._orders = self._orders, []
        return StepMetadata(ships=self.ships(output), loads=orders)

    def finished(self, request: Request) -> dict[str, Any] | None:
        """The request is over, however it ended. Returns what its response tells the gateway."""
        incoming = self._incoming.pop(request.request_id, None)
        if incoming is not None and incoming.stage is LoadStage.CLAIMED:
            self._decline(incoming, "the request ended before it was loaded", 0)
        outgoing = self._outgoing.pop(request.request_id, None)
        if outgoing is None:
            return None
        if not outgoing.worker_knows and outgoing.error is None:
            # Never scheduled: the worker has not heard of it and cannot close it.
            self._tell(lambda: self._client.stage_close(StageClose(transfer_id=outgoing.transfer_id)))
        if outgoing.error is None and not outgoing.all_scheduled:
            outgoing.error = "the prefill ended before it was whole"
        status = PrefillStatus.STAGED if outgoing.error is None else PrefillStatus.FAILED
        error = None if outgoing.error is None else outgoing.error[:MAX_ERROR_CHARS]
        return report_leg(
            PrefillReport(transfer_id=outgoing.transfer_id, status=status, num_bytes=outgoing.num_bytes, error=error)
        )

    def close(self) -> None:
        """Hang up."""
        self._client.close()

    def _decline(self, incoming: Incoming, reason: str, recomputed: int) -> None:
        incoming.stage = LoadStage.OVER
        logger.warning("transfer %s is not loaded: %s", incoming.transfer_id, reason)
        declined = Declined(
            transfer_id=incoming.transfer_id,
            claim_secret=incoming.claim_secret,
            reason=reason[:MAX_ERROR_CHARS],
            recomputed=recomputed,
        )
        self._tell(lambda: self._client.declined(declined))

    def _tell(self, post: Callable[[], None]) -> None:
        try:
            post()
        except PrfaasError as error:
            logger.warning("KV node: %s", error)
