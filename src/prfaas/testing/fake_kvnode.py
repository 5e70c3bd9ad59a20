"""A KV node for tests of its neighbours: the real operations, HTTP control, engine socket and ledgers, in this process.

Only the lanes are replaced, by links that land at once, and there are faults to switch on. What the real node and this
one answer is compared in tests/integration/test_node_contract.py. A `FakeEngine` drives it in process through `land`
and `load`, as lanes and connector drive a real one.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
from aiohttp import web

from prfaas.core.errors import Refused
from prfaas.core.link.estimate import LinkState
from prfaas.core.link.snapshot import LinkSnapshot
from prfaas.core.model.layout import KVGroup, KVGroupKind, KVLayout
from prfaas.core.transfer.landings import ClaimKey, Landing
from prfaas.core.transfer.outbound import OutboundTransfer
from prfaas.core.wire.node_api import (
    FINAL_STATES,
    VERSION,
    VERSION_HEADER,
    LinkReport,
    LinkReports,
    Reservation,
    Reserved,
    Verdict,
)
from prfaas.kvnode.config import KVNodeConfig
from prfaas.kvnode.engine_path import EnginePath
from prfaas.kvnode.engine_socket import serve_engines
from prfaas.kvnode.http import LINKS, Changes, Control
from prfaas.kvnode.metrics import NodeMetrics
from prfaas.kvnode.node import KVNode
from prfaas.testing.fake_server import FakeServer
from prfaas.testing.instant_link import InstantLink, write_chunk
from prfaas.testing.node_pair import PairListener
from prfaas.transport.arena import Arena
from prfaas.transport.data_plane import DataPlane
from prfaas.transport.outbound import Dial, PeerLink

#: How often leases are looked at: leases of tests are short.
TICK_S: Final = 0.01
ARENA_BYTES: Final = 8 << 20
FAKE_SENDER: Final = "a fake sender"


def fake_layout(kinds: Sequence[KVGroupKind] = (KVGroupKind.FULL_ATTENTION,), bytes_per_token: int = 64) -> KVLayout:
    """A layer of each kind, in blocks of four tokens. Pages are single tokens: an image is as long as its tokens."""
    groups = [
        KVGroup(kind, (layer,), 0, 0, bytes_per_token, 0, "uint8")
        if kind is KVGroupKind.LINEAR_STATE
        else KVGroup(kind, (layer,), 1, bytes_per_token, 0, 8 * (kind is KVGroupKind.SLIDING_WINDOW), "uint8")
        for layer, kind in enumerate(kinds)
    ]
    return KVLayout("fake", tuple(groups), 4, 4, 1 << 20)


@dataclass
class NodeFaults:
    """`refuse_reservations` holds an error code to answer with; `before_reserving` is called first; `forgetful` answers
    404 to every poll; `verdicts` are told of links in place of what was measured; to peers in `cut_off_from`
    no lane is up."""

    refuse_reservations: str | None = None
    before_reserving: Callable[[], None] = lambda: None
    forgetful: bool = False
    cut_off_from: set[str] = field(default_factory=set)
    version: int = VERSION
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    num_verdicts: int = 0
    renewals: Counter[str] = field(default_factory=Counter)


class FaultyNode(KVNode):
    """The real node's operations, with faults."""

    faults: NodeFaults

    def reserve(self, asked: Reservation) -> Reserved:
        self.faults.before_reserving()
        if self.faults.refuse_reservations is not None:
            raise Refused(self.faults.refuse_reservations, "as the test wants it")
        return super().reserve(asked)

    def landing(self, transfer_id: str) -> Landing:
        if self.faults.forgetful:
            raise Refused("unknown", "as the test wants it")
        return super().landing(transfer_id)

    def renew(self, transfer_id: str, lease_s: float) -> Landing:
        self.faults.renewals[transfer_id] += 1
        return super().renew(transfer_id, lease_s)

    @property
    def verdict_changes(self) -> int:
        return self.faults.num_verdicts

    def link_reports(self) -> LinkReports:
        reports = super().link_reports()
        blank = LinkReport.of(LinkSnapshot(LinkState(), self.config.limits.num_lanes, 0, 0), self.plane.now_s())
        judged = {
            peer: msgspec.structs.replace(reports.links.get(peer, blank), verdict=verdict)
            for peer, verdict in self.faults.verdicts.items()
        }
        return LinkReports(node=reports.node, changes=self.verdict_changes, links={**reports.links, **judged})


