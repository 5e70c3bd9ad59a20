"""What the scheduler's half of the connector tells the worker's half, once per engine step. Plain values only."""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata


@dataclass
class ShipStep:
    """After this step, tokens [0, `end_token`) of the prompt are computed; ship what of them has not left yet.

    `block_ids` is the request's block table per KV group, as it is in this step: in vLLM's `align` mode blocks of
    linear state move between chunks, so tables of earlier steps must not be used.
    """

    request_id: str
    transfer_id: str
    node_boot_id: str
    arena_offset: int
    num_prompt_tokens: int
    skip_tokens: int
    end_token: int
    block_ids: tuple[list[int], ...]


@dataclass
class LoadOrder:
    """Copy tokens [`from_token`, `num_prompt_tokens` - 1) of a landing into these blocks."""

    request_id: str
    transfer_id: str
    node_boot_id: str
    arena_offset: int
    num_prompt_tokens: int
    skip_tokens: int
    from_token: int
    block_ids: tuple[list[int], ...]


@dataclass
class StepMetadata(KVConnectorMetadata):
    """Everything the worker does for PrfaaS in one step."""

    ships: list[ShipStep] = field(default_factory=list)
    loads: list[LoadOrder] = field(default_factory=list)
