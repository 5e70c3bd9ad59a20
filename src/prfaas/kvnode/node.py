"""The KV node without its sockets to engines and gateway: what each operation does, under which lock.

Methods are synchronous, quick and thread-safe; the HTTP and engine shells call them from the event loop, the monitor
from its own thread. Laws:
- A staging's bytes are freed when the transfer has ended *and* the engine has stopped writing them.
- What an engine held is freed when its connection ends, whatever ended it.
"""

from __future__ import annotations

import logging
import secrets
import socket
import threading
from dataclasses import dataclass, field

from prfaas.core.errors import Refused
from prfaas.core.model.layout import KVLayout
from prfaas.core.transfer.extents import Extent
from prfaas.core.transfer.landings import ClaimKey, Landing
from prfaas.core.transfer.outbound import OutboundTransfer
from prfaas.core.wire.messages import Open
from prfaas.kvnode.config import KVNodeConfig
from prfaas.kvnode.records import RecentRecords
from prfaas.transport.arena import Arena
from prfaas.transport.inbound import InboundServer
from prfaas.transport.ledgers import Ledgers, NodeIdentity
from prfaas.transport.limits import LaneLimits
from prfaas.transport.link_monitor import LinkMonitor
from prfaas.transport.outbound import Dial, PeerLink, tcp_dialer
from prfaas.transport.secure import LaneSecurity

logger = logging.getLogger("prfaas.kvnode")

#: Ticks of the monitor. A quarter of a second keeps every deadline within 10% of the shortest (3 s).
MONITOR_TICK_S = 0.25


@dataclass(eq=False)
class Engine:
    """One engine, by its boot id. Its parts (scheduler, worker) connect on their own; the worker brings the layout."""

    engine_id: str
    boot_id: str
    layout: KVLayout | None = None
    schedulers: int = 0
    workers: int = 0


@dataclass(eq=False)
class Staging:
    """Bytes of the arena that an engine fills and lanes send."""

    transfer_id: str
    peer: str
    extent: Extent
    engine: str
    engine_writes: bool = True
    transfer_live: bool = True