class FakeKVNode(FakeServer):
    """`peers` are the nodes that it can send to. A node that is killed and started again has forgotten everything,
    its engine attached again."""

    def __init__(
        self,
        name: str,
        *,
        peers: Mapping[str, FakeKVNode] | None = None,
        kv_group_kinds: tuple[KVGroupKind, ...] = (KVGroupKind.FULL_ATTENTION,),
    ) -> None:
        super().__init__()
        self.name = name
        self.layout = fake_layout(kv_group_kinds)
        self.peers = peers or {}
        self.faults = NodeFaults()
        self.node: FaultyNode | None = None
        self._engine_boot_id = secrets.token_hex(8)
        self._has_engine = True
        self._directory = Path(tempfile.mkdtemp(prefix="prfaas-fake-"))
        self._stack = contextlib.AsyncExitStack()
        self._changes: Changes | None = None

    # -- faults and looks

    @property
    def socket_path(self) -> str:
        """Where engines connect."""
        return str(self._directory / "node.sock")

    @property
    def landings(self) -> dict[str, Landing]:
        """All that the node knows, by transfer id, oldest first."""
        return {} if self.node is None else {x.transfer_id: x for x in self.node.plane.ledgers.landings.known()}

    @property
    def live_landings(self) -> list[Landing]:
        """Landings that still hold space; a test that ends with one has found a leak."""
        return [landing for landing in self.landings.values() if landing.state not in FINAL_STATES]

    @property
    def engine_boot_id(self) -> str:
        """Of the engine beside it; a new one is a restart."""
        return self._engine_boot_id

    @engine_boot_id.setter
    def engine_boot_id(self, boot_id: str) -> None:
        self.has_engine = False
        self._engine_boot_id = boot_id
        self.has_engine = True

    @property
    def has_engine(self) -> bool:
        """Whether an engine has registered."""
        return self._has_engine

    @has_engine.setter
    def has_engine(self, wanted: bool) -> None:
        if self.node is not None and wanted != self._has_engine:
            if wanted:
                self._attach(self.node)
            else:
                self.node.detach(self._engine_boot_id, is_worker=True)
        self._has_engine = wanted

    def judge(self, peer: str, verdict: str) -> None:
        """The link to `peer` is `clear`, `pressed` or `congested` from now on."""
        self.faults.verdicts[peer] = Verdict(verdict)
        self.faults.num_verdicts += 1
        if self._changes is not None:
            self._changes.notify(LINKS)

    def expire(self, transfer_id: str) -> None:
        """Its lease runs out now."""
        self.landings[transfer_id].lease_end_s = 0.0
        self._living.expire_landings()

    # -- what lanes and the connector do with a real one

    def land(self, transfer_id: str, token: str) -> int:
        """Every byte has come and is verified. Returns their number; Refused for a wrong token."""
        plane = self._living.plane
        num_bytes = self._living.landing(transfer_id).extent.size
        with plane.lock:
            landing = plane.ledgers.landings.open(FAKE_SENDER, transfer_id, token, num_bytes, self.layout.fingerprint)
        write_chunk(plane, FAKE_SENDER, landing.handle, 0, memoryview(bytes(num_bytes)))
        return num_bytes

    def abort(self, transfer_id: str, reason: str) -> None:
        """The transfer is given up."""
        with self._living.plane.lock:
            self._living.plane.ledgers.landings.drop(transfer_id, reason)
        self._living.on_change(transfer_id)

    def load(self, transfer_id: str, key: ClaimKey, recomputed: int = 1) -> bool:
        """The decode engine claims and loads the landing, or declines it. False if there is nothing to load for that
        key."""
        try:
            claimed = self._living.claim(self._engine_boot_id, transfer_id, key)
        except Refused as refused:
            self.decline(transfer_id, key.secret, f"{refused.code}: {refused.message}", key.num_prompt_tokens)
            return False
        loaded = key.num_prompt_tokens - recomputed - claimed.skip_tokens
        return self._living.consumed(self._engine_boot_id, transfer_id, loaded, recomputed)

    def decline(self, transfer_id: str, claim_secret: str, reason: str, recomputed: int = 0) -> None:
        """The decode engine computes the prompt itself."""
        self._living.declined(transfer_id, claim_secret, reason, recomputed)

    # -- life

    def application(self) -> web.Application:
        """The real node's."""
        assert self._changes is not None
        app = Control(self._living, self._changes, NodeMetrics(self._living)).application()
        app.on_response_prepare.append(self._claim_version)
        return app

    async def _claim_version(self, request: web.Request, response: web.StreamResponse) -> None:
        response.headers[VERSION_HEADER] = str(self.faults.version)

    async def start(self) -> None:
        """Listen; after a `kill`, on the same port again, as a new process would."""
        changes = self._changes = Changes(asyncio.get_running_loop())
        path = str(self._directory / f"{secrets.token_hex(4)}.arena")
        arena = self._stack.enter_context(Arena(path, ARENA_BYTES, create=True))
        config = KVNodeConfig(self.name, "127.0.0.1", 0, "127.0.0.1", 0, self.socket_path, ARENA_BYTES,
                              dict.fromkeys(self.peers, ("127.0.0.1", 1)))  # fmt: skip
        node = FaultyNode(config, arena, PairListener(), make_link=self._link, on_change=changes.notify)  # type: ignore[arg-type]
        node.faults = self.faults
        self.node = node
        if self._has_engine:
            self._attach(node)
        engine_path = self._stack.enter_context(contextlib.closing(EnginePath(self.socket_path)))
        self._stack.callback((await serve_engines(node, engine_path.listener)).close)
        ticking = asyncio.create_task(self._tick(node))
        self._stack.callback(ticking.cancel)
        await super().start()

    async def kill(self) -> None:
        """Stop listening, cut every connection, and forget."""
        await super().kill()
        self.node = None
        await self._stack.aclose()

    async def __aexit__(self, *raised: Any) -> None:
        await super().__aexit__(*raised)
        shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def _living(self) -> FaultyNode:
        if self.node is None:
            raise Refused("peer_down", f"node {self.name} is dead")
        return self.node

    def _attach(self, node: KVNode) -> None:
        node.attach(f"{self.name}-engine", self._engine_boot_id, self.layout)

    def _link(self, plane: DataPlane, peer: str, dial: Dial, on_done: Callable[[OutboundTransfer], None]) -> PeerLink:
        del dial
        sink = self.peers[peer]

        def reached() -> DataPlane | None:
            return None if sink.node is None or peer in self.faults.cut_off_from else sink.node.plane

        return InstantLink(plane, peer, on_done, reached)

    async def _tick(self, node: KVNode) -> None:
        while True:
            node.expire_landings()
            await asyncio.sleep(TICK_S)
