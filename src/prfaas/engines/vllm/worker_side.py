"""The worker's half of the connector: copies layers into the arena as they are computed, and landings out of it.

Laws of this file:
- Bytes are posted as staged only after they are in the arena, and never twice.
- After losing the node, nothing is written into stagings any more: the node has given their place away.
- What is shipped when, and what is loaded from where, is `core.transfer.shipping`'s; here it is copied.
- A load counts only if the node confirms afterwards that the claim still held.
"""

from __future__ import annotations

import logging
import mmap
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from prfaas.core.errors import PrfaasError
from prfaas.core.model.layout import KVLayout
from prfaas.core.transfer.shipping import Piece, Shipping, StatePiece, loads
from prfaas.core.wire.engine import Consumed, StageClose, Staged
from prfaas.engines.node_client import NodeClient, NodeUnavailable
from prfaas.engines.vllm.metadata import LoadOrder, ShipStep, StepMetadata
from prfaas.engines.vllm.pages import LayerPages

logger = logging.getLogger("vllm.prfaas")

#: How often the worker makes sure that its node knows it; a restarted node is without an engine for so long.
ATTACH_INTERVAL_S = 1.0


class MappedArena:
    """The node's arena as a uint8 tensor, mapped again when the node was restarted."""

    def __init__(self, client: NodeClient) -> None:
        self._client = client
        self._boot_id = ""
        self._tensor = torch.empty(0, dtype=torch.uint8)

    def bytes_at(self, node_boot_id: str, offset: int, size: int) -> torch.Tensor:
        """A view of the arena of that very node. Raises NodeUnavailable if another one answers now."""
        attachment = self._client.attach()
        if attachment.node_boot_id != node_boot_id:
            raise NodeUnavailable("the KV node was restarted")
        if self._boot_id != node_boot_id:
            self._tensor = _map(attachment.arena_path, attachment.arena_bytes)
            self._boot_id = node_boot_id
        return self._tensor[offset : offset + size]


def _map(path: str, size: int) -> torch.Tensor:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise NodeUnavailable(f"arena {path}: {error.strerror}") from None
    try:
        return torch.frombuffer(mmap.mmap(descriptor, size), dtype=torch.uint8)
    finally:
        os.close(descriptor)


@dataclass
class Shipment:
    """One request's image on its way into the arena."""

    transfer_id: str
    shipping: Shipping
    failed: bool = False
    connection: int | None = None