@dataclass(eq=False)
class KVNode:
    """One node. `dial` is replaced in tests."""

    config: KVNodeConfig
    arena: Arena
    listener: socket.socket
    limits: LaneLimits
    boot_id: str = field(default_factory=lambda: secrets.token_hex(8))
    dials: dict[str, Dial] = field(default_factory=dict)
    security: LaneSecurity | None = None

    def __post_init__(self) -> None:
        config = self.config
        identity = NodeIdentity(config.name, self.boot_id, config.hash_algorithm, config.hash_seed)
        self.ledgers = Ledgers(identity, self.arena, self.limits, self.security)
        self.inbound = InboundServer(self.ledgers, self.listener)
        self.engines: dict[str, Engine] = {}
        self.sent = RecentRecords()
        self._stagings: dict[str, Staging] = {}
        self._stopping = threading.Event()
        self.links: dict[str, PeerLink] = {}
        for name, (host, port) in config.peers.items():
            dial = self.dials.get(name) or tcp_dialer(host, port, self.limits.lane_dead_after_s)
            self.links[name] = PeerLink(self.ledgers, name, dial, self._transfer_done)
        self.link_monitor = LinkMonitor(self.links, self.ledgers.now_s)
        self._monitor = threading.Thread(target=self._watch, name="prfaas-monitor", daemon=True)

    # -- life

    def start(self) -> None:
        """Listen, dial the peers, watch."""
        self.inbound.start()
        for link in self.links.values():
            link.start()
        self._monitor.start()
        self.link_monitor.start()

    def stop(self) -> None:
        """Close every lane and abort what is under way. The arena is the caller's."""
        self._stopping.set()
        self.link_monitor.stop()
        for link in self.links.values():
            link.stop()
        self.inbound.stop()
        if self._monitor.ident is not None:
            self._monitor.join()

    def _watch(self) -> None:
        while not self._stopping.wait(MONITOR_TICK_S):
            try:
                self._tick()
            except Exception:
                logger.exception("the monitor failed; it goes on")

    def _tick(self) -> None:
        now_s = self.ledgers.now_s()
        if self.security is not None:
            self.security.credentials.reload()
        for link in self.links.values():
            link.check(now_s)
        changed = self.inbound.check(now_s)
        with self.ledgers.lock:
            expired = self.ledgers.landings.expire(now_s)
            self.ledgers.counters["landings_expired", ""] += len(expired)
        for landing in expired:
            logger.warning("landing %s expired after %s of %s bytes", *_progress(landing))
        for transfer_id in [*changed, *(landing.transfer_id for landing in expired)]:
            self.ledgers.on_change(transfer_id)

    # -- the gateway's operations

    def reserve(self, transfer_id: str, claim_key: ClaimKey, skip_tokens: int, lease_s: float) -> dict[str, object]:
        """POST /v1/landings. Raises Refused."""
        engine = self._serving_engine()
        layout = engine.layout
        assert layout is not None
        try:
            image = layout.image(claim_key.num_prompt_tokens, skip_tokens)
        except ValueError as error:
            raise Refused("bad_request", str(error)) from None
        token, handle = secrets.token_urlsafe(16), secrets.randbits(63)
        with self.ledgers.lock:
            landing = self.ledgers.landings.reserve(
                transfer_id,
                token=token,
                claim_key=claim_key,
                handle=handle,
                num_bytes=image.num_bytes,
                skip_tokens=skip_tokens,
                fingerprint=layout.fingerprint,
                now_s=self.ledgers.now_s(),
                lease_s=lease_s,
            )
        return {
            "transfer_id": transfer_id,
            "token": token,
            "node": self.config.name,
            "num_bytes": landing.extent.size,
            "block_tokens": layout.block_tokens,
            "engine_boot_id": engine.boot_id,
            "fingerprint": layout.fingerprint,
        }

    def landing(self, transfer_id: str) -> Landing:
        """Raises Refused with `unknown`."""
        with self.ledgers.lock:
            return _known(self.ledgers.landings.find(transfer_id))

    def renew(self, transfer_id: str, lease_s: float) -> Landing:
        """POST …/renew. Raises Refused with `unknown`."""
        with self.ledgers.lock:
            return _known(self.ledgers.landings.renew(transfer_id, self.ledgers.now_s(), lease_s))

    def drop(self, transfer_id: str) -> Landing:
        """DELETE. Raises Refused with `unknown`."""
        with self.ledgers.lock:
            landing = _known(self.ledgers.landings.drop(transfer_id, "released by the gateway"))
        self.ledgers.on_change(transfer_id)
        return landing

    def transfer_record(self, transfer_id: str) -> dict[str, object]:
        """GET /v1/transfers/{id}. Raises Refused with `unknown`."""
        with self.ledgers.lock:
            staging = self._stagings.get(transfer_id)
            live = None if staging is None else self.links[staging.peer].ledger.find(transfer_id)
            record = live.record() if live is not None else self.sent.get(transfer_id)
        if record is None:
            raise Refused("unknown", "no such transfer is known here")
        return record

    def link_records(self) -> dict[str, dict[str, object]]:
        """GET /v1/links, by peer."""
        now_s = self.ledgers.now_s()
        return {
            peer: {"lanes_up": self.links[peer].lanes_up, **state.record(now_s)}
            for peer, state in self.link_monitor.states().items()
        }

    # -- the engine's operations

    def attach(self, engine_id: str, boot_id: str, layout: KVLayout | None) -> dict[str, object]:
        """An engine's part connected. Raises Refused with `layout_mismatch` if another live engine differs."""
        with self.ledgers.lock:
            others = [e.layout for e in self.engines.values() if e.layout is not None and e.boot_id != boot_id]
            if layout is not None and any(other.fingerprint != layout.fingerprint for other in others):
                raise Refused("layout_mismatch", "another engine with a different KV layout uses this node")
            engine = self.engines.setdefault(boot_id, Engine(engine_id, boot_id))
            if layout is None:
                engine.schedulers += 1
            else:
                engine.workers += 1
                engine.layout = layout
                self.ledgers.fingerprint = layout.fingerprint
        if layout is not None:
            logger.info(
                "engine %s registered layout %.12s, %d tokens a block", boot_id, layout.fingerprint, layout.block_tokens
            )
        return {
            "node": self.config.name,
            "node_boot_id": self.boot_id,
            "arena_path": self.arena.path,
            "arena_bytes": self.arena.num_bytes,
        }

    def detach(self, boot_id: str, *, is_worker: bool) -> None:
        """One of the engine's connections ended. Only the worker touches the arena, so it is the end of the worker's
        that frees what the engine held: a worker closes it before it goes on, and a dead one writes nothing."""
        with self.ledgers.lock:
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
            dropped = self.ledgers.landings.engine_gone(boot_id)
            held = [staging for staging in self._stagings.values() if staging.engine == boot_id]
        for staging in held:
            self.stage_close(staging.transfer_id)
        for landing in dropped:
            self.ledgers.on_change(landing.transfer_id)
        logger.info(
            "engine %s disconnected; %d landings and %d stagings were its own", boot_id, len(dropped), len(held)
        )

    def stage_open(self, boot_id: str, message: Open, peer: str, deadline_s: float) -> dict[str, object]:
        """Reserve staging for an image that will go to `peer`. Raises Refused."""
        link = self.links.get(peer)
        if link is None:
            raise Refused("unknown_peer", f"node {self.config.name} has no peer {peer!r}; it has {sorted(self.links)}")
        with self.ledgers.lock:
            if message.transfer_id in self._stagings:
                raise Refused("exists", "this transfer is being staged already")
            extent = self.ledgers.extents.allocate(message.num_bytes)
            if extent is None:
                free = self.ledgers.extents.free_bytes
                raise Refused("arena_full", f"no room to stage {message.num_bytes} bytes; {free} are free")
            self._stagings[message.transfer_id] = Staging(message.transfer_id, peer, extent, boot_id)
        try:
            link.open(message, extent, deadline_s)
        except Refused:
            with self.ledgers.lock:
                self.ledgers.extents.free(extent)
                del self._stagings[message.transfer_id]
            raise
        return {"arena_offset": extent.start, "num_bytes": extent.size, "node_boot_id": self.boot_id}

    def staged(self, transfer_id: str, ranges: list[tuple[int, int]]) -> None:
        """Byte ranges of the image are final."""
        staging = self._stagings.get(transfer_id)
        if staging is not None:
            self.links[staging.peer].stage(transfer_id, ranges)

    def stage_close(self, transfer_id: str) -> None:
        """The engine will not write this staging any more."""
        staging = self._stagings.get(transfer_id)
        if staging is None:
            return
        self.links[staging.peer].close_transfer(transfer_id)
        with self.ledgers.lock:
            staging.engine_writes = False
            self._free_if_over(staging)

    def claim(self, boot_id: str, transfer_id: str, claim_key: ClaimKey) -> dict[str, object]:
        """The engine wants to load a landing. Raises Refused with `unknown_landing` or `not_landed`."""
        with self.ledgers.lock:
            landing = self.ledgers.landings.claim(transfer_id, boot_id, claim_key)
        self.ledgers.on_change(transfer_id)
        return {
            "arena_offset": landing.extent.start,
            "num_bytes": landing.extent.size,
            "skip_tokens": landing.skip_tokens,
            "node_boot_id": self.boot_id,
        }

    def consumed(self, boot_id: str, transfer_id: str, tokens_loaded: int, tokens_recomputed: int) -> bool:
        """The engine has copied what it wanted. False if its claim had ended: then the copy must not be used."""
        with self.ledgers.lock:
            valid = self.ledgers.landings.consumed(transfer_id, boot_id, tokens_loaded, tokens_recomputed)
        self.ledgers.on_change(transfer_id)
        return valid

    def declined(self, transfer_id: str, claim_secret: str, reason: str, tokens_recomputed: int) -> None:
        """The engine computes the prompt itself. Ends the landing only if the secret is the landing's."""
        with self.ledgers.lock:
            self.ledgers.landings.declined(transfer_id, claim_secret, reason, tokens_recomputed)
        logger.warning("transfer %s was not loaded: %s", transfer_id, reason)
        self.ledgers.on_change(transfer_id)

    # -- helpers

    def _serving_engine(self) -> Engine:
        engine = next((e for e in reversed(self.engines.values()) if e.layout is not None), None)
        if engine is None:
            raise Refused("no_engine", f"no engine has registered at node {self.config.name} yet")
        return engine

    def _transfer_done(self, transfer: OutboundTransfer) -> None:
        with self.ledgers.lock:
            self.ledgers.counters["transfers", f"out:{transfer.state.value}"] += 1
            self.sent.put(transfer.transfer_id, transfer.record())
            staging = self._stagings.get(transfer.transfer_id)
            if staging is not None:
                staging.transfer_live = False
                self._free_if_over(staging)
        if transfer.reason is not None:
            logger.warning("transfer %s to node aborted: %s", transfer.transfer_id, transfer.reason)
        self.ledgers.on_change(transfer.transfer_id)

    def _free_if_over(self, staging: Staging) -> None:
        if (
            not staging.engine_writes
            and not staging.transfer_live
            and self._stagings.pop(staging.transfer_id, None) is staging
        ):
            self.ledgers.extents.free(staging.extent)


def _known(landing: Landing | None) -> Landing:
    if landing is None:
        raise Refused("unknown", "no landing of this transfer is known here")
    return landing


def _progress(landing: Landing) -> tuple[str, int, int]:
    return landing.transfer_id, landing.verified.size, landing.extent.size
