"""The KV node without its sockets to engines and gateway: what each operation does, under which lock.

Methods are synchronous, quick and thread-safe; the HTTP and engine shells call them from the event loop, the monitor
from its own thread. Who holds which bytes of the arena is `core.transfer.ledgers`' business. Law of this file: what an
engine held is freed when its connection ends, whatever ended it.
"""

from __future__ import annotations

import logging
import secrets
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from prfaas.core.errors import Refused
from prfaas.core.model.layout import KVLayout
from prfaas.core.transfer.landings import ClaimKey, Landing
from prfaas.core.transfer.outbound import OutboundTransfer
from prfaas.core.wire.engine import Attached, Claimed, StageOpened
from prfaas.core.wire.messages import Open
from prfaas.core.wire.node_api import (
    EngineHealth,
    LandingState,
    LinkReport,
    LinkReports,
    NodeHealth,
    PeerHealth,
    Reservation,
    Reserved,
    TransferRecord,
)
from prfaas.kvnode.config import KVNodeConfig
from prfaas.kvnode.peers import Peers
from prfaas.kvnode.records import RecentRecords
from prfaas.transport.arena import Arena
from prfaas.transport.data_plane import DataPlane, NodeIdentity
from prfaas.transport.inbound import InboundServer
from prfaas.transport.link_monitor import LinkMonitor
from prfaas.transport.outbound import Dial, PeerLink, tcp_dialer
from prfaas.transport.secure import LaneSecurity

logger = logging.getLogger("prfaas.kvnode")

#: Ticks of the monitor. A quarter of a second keeps every deadline within 10% of the shortest (3 s).
MONITOR_TICK_S = 0.25
#: Between two checks of the ledgers: soon enough to say which requests came before, rare enough to cost nothing.
CHECK_EVERY_S = 10.0


LinkMaker = Callable[[DataPlane, str, Dial, Callable[[OutboundTransfer], None]], PeerLink]


@dataclass(eq=False)
class Engine:
    """One engine, by its boot id. Its parts (scheduler, worker) connect on their own; the worker brings the layout."""

    engine_id: str
    boot_id: str
    layout: KVLayout | None = None
    schedulers: int = 0
    workers: int = 0


