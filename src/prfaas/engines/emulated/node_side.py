"""An emulated engine at its KV node: what it ships, and what it loads. Blocking; for one thread of its own."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterable

from prfaas.core.cache.hashing import token_digest
from prfaas.core.errors import PrfaasError, Refused
from prfaas.core.transfer.shipping import Piece, Shipping, loads
from prfaas.core.wire.engine import Claim, Claimed, Consumed, Declined, StageClose, Staged, StageOpen, StageOpened
from prfaas.core.wire.params import DecodeParams, PrefillParams
from prfaas.engines.emulated.kv import KVBytes, PrefixNames
from prfaas.engines.node_client import NodeClient, NodeUnavailable


class NotLoaded(PrfaasError):
    """The landing is not used; the engine computes the prompt itself."""


class Arena:
    """The node's memory, mapped again when the node was restarted."""

    def __init__(self, client: NodeClient) -> None:
        self._client = client
        self._boot_id = ""
        self._map: mmap.mmap | None = None

    def of(self, node_boot_id: str) -> mmap.mmap:
        """Of that very node. Raises NodeUnavailable if another one answers now."""
        attached = self._client.attach()
        if attached.node_boot_id != node_boot_id:
            raise NodeUnavailable("the KV node was restarted")
        if self._map is None or self._boot_id != node_boot_id:
            self.close()
            self._map, self._boot_id = _mapped(attached.arena_path, attached.arena_bytes), node_boot_id
        return self._map

    def close(self) -> None:
        if self._map is not None:
            self._map.close()
        self._map = None


def _mapped(path: str, size: int) -> mmap.mmap:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise NodeUnavailable(f"arena {path}: {error.strerror}") from None
    try:
        return mmap.mmap(descriptor, size)
    finally:
        os.close(descriptor)


class Shipment:
    """One image on its way into the arena, piece by piece."""

    def __init__(self, opened: StageOpened, params: PrefillParams, shipping: Shipping, names: PrefixNames) -> None:
        self.opened = opened
        self.transfer_id = params.transfer_id
        self.shipping = shipping
        self.names = names
        self.connection: int | None = None


class NodeSide:
    """Of one engine."""

    def __init__(self, client: NodeClient, kv: KVBytes) -> None:
        self._client = client
        self._kv = kv
        self._arena = Arena(client)

    def close(self) -> None:
        self._client.close()
        self._arena.close()

    def ping(self) -> None:
        self._client.ping()

    # Prefill

    def open(self, params: PrefillParams, names: PrefixNames) -> Shipment:
        """`names` of the whole prompt. Raises PrfaasError, or ValueError for one that is not that of `params`."""
        if names.chain.num_tokens != params.num_prompt_tokens:
            raise ValueError(f"the prompt has {names.chain.num_tokens} tokens, not {params.num_prompt_tokens}")
        image = self._kv.layout.image(params.num_prompt_tokens, params.skip_tokens)
        if image.num_bytes != params.num_bytes:
            raise ValueError(f"its KVCache has {image.num_bytes} bytes here, not {params.num_bytes}")
        opened = self._client.stage_open(
            StageOpen(
                transfer_id=params.transfer_id,
                peer=params.peer,
                token=params.token,
                num_bytes=params.num_bytes,
                deadline_s=params.deadline_s,
            )
        )
        return Shipment(opened, params, Shipping(self._kv.layout, image), names.without_last())

    def ship(self, shipment: Shipment, computed: Iterable[tuple[int, int]]) -> None:
        """What became final: of each layer, up to which token it is computed. Raises PrfaasError."""
        pieces = [
            piece for layer, end_token in computed if (piece := shipment.shipping.advance(layer, end_token)) is not None
        ]
        if not pieces:
            return
        with self._client.pinned(shipment.connection) as shipment.connection:
            arena, offset = self._arena.of(shipment.opened.node_boot_id), shipment.opened.arena_offset
            for piece in pieces:
                arena[offset + piece.start : offset + piece.end] = self._kv.of(piece, shipment.names)
            ranges = tuple((piece.start, piece.end) for piece in pieces)
            self._client.staged(Staged(transfer_id=shipment.transfer_id, ranges=ranges))

    def close_stage(self, shipment: Shipment) -> None:
        with contextlib.suppress(PrfaasError):
            self._client.stage_close(StageClose(transfer_id=shipment.transfer_id))

    # Decode

    def load(self, params: DecodeParams, names: PrefixNames, held_tokens: int) -> dict[int, list[str]]:
        """Compare every byte of a landing with what it must be, of an engine that holds the first `held_tokens` of the
        prompt. Returns what is wrong, by page; of the state under -1. Raises NotLoaded."""
        digest, num_tokens = names.digest, names.chain.num_tokens
        if digest != params.token_digest:
            reason = "the engine tokenized the prompt differently from the gateway"
            raise self._declined(params, reason, num_tokens)
        claim = Claim(
            transfer_id=params.transfer_id,
            num_prompt_tokens=num_tokens,
            token_digest=digest,
            claim_secret=params.claim_secret,
        )
        try:
            claimed = self._client.claim(claim)
        except Refused as refused:
            raise self._declined(params, f"{refused.code}: {refused.message}", num_tokens) from None
        except PrfaasError as error:
            raise NotLoaded(str(error)) from None
        if held_tokens < claimed.skip_tokens:
            reason = f"engine holds {held_tokens} tokens of the prefix, {claimed.skip_tokens} were left out"
            raise self._declined(params, reason, num_tokens - held_tokens)
        try:
            return self._compared(params, claimed, num_tokens, names.without_last())
        except (PrfaasError, OSError, ValueError) as error:
            raise NotLoaded(str(error)) from None

    def _compared(
        self, params: DecodeParams, claimed: Claimed, num_tokens: int, names: PrefixNames
    ) -> dict[int, list[str]]:
        layout, wrong = self._kv.layout, dict[int, list[str]]()
        image = layout.image(num_tokens, claimed.skip_tokens)
        arena, offset = self._arena.of(claimed.node_boot_id), claimed.arena_offset
        for piece in loads(layout, image, claimed.skip_tokens):
            found = arena[offset + piece.start : offset + piece.end]
            for page in self._kv.wrong_parts(piece, names, found):
                wrong.setdefault(page, []).append(_told(piece, page, found))
        loaded = num_tokens - 1 - claimed.skip_tokens
        if not self._client.consumed(Consumed(transfer_id=params.transfer_id, loaded=loaded, recomputed=1)).valid:
            raise NodeUnavailable("the claim had ended")
        return wrong

    def _declined(self, params: DecodeParams, reason: str, recomputed: int) -> NotLoaded:
        declined = Declined(
            transfer_id=params.transfer_id, claim_secret=params.claim_secret, reason=reason, recomputed=recomputed
        )
        with contextlib.suppress(PrfaasError):
            self._client.declined(declined)
        return NotLoaded(reason)


def _told(piece: Piece, page: int, found: bytes) -> str:
    """Equal for equal bytes, so that an answer from them is always the same."""
    digest = token_digest(found)[:16]
    return f"group {piece.group} layer {piece.layer} {'state' if page < 0 else f'page {page}'} {digest}"
