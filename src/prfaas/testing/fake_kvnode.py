"""A KV node that moves no bytes: docs/protocols.md's HTTP control over a table, with faults to switch on.

A `FakeEngine` drives it in process through `land`, `abort` and `consume`, as lanes and connector drive a real one.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from prfaas.core.model.layout import KVGroupKind
from prfaas.core.transfer.landings import ClaimKey
from prfaas.testing.fake_server import FakeServer

OPEN_STATES = ("reserved", "receiving")
FINAL_STATES = ("consumed", "aborted", "expired")


@dataclass
class FakeLanding:
    """One row of the table."""

    transfer_id: str
    token: str
    claim_key: ClaimKey
    num_prompt_tokens: int
    skip_tokens: int
    num_bytes: int
    state: str = "reserved"
    reason: str | None = None
    bytes_landed: int = 0
    tokens_loaded: int | None = None
    tokens_recomputed: int | None = None
    num_renewals: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    expiry: asyncio.TimerHandle | None = None

    def record(self) -> dict[str, Any]:
        """The JSON of docs/protocols.md."""
        return {
            "transfer_id": self.transfer_id,
            "state": self.state,
            "reason": self.reason,
            "num_bytes": self.num_bytes,
            "bytes_landed": self.bytes_landed,
            "num_prompt_tokens": self.num_prompt_tokens,
            "skip_tokens": self.skip_tokens,
            "tokens_loaded": self.tokens_loaded,
            "tokens_recomputed": self.tokens_recomputed,
            "bytes_resent": 0,
            "landed_after_s": None,
        }


class FakeKVNode(FakeServer):
    """Faults: `refuse_reservations` holds an error code to answer with; `forgetful` answers 404 to every poll;
    `has_engine` False makes it a node whose engine has not registered."""

    def __init__(
        self,
        name: str,
        *,
        block_tokens: int = 4,
        bytes_per_token: int = 64,
        kv_group_kinds: tuple[KVGroupKind, ...] = (KVGroupKind.FULL_ATTENTION,),
    ) -> None:
        super().__init__()
        self.name = name
        self.block_tokens = block_tokens
        self.bytes_per_token = bytes_per_token
        self.kv_group_kinds = kv_group_kinds
        self.engine_boot_id = secrets.token_hex(8)
        self.has_engine = True
        #: As a node's /health tells them: `{name: {"lanes_up": n, "error": …}}`.
        self.peers: dict[str, dict[str, Any]] = {}
        self.forgetful = False
        self.refuse_reservations: str | None = None
        self.landings: dict[str, FakeLanding] = {}
        self.links: dict[str, dict[str, Any]] = {}
        self._link_changes = 0
        self._links_changed = asyncio.Event()

    @property
    def live_landings(self) -> list[FakeLanding]:
        """Landings that still hold space; a test that ends with one has found a leak."""
        return [landing for landing in self.landings.values() if landing.state not in FINAL_STATES]

    def land(self, transfer_id: str, token: str, num_bytes: int | None = None) -> int:
        """Every byte has come and is verified. Returns their number; PermissionError for a wrong token."""
        landing = self.landings[transfer_id]
        if not secrets.compare_digest(landing.token, token):
            raise PermissionError(transfer_id)
        if landing.state in OPEN_STATES:
            landing.bytes_landed = landing.num_bytes if num_bytes is None else num_bytes
            self._change(landing, "landed")
        return landing.bytes_landed

    def judge(self, peer: str, verdict: str) -> None:
        """The link to `peer` is `clear`, `pressed` or `congested` from now on."""
        self.links[peer] = {"verdict": verdict, "lanes_up": 4}
        self._link_changes += 1
        self._links_changed.set()
        self._links_changed = asyncio.Event()

    def abort(self, transfer_id: str, reason: str) -> None:
        """The transfer is given up."""
        landing = self.landings.get(transfer_id)
        if landing is not None and landing.state not in FINAL_STATES:
            self._change(landing, "aborted", reason)

    def consume(self, transfer_id: str, claim_key: ClaimKey, tokens_loaded: int, tokens_recomputed: int) -> bool:
        """The decode engine claims and loads the landing. False if there is nothing to load for that key."""
        landing = self.landings.get(transfer_id)
        if landing is None or not landing.claim_key.opens(claim_key) or landing.state != "landed":
            return False
        landing.tokens_loaded, landing.tokens_recomputed = tokens_loaded, tokens_recomputed
        self._change(landing, "consumed")
        return True

    def routes(self) -> list[web.RouteDef]:
        """See docs/protocols.md."""
        return [
            web.get("/health", self._health),
            web.post("/v1/landings", self._reserve),
            web.get("/v1/landings/{id}", self._poll),
            web.post("/v1/landings/{id}/renew", self._renew),
            web.delete("/v1/landings/{id}", self._drop),
            web.get("/v1/links", self._links),
        ]

    async def _health(self, request: web.Request) -> web.Response:
        engine = {
            "engine_id": f"{self.name}-engine",
            "engine_boot_id": self.engine_boot_id,
            "fingerprint": "fake",
            "block_tokens": self.block_tokens,
            "max_model_tokens": 4096,
            "kv_group_kinds": list(self.kv_group_kinds),
        }
        engines = [engine] if self.has_engine else []
        return web.json_response(
            {"status": "ok", "node": self.name, "boot_id": "fake", "engines": engines, "peers": self.peers}
        )

    async def _links(self, request: web.Request) -> web.Response:
        if request.query.get("after") == str(self._link_changes):
            try:
                async with asyncio.timeout(float(request.query.get("wait_s", 0))):
                    await self._links_changed.wait()
            except TimeoutError:
                pass
        return web.json_response({"node": self.name, "changes": self._link_changes, "links": self.links})

    async def _reserve(self, request: web.Request) -> web.Response:
        body = await request.json()
        if self.refuse_reservations is not None:
            return _error(503, self.refuse_reservations)
        if body["transfer_id"] in self.landings:
            return _error(409, "exists")
        num_bytes = max(0, body["num_prompt_tokens"] - 1 - body["skip_tokens"]) * self.bytes_per_token
        num_tokens = body["num_prompt_tokens"]
        key = ClaimKey(num_tokens, body["token_digest"], body["claim_secret"])
        landing = FakeLanding(
            body["transfer_id"], secrets.token_hex(8), key, num_tokens, body["skip_tokens"], num_bytes
        )
        self.landings[landing.transfer_id] = landing
        self._lease(landing, body["lease_s"])
        reply = {
            "transfer_id": landing.transfer_id,
            "token": landing.token,
            "node": self.name,
            "num_bytes": num_bytes,
            "block_tokens": self.block_tokens,
            "engine_boot_id": self.engine_boot_id,
            "fingerprint": "fake",
            "kv_group_kinds": list(self.kv_group_kinds),
        }
        return web.json_response(reply, status=201)

    async def _poll(self, request: web.Request) -> web.Response:
        landing = self.landings.get(request.match_info["id"])
        if landing is None or self.forgetful:
            return _error(404, "unknown")
        final = request.query.get("until") == "final"
        try:
            async with asyncio.timeout(float(request.query.get("wait_s", 0))):
                while not _is_past(landing, final=final):
                    await landing.changed.wait()
        except TimeoutError:
            pass
        return web.json_response(landing.record())

    async def _renew(self, request: web.Request) -> web.Response:
        landing = self.landings.get(request.match_info["id"])
        if landing is None:
            return _error(404, "unknown")
        landing.num_renewals += 1
        self._lease(landing, (await request.json())["lease_s"])
        return web.json_response(landing.record())

    async def _drop(self, request: web.Request) -> web.Response:
        landing = self.landings.get(request.match_info["id"])
        if landing is None:
            return _error(404, "unknown")
        self.abort(landing.transfer_id, "dropped")
        return web.json_response(landing.record())

    def _lease(self, landing: FakeLanding, lease_s: float) -> None:
        if landing.expiry is not None:
            landing.expiry.cancel()
        landing.expiry = asyncio.get_running_loop().call_later(lease_s, self._expire, landing)

    def _expire(self, landing: FakeLanding) -> None:
        if landing.state not in FINAL_STATES:
            self._change(landing, "expired", "lease ran out")

    def _change(self, landing: FakeLanding, state: str, reason: str | None = None) -> None:
        landing.state, landing.reason = state, reason
        if state in FINAL_STATES and landing.expiry is not None:
            landing.expiry.cancel()
        landing.changed.set()
        landing.changed = asyncio.Event()


def _is_past(landing: FakeLanding, *, final: bool) -> bool:
    return landing.state in FINAL_STATES if final else landing.state not in OPEN_STATES


def _error(status: int, code: str) -> web.Response:
    return web.json_response({"error": {"code": code, "message": code}}, status=status)