class WorkerSide:
    """`pages` is keyed by layer index; `layer_of` maps vLLM's layer names to those."""

    def __init__(
        self, client: NodeClient, layout: KVLayout, pages: dict[int, LayerPages], layer_of: dict[str, int]
    ) -> None:
        self._client = client
        self._layout = layout
        self._pages = pages
        self._layer_of = layer_of
        self._arena = MappedArena(client)
        self._shipments: dict[str, Shipment] = {}
        self._done_layers: set[int] = set()
        # One thread: loads are memory-bound, and two would only fight for the same bus.
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="prfaas-load")
        self._lock = threading.Lock()
        self._loaded: set[str] = set()
        self._failed: set[str] = set()
        self._closing = threading.Event()
        self._keeper = threading.Thread(target=self._stay_attached, name="prfaas-attach", daemon=True)
        self._keeper.start()

    def _stay_attached(self) -> None:
        """A node that was started later, or again, must learn the layout before any request comes."""
        told = False
        while not self._closing.is_set():
            try:
                self._client.ping()
                told = False
            except PrfaasError as error:
                if not told:
                    logger.warning("KV node: %s; trying again every %g s", error, ATTACH_INTERVAL_S)
                told = True
            self._closing.wait(ATTACH_INTERVAL_S)

    # -- shipping

    def begin_step(self) -> None:
        """A forward pass starts."""
        self._done_layers.clear()

    def layer_computed(self, layer_name: str, metadata: StepMetadata) -> None:
        """An attention layer is done, and with it every layer before it: ship them all.

        vLLM calls back for attention layers only; layers of linear state run in between without a word, compiled or
        not, but an attention layer cannot have run before its predecessors.
        """
        last = self._layer_of[layer_name]
        self._ship_layers([layer for layer in self._pages if layer <= last], metadata)

    def end_step(self, metadata: StepMetadata) -> None:
        """The forward pass is over: ship the layers behind the last attention layer."""
        if metadata.ships:
            self._ship_layers(list(self._pages), metadata)

    def _ship_layers(self, layers: list[int], metadata: StepMetadata) -> None:
        todo = sorted(set(layers) - self._done_layers)
        self._done_layers.update(todo)
        for step in metadata.ships:
            shipment = self._shipment(step)
            if shipment.failed:
                continue
            try:
                self._ship(step, shipment, todo)
            except (PrfaasError, LookupError) as error:
                self._fail(shipment, f"{type(error).__name__}: {error}")

    def _shipment(self, step: ShipStep) -> Shipment:
        shipment = self._shipments.get(step.request_id)
        if shipment is None:
            image = self._layout.image(step.num_prompt_tokens, step.skip_tokens)
            shipment = self._shipments[step.request_id] = Shipment(step.transfer_id, Shipping(self._layout, image))
        return shipment

    def _ship(self, step: ShipStep, shipment: Shipment, layers: list[int]) -> None:
        with self._client.pinned(shipment.connection) as shipment.connection:
            self._ship_pinned(step, shipment, layers)

    def _ship_pinned(self, step: ShipStep, shipment: Shipment, layers: list[int]) -> None:
        ranges: list[tuple[int, int]] = []
        image = shipment.shipping.image
        arena = self._arena.bytes_at(step.node_boot_id, step.arena_offset, image.num_bytes)
        for layer in layers:
            piece = shipment.shipping.advance(layer, step.end_token)
            if piece is not None:
                self._read(piece, step.block_ids[piece.group], arena)
                ranges.append((piece.start, piece.end))
        if ranges:
            self._client.staged(Staged(transfer_id=shipment.transfer_id, ranges=tuple(ranges)))

    def _read(self, piece: Piece, table: list[int], arena: torch.Tensor) -> None:
        pages, target = self._pages[piece.layer], arena[piece.start : piece.end]
        if isinstance(piece, StatePiece):
            pages.read_state(self._state_block(piece, table), target)
        else:
            pages.read_pages(table, piece.first_page, piece.end_page, target)

    def _write(self, piece: Piece, table: list[int], arena: torch.Tensor) -> None:
        pages, source = self._pages[piece.layer], arena[piece.start : piece.end]
        if isinstance(piece, StatePiece):
            pages.write_state(self._state_block(piece, table), source)
        else:
            pages.write_pages(table, piece.first_page, piece.end_page, source)

    def _state_block(self, piece: StatePiece, table: list[int]) -> int:
        """vLLM keeps the state in the block of the last token that went into it."""
        return table[(piece.end_token - 1) // self._layout.block_tokens]

    def _fail(self, shipment: Shipment, reason: str) -> None:
        shipment.failed = True
        logger.warning("transfer %s cannot be shipped: %s", shipment.transfer_id, reason)

    def finished(self, request_ids: set[str]) -> None:
        """These requests will compute no more; the node may free what did not become whole."""
        for request_id in request_ids:
            shipment = self._shipments.pop(request_id, None)
            if shipment is not None:
                self._stage_close(shipment.transfer_id)

    # -- loading

    def start_loads(self, orders: list[LoadOrder]) -> None:
        """Copy landings into the engine's blocks, beside the engine's own work."""
        for order in orders:
            self._loader.submit(self._load, order)

    def take_finished_loads(self) -> tuple[set[str], set[str]]:
        """(all that ended, those of them that failed) since the last call."""
        with self._lock:
            loaded, failed = self._loaded, self._failed
            self._loaded, self._failed = set(), set()
        return loaded, failed

    def _load(self, order: LoadOrder) -> None:
        good = False
        try:
            good = self._copy_landing(order)
        except Exception:
            logger.exception("loading transfer %s failed", order.transfer_id)
        with self._lock:
            self._loaded.add(order.request_id)
            if not good:
                self._failed.add(order.request_id)

    def _copy_landing(self, order: LoadOrder) -> bool:
        image = self._layout.image(order.num_prompt_tokens, order.skip_tokens)
        arena = self._arena.bytes_at(order.node_boot_id, order.arena_offset, image.num_bytes)
        for piece in loads(self._layout, image, order.from_token):
            self._write(piece, order.block_ids[piece.group], arena)
        loaded = order.num_prompt_tokens - 1 - order.from_token
        confirmed = self._client.consumed(Consumed(transfer_id=order.transfer_id, loaded=loaded, recomputed=1))
        return confirmed.valid

    def close(self) -> None:
        """Stop loading and hang up."""
        self._closing.set()
        self._loader.shutdown(wait=True, cancel_futures=True)
        self._client.close()

    def _stage_close(self, transfer_id: str) -> None:
        try:
            self._client.stage_close(StageClose(transfer_id=transfer_id))
        except PrfaasError as error:
            logger.warning("KV node: %s", error)