@dataclass(eq=False)
class KVNode:
    """One node. `dials` and `make_link` are replaced in tests.

    `on_change(transfer_id)` is called from any thread after a landing or transfer has changed, `on_link_change()` after
    a link's verdict has.
    """

    config: KVNodeConfig
    arena: Arena
    listener: socket.socket
    boot_id: str = field(default_factory=lambda: secrets.token_hex(8))
    dials: dict[str, Dial] = field(default_factory=dict)
    security: LaneSecurity | None = None
    on_change: Callable[[str], None] = lambda transfer_id: None
    on_link_change: Callable[[], None] = lambda: None
    make_link: LinkMaker = PeerLink

    def __post_init__(self) -> None:
        config = self.config
        identity = NodeIdentity(config.name, self.boot_id, config.hash.algorithm, config.hash.seed)
        self.plane = DataPlane(identity, self.arena, config.limits, self.security, self.on_change)
        self.inbound = InboundServer(self.plane, self.listener)
        self.engines: dict[str, Engine] = {}
        self.sent = RecentRecords()
        #: The deployment file has changed and is refused.
        self.is_file_refused = False
        self._checked_s = self.plane.now_s()
        self._stopping = threading.Event()
        self._peers = Peers(config.peers, self._make_link)
        self.link_monitor = LinkMonitor(self.links, self.plane.now_s, self.on_link_change)
        self._monitor = threading.Thread(target=self._watch, name="prfaas-monitor", daemon=True)

    def _make_link(self, name: str, address: tuple[str, int]) -> PeerLink:
        dial = self.dials.get(name) or tcp_dialer(*address, self.config.limits.lane_dead_after_s)
        return self.make_link(self.plane, name, dial, self._transfer_done)

    @property
    def links(self) -> dict[str, PeerLink]:
        """To the nodes that transfers may be opened to, by name."""
        return self._peers.current

    # -- life

    def start(self) -> None:
        """Listen, dial the peers, watch."""
        self.inbound.start()
        self._peers.start()
        self._monitor.start()
        self.link_monitor.start()

    def stop(self) -> None:
        """Close every lane and abort what is under way. The arena is the caller's."""
        self._stopping.set()
        self.link_monitor.stop()
        self._peers.stop()
        self.inbound.stop()
        if self._monitor.ident is not None:
            self._monitor.join()

    def follow(self, peers: Mapping[str, tuple[str, int]], identities: Mapping[str, str] | None) -> None:
        """From now on send to `peers`, and let in the nodes of `identities`: see `KVNodeConfig`. What is under way to
        or from others goes on."""
        if self.plane.security is not None:
            self.plane.security = LaneSecurity(self.plane.security.credentials, identities)
        self._peers.follow(peers)
        self.link_monitor.follow(self._peers.current)

    def _watch(self) -> None:
        while not self._stopping.wait(MONITOR_TICK_S):
            try:
                self.tick()
            except Exception:
                logger.exception("the monitor failed; it goes on")

    def tick(self) -> None:
        """Every `MONITOR_TICK_S`: what is dead, late or over ends."""
        now_s = self.plane.now_s()
        if self.security is not None:
            self.security.credentials.reload()
        self._peers.check(now_s)
        changed = self.inbound.check(now_s)
        for transfer_id in changed:
            self.on_change(transfer_id)
        self.expire_landings()
        if now_s - self._checked_s >= CHECK_EVERY_S:
            self._checked_s = now_s
            self.check_ledgers()

    def expire_landings(self) -> None:
        """End what nobody renewed."""
        with self.plane.lock:
            expired = self.plane.ledgers.landings.expire(self.plane.now_s())
            self.plane.counters["landings_expired", ""] += len(expired)
        for landing in expired:
            logger.warning("landing %s expired after %s of %s bytes", *_progress(landing))
            self.on_change(landing.transfer_id)

    def check_ledgers(self) -> None:
        """Check the invariants of all ledgers, if nothing is under way: then it costs a millisecond and holds nobody
        up. What is broken is counted and logged with the record that shows it, and the node goes on."""
        with self.plane.lock:
            outbound = [link.ledger for link in self._peers.all]
            if self.plane.ledgers.landings.receiving_senders() or any(ledger.live() for ledger in outbound):
                return
            broken = ""
            try:
                self.plane.ledgers.check()
                for ledger in outbound:
                    ledger.check()
            except AssertionError as error:
                self.plane.counters["ledger_faults", ""] += 1
                broken = str(error) or repr(error)
        if broken:
            logger.error("a ledger of this node is broken; report it, and restart the node: %s", broken)

    # -- the gateway's operations

    def reserve(self, asked: Reservation) -> Reserved:
        """POST /v1/landings. Raises Refused."""
        engine = self._serving_engine()
        layout = engine.layout
        assert layout is not None
        try:
            image = layout.image(asked.num_prompt_tokens, asked.skip_tokens)
        except ValueError as error:
            raise Refused("bad_request", str(error)) from None
        token, handle = secrets.token_urlsafe(16), secrets.randbits(63)
        with self.plane.lock:
            landing = self.plane.ledgers.landings.reserve(
                asked.transfer_id,
                token=token,
                claim_key=ClaimKey(asked.num_prompt_tokens, asked.token_digest, asked.claim_secret),
                handle=handle,
                num_bytes=image.num_bytes,
                skip_tokens=asked.skip_tokens,
                fingerprint=layout.fingerprint,
                now_s=self.plane.now_s(),
                lease_s=asked.lease_s,
            )
        return Reserved(
            transfer_id=asked.transfer_id,
            token=token,
            node=self.config.name,
            num_bytes=landing.extent.size,
            block_tokens=layout.block_tokens,
            engine_boot_id=engine.boot_id,
            fingerprint=layout.fingerprint,
            kv_group_kinds=layout.group_kinds,
        )

    def landing(self, transfer_id: str) -> Landing:
        """Raises Refused with `unknown`."""
        with self.plane.lock:
            return _known(self.plane.ledgers.landings.find(transfer_id))

    def renew(self, transfer_id: str, lease_s: float) -> Landing:
        """POST …/renew. Raises Refused with `unknown`."""
        with self.plane.lock:
            return _known(self.plane.ledgers.landings.renew(transfer_id, self.plane.now_s(), lease_s))

    def drop(self, transfer_id: str) -> Landing:
        """DELETE. Raises Refused with `unknown`."""
        with self.plane.lock:
            before = self.plane.ledgers.landings.find(transfer_id)
            was_receiving = before is not None and before.state is LandingState.RECEIVING
            landing = _known(self.plane.ledgers.landings.drop(transfer_id, "released by the gateway"))
        if was_receiving:
            self.inbound.is_over(landing)
        self.on_change(transfer_id)
        return landing

    def transfer_record(self, transfer_id: str) -> TransferRecord:
        """GET /v1/transfers/{id}. Raises Refused with `unknown`."""
        with self.plane.lock:
            staging = self.plane.ledgers.stagings.find(transfer_id)
            link = None if staging is None else self._peers.carrying(staging.peer, transfer_id)
            live = None if link is None else link.ledger.find(transfer_id)
            record = live.record() if live is not None else self.sent.get(transfer_id)
        if record is None:
            raise Refused("unknown", "no such transfer is known here")
        return record

    @property
    def verdict_changes(self) -> int:
        """Grows with every change of any link's verdict."""
        return self.link_monitor.verdict_changes

    def link_reports(self) -> LinkReports:
        """GET /v1/links."""
        now_s = self.plane.now_s()
        links = {peer: LinkReport.of(seen, now_s) for peer, seen in self.link_monitor.snapshots().items()}
        return LinkReports(node=self.config.name, changes=self.verdict_changes, links=links)

    def health(self) -> NodeHealth:
        """GET /health."""
        engines = [(engine, engine.layout) for engine in self.engines.values() if engine.layout is not None]
        return NodeHealth(
            status="ok",
            node=self.config.name,
            boot_id=self.boot_id,
            arena_bytes=self.plane.ledgers.extents.capacity,
            arena_free_bytes=self.plane.ledgers.extents.free_bytes,
            engines=tuple(
                EngineHealth(
                    engine_id=engine.engine_id,
                    engine_boot_id=engine.boot_id,
                    fingerprint=layout.fingerprint,
                    block_tokens=layout.block_tokens,
                    max_model_tokens=layout.max_model_tokens,
                    kv_group_kinds=layout.group_kinds,
                )
                for engine, layout in engines
            ),
            peers={name: PeerHealth(lanes_up=link.lanes_up, error=link.refusal) for name, link in self.links.items()},
            lanes_from=self.inbound.lanes_from(),
        )

    # -- the engine's operations

    def attach(self, engine_id: str, boot_id: str, layout: KVLayout | None) -> Attached:
        """An engine's part connected. Raises Refused with `layout_mismatch` if another live engine differs."""
        with self.plane.lock:
            others = [e.layout for e in self.engines.values() if e.layout is not None and e.boot_id != boot_id]
            if layout is not None and any(other.fingerprint != layout.fingerprint for other in others):
                raise Refused("layout_mismatch", "another engine with a different KV layout uses this node")
            engine = self.engines.setdefault(boot_id, Engine(engine_id, boot_id))
            if layout is None:
                engine.schedulers += 1
            else:
                engine.workers += 1
                engine.layout = layout
                self.plane.fingerprint = layout.fingerprint
        if layout is not None:
            logger.info(
                "engine %s registered layout %.12s, %d tokens a block", boot_id, layout.fingerprint, layout.block_tokens
            )
        return Attached(
            node=self.config.name,
            node_boot_id=self.boot_id,
            arena_path=self.arena.path,
            arena_bytes=self.arena.num_bytes,
        )

    def detach(self, boot_id: str, *, is_worker: bool) -> None:
        """One of the engine's connections ended. Only the worker touches the arena, so it is the end of the worker's
        that frees what the engine held: a worker closes it before it goes on, and a dead one writes nothing."""
        with self.plane.lock:
            engine = self.engines.get(boot_id)
            if engine is None:
                return
            if is_worker:
                engine.workers -= 1
            else:
                engine.schedulers -= 1
            if engine.workers == 0:
                engine.layout = None
            if engine.workers + engine.schedulers == 0:
                del self.engines[boot_id]
            elif not is_worker:
                return
            dropped = self.plane.ledgers.landings.engine_gone(boot_id)
            held = self.plane.ledgers.stagings.of_engine(boot_id)
        for staging in held:
            self.stage_close(staging.transfer_id)
        for landing in dropped:
            self.on_change(landing.transfer_id)
        logger.info(
            "engine %s disconnected; %d landings and %d stagings were its own", boot_id, len(dropped), len(held)
        )

    def stage_open(self, boot_id: str, message: Open, peer: str, deadline_s: float) -> StageOpened:
        """Reserve staging for an image that will go to `peer`. Raises Refused."""
        link = self.links.get(peer)
        if link is None:
            raise Refused("unknown_peer", f"node {self.config.name} has no peer {peer!r}; it has {sorted(self.links)}")
        stagings = self.plane.ledgers.stagings
        with self.plane.lock:
            staging = stagings.open(message.transfer_id, peer, message.num_bytes, boot_id)
        try:
            link.open(message, staging.extent, deadline_s)
        except Refused:
            with self.plane.lock:
                stagings.withdraw(staging)
            raise
        extent = staging.extent
        return StageOpened(arena_offset=extent.start, num_bytes=extent.size, node_boot_id=self.boot_id)

    def staged(self, transfer_id: str, ranges: Sequence[tuple[int, int]]) -> None:
        """Byte ranges of the image are final."""
        staging = self.plane.ledgers.stagings.find(transfer_id)
        link = None if staging is None else self._peers.carrying(staging.peer, transfer_id)
        if link is not None:
            link.stage(transfer_id, ranges)

    def stage_close(self, transfer_id: str) -> None:
        """The engine will not write this staging any more."""
        staging = self.plane.ledgers.stagings.find(transfer_id)
        if staging is None:
            return
        link = self._peers.carrying(staging.peer, transfer_id)
        if link is not None:
            link.close_transfer(transfer_id)
        with self.plane.lock:
            self.plane.ledgers.stagings.engine_stopped(staging)

    def claim(self, boot_id: str, transfer_id: str, claim_key: ClaimKey) -> Claimed:
        """The engine wants to load a landing. Raises Refused with `unknown_landing` or `not_landed`."""
        with self.plane.lock:
            landing = self.plane.ledgers.landings.claim(transfer_id, boot_id, claim_key)
        self.on_change(transfer_id)
        return Claimed(
            arena_offset=landing.extent.start,
            num_bytes=landing.extent.size,
            skip_tokens=landing.skip_tokens,
            node_boot_id=self.boot_id,
        )

    def consumed(self, boot_id: str, transfer_id: str, tokens_loaded: int, tokens_recomputed: int) -> bool:
        """The engine has copied what it wanted. False if its claim had ended: then the copy must not be used."""
        with self.plane.lock:
            valid = self.plane.ledgers.landings.consumed(transfer_id, boot_id, tokens_loaded, tokens_recomputed)
        self.on_change(transfer_id)
        return valid

    def declined(self, transfer_id: str, claim_secret: str, reason: str, tokens_recomputed: int) -> None:
        """The engine computes the prompt itself. Ends the landing only if the secret is the landing's."""
        with self.plane.lock:
            self.plane.ledgers.landings.declined(transfer_id, claim_secret, reason, tokens_recomputed)
        logger.warning("transfer %s was not loaded: %s", transfer_id, reason)
        self.on_change(transfer_id)

    # -- helpers

    def _serving_engine(self) -> Engine:
        engine = next((e for e in reversed(self.engines.values()) if e.layout is not None), None)
        if engine is None:
            raise Refused("no_engine", f"no engine has registered at node {self.config.name} yet")
        return engine

    def _transfer_done(self, transfer: OutboundTransfer) -> None:
        with self.plane.lock:
            self.plane.counters["transfers", f"out:{transfer.state.value}"] += 1
            self.sent.put(transfer.transfer_id, transfer.record())
            self.plane.ledgers.stagings.transfer_ended(transfer.transfer_id)
        if transfer.reason is not None:
            logger.warning("transfer %s aborted: %s", transfer.transfer_id, transfer.reason)
        self.on_change(transfer.transfer_id)


def _known(landing: Landing | None) -> Landing:
    if landing is None:
        raise Refused("unknown", "no landing of this transfer is known here")
    return landing


def _progress(landing: Landing) -> tuple[str, int, int]:
    return landing.transfer_id, landing.verified.size, landing.extent.size
