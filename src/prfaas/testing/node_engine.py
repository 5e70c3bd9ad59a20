"""A process in an engine's place beside a real KV node: no model, but real claims, real memory and real transfers.

`python -m prfaas.testing.node_engine --port PORT --socket PATH`. What it ships is made of the prompt's tokens, and what
it loads is compared with them: an answer from a wrong landing is another answer.

`POST /pause {"at": POINT}` has offloaded requests stop at a point until it is called again: `half` (half of the image
is staged), `landed` (decode has the request and has not claimed), `claimed` (and has not copied), `loaded` (before the
first byte of the answer). `GET /state` counts requests by leg, and those that are stopped.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import logging
import mmap
import random
import secrets
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from aiohttp import web

from prfaas.core.cache.hashing import pack_tokens, token_digest
from prfaas.core.errors import PrfaasError
from prfaas.core.wire.contract import BadMessage
from prfaas.core.wire.engine import VERSION, Attach, Claim, Consumed, Declined, StageClose, Staged, StageOpen
from prfaas.core.wire.params import DecodeParams, PrefillParams, PrefillReport, PrefillStatus, ours, read_leg
from prfaas.engines.dialect import EngineLoad
from prfaas.engines.node_client import NodeClient, NodeUnavailable
from prfaas.testing.fake_engine import FakeEngine, Seen, failed_report
from prfaas.testing.gateway_rig import tiny_tokens
from prfaas.testing.node_pair import SMALL_LAYOUT

logger = logging.getLogger("prfaas.testing")

ATTACH_INTERVAL_S: Final = 0.2


def image_bytes(token_ids: list[int], num_bytes: int) -> bytes:
    """The KVCache of a prompt."""
    return random.Random(token_digest(pack_tokens(token_ids))).randbytes(num_bytes)


class NodeEngine(FakeEngine):
    """The fake engine, at a node's Unix socket."""

    def __init__(self, socket_path: str) -> None:
        super().__init__(tokenize=tiny_tokens, load=EngineLoad(0, 0))
        boot_id = secrets.token_hex(8)
        greeting = Attach(version=VERSION, engine_id="fake", boot_id=boot_id, layout=SMALL_LAYOUT)
        self._client = NodeClient(socket_path, greeting)
        self._pause_at = ""
        self._paused = self._running = 0

    def routes(self) -> list[web.RouteDef]:
        more = [web.post("/pause", self._pause), web.get("/state", self._state)]
        return [*super().routes(), *more]

    async def stay_attached(self) -> None:
        """A node that starts later, or again, learns of us."""
        while True:
            with contextlib.suppress(PrfaasError):
                await asyncio.to_thread(self._client.ping)
            await asyncio.sleep(ATTACH_INTERVAL_S)

    async def _pause(self, request: web.Request) -> web.Response:
        self._pause_at = (await request.json())["at"]
        self.release.set()
        self.release = asyncio.Event()
        return web.Response()

    async def _state(self, request: web.Request) -> web.Response:
        return web.json_response({"legs": Counter(seen.leg for seen in self.seen), "paused": self._paused})

    async def _stop_at(self, point: str) -> None:
        if self._pause_at != point:
            return
        self._paused += 1
        try:
            await self.release.wait()
        finally:
            self._paused -= 1

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        self._running += 1
        self.load = EngineLoad(self._running, 0)
        try:
            return await super()._generate(request)
        finally:
            self._running -= 1
            self.load = EngineLoad(self._running, 0)

    # Prefill

    async def ship(self, seen: Seen, fault: str) -> PrefillReport:
        try:
            params = read_leg(seen.params, PrefillParams)
            await self._stage(params, image_bytes(tiny_tokens(seen.body), params.num_bytes))
        except (BadMessage, PrfaasError, OSError) as error:
            return failed_report(seen.params, f"{type(error).__name__}: {error}")
        return PrefillReport(
            transfer_id=params.transfer_id, status=PrefillStatus.STAGED, num_bytes=params.num_bytes, error=None
        )

    async def _stage(self, params: PrefillParams, image: bytes) -> None:
        opened = await asyncio.to_thread(
            self._client.stage_open,
            StageOpen(
                transfer_id=params.transfer_id,
                peer=params.peer,
                token=params.token,
                num_bytes=params.num_bytes,
                deadline_s=params.deadline_s,
            ),
        )
        try:
            half, life = len(image) // 2, (opened.node_boot_id, opened.arena_offset)
            connection = await asyncio.to_thread(self._write, params.transfer_id, life, image, (0, half), None)
            await self._stop_at("half")
            rest = (half, len(image))
            await asyncio.to_thread(self._write, params.transfer_id, life, image, rest, connection)
        finally:
            with contextlib.suppress(PrfaasError):
                self._client.stage_close(StageClose(transfer_id=params.transfer_id))

    def _write(
        self, transfer_id: str, life: tuple[str, int], image: bytes, part: tuple[int, int], connection: int | None
    ) -> int:
        node_boot_id, offset = life
        start, end = part
        with self._client.pinned(connection) as number:
            with self._arena(node_boot_id) as arena:
                arena[offset + start : offset + end] = image[start:end]
            self._client.staged(Staged(transfer_id=transfer_id, ranges=((start, end),)))
            return number

    @contextlib.contextmanager
    def _arena(self, node_boot_id: str) -> Iterator[mmap.mmap]:
        attached = self._client.attach()
        if attached.node_boot_id != node_boot_id:
            raise NodeUnavailable("the KV node was restarted")
        with Path(attached.arena_path).open("r+b") as file, mmap.mmap(file.fileno(), attached.arena_bytes) as arena:
            yield arena

    # Decode

    async def take_landing(self, seen: Seen) -> None:
        part = ours(seen.body.get("kv_transfer_params"), DecodeParams)
        if part is None:
            return
        await self._stop_at("landed")
        try:
            params = read_leg(part, DecodeParams)
            image = await self._load(params, tiny_tokens(seen.body))
        except (BadMessage, PrfaasError, OSError) as error:
            logger.warning("not loaded: %s", error)  # as a real engine, it computes the prompt itself then
        else:
            if image != image_bytes(tiny_tokens(seen.body), len(image)):
                seen.body["prompt"] = f"a wrong landing: {hashlib.sha256(image).hexdigest()}"
        await self._stop_at("loaded")

    async def _load(self, params: DecodeParams, token_ids: list[int]) -> bytes:
        transfer_id, num_tokens = params.transfer_id, len(token_ids)
        claim = Claim(
            transfer_id=transfer_id,
            num_prompt_tokens=num_tokens,
            token_digest=token_digest(pack_tokens(token_ids)),
            claim_secret=params.claim_secret,
        )
        claimed = await asyncio.to_thread(self._client.claim, claim)
        try:
            await self._stop_at("claimed")
        except asyncio.CancelledError:
            why = "the request ended before it was loaded"
            with contextlib.suppress(PrfaasError, OSError):
                self._client.declined(
                    Declined(transfer_id=transfer_id, claim_secret=params.claim_secret, reason=why, recomputed=0)
                )
            raise
        with self._arena(claimed.node_boot_id) as arena:
            image = bytes(arena[claimed.arena_offset : claimed.arena_offset + claimed.num_bytes])
        loaded = Consumed(transfer_id=transfer_id, loaded=num_tokens - 1, recomputed=1)
        if not (await asyncio.to_thread(self._client.consumed, loaded)).valid:
            raise NodeUnavailable("the claim had ended")
        return image


async def _serve(port: int, socket_path: str) -> None:
    engine = NodeEngine(socket_path)
    engine.port = port
    async with engine:
        await engine.stay_attached()


def main() -> None:
    parser = argparse.ArgumentParser(description="An engine without a model, beside a real KV node.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--socket", required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(arguments.port, arguments.socket))


if __name__ == "__main__":
    main()
