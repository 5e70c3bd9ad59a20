"""The dialing side: N persistent lanes to one peer, each with a writer and a reader thread.

Every lane asks the ledger for the next chunk when it is free, so a slow lane slows nothing else. The ledger decides;
these threads only sum, send and report.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from prfaas.core.errors import Refused
from prfaas.core.link.arrivals import Arrivals
from prfaas.core.link.controller import LinkController, LinkOrders, LinkPlan
from prfaas.core.link.lane_plan import chunk_bytes
from prfaas.core.link.snapshot import LinkSnapshot
from prfaas.core.transfer.extents import Extent
from prfaas.core.transfer.outbound import Chunk, Outbound, OutboundTransfer
from prfaas.core.transfer.send_gate import SendGate
from prfaas.core.wire.frames import FrameType
from prfaas.core.wire.lane import Received
from prfaas.core.wire.messages import Abort, Message, Open, Opened, Welcome
from prfaas.transport.data_plane import DataPlane
from prfaas.transport.duties import ChunkWork, Errand, LaneDesk, Work
from prfaas.transport.limits import LaneLimits
from prfaas.transport.outbound_lane import OutboundLane
from prfaas.transport.sockets import available_congestion_controls

logger = logging.getLogger("prfaas.lanes")

Dial = Callable[[], socket.socket]
#: Of a link with more transfers, the first are told one by one.
MAX_TOLD: Final = 256


def tcp_dialer(host: str, port: int, timeout_s: float) -> Dial:
    """Opens TCP connections to a peer's lanes address."""

    def dial() -> socket.socket:
        sock = socket.create_connection((host, port), timeout_s)
        sock.settimeout(None)
        return sock

    return dial


def link_plan(limits: LaneLimits) -> LinkPlan:
    """What the controller of a link may do, by these limits and this kernel."""
    has_both = {"bbr", "cubic"} <= set(available_congestion_controls())
    return LinkPlan(
        num_lanes=limits.num_lanes,
        max_lanes=limits.max_lanes,
        chunk_bytes=limits.chunk_bytes,
        short_link_senders=limits.short_link_senders,
        congestion=limits.congestion,
        trial=("bbr", "cubic") if has_both and not limits.congestion else None,
        paced=limits.pacing,
    )


class PeerLink:
    """All lanes to one peer, and the ledger of what goes there.

    `on_done(transfer)` is called, without the lock, when a transfer ended; its staging may be freed then.
    """

    def __init__(self, plane: DataPlane, peer: str, dial: Dial, on_done: Callable[[OutboundTransfer], None]) -> None:
        self.plane = plane
        self.peer = peer
        self.dial = dial
        self.on_done = on_done
        limits = plane.limits
        self.max_chunk_bytes = limits.chunk_bytes
        self.ledger = Outbound(chunk_bytes(None, 0, limits.chunk_bytes), limits.credit_bytes)
        self.controller = LinkController(link_plan(limits))
        self.gate = SendGate()
        self.arrivals = Arrivals()
        self._wake = threading.Condition(plane.lock)
        self.stopping = threading.Event()
        self.refusal: str | None = None
        self.lanes: list[OutboundLane] = []
        self._extents: dict[str, Extent] = {}
        self._tokens: dict[str, str] = {}
        self._opens: deque[Open] = deque()
        self._aborts: deque[Abort] = deque()
        self._sent_opens: dict[str, Open] = {}
        self._last_up_s = plane.now_s()

    # -- used by the node

    def start(self) -> None:
        """Dial every lane; lanes redial for as long as the link lives."""
        self._have_lanes(self.plane.limits.num_lanes)

    def _have_lanes(self, count: int) -> None:
        for index in range(len(self.lanes), count):
            lane = OutboundLane(self.plane, self, index)
            self.lanes.append(lane)
            threading.Thread(target=lane.run, name=f"prfaas-out-{self.peer}", daemon=True).start()

    def stop(self) -> None:
        """Close every lane and abort what is under way."""
        self.stopping.set()
        with self._wake:
            done = self.ledger.abort_all("the node is stopping", self.plane.now_s())
            self._wake.notify_all()
        for lane in self.lanes:
            lane.shut()
        self._finish(done)

    @property
    def lanes_up(self) -> int:
        return sum(lane.is_up for lane in self.lanes)

    def look(self, now_s: float) -> None:
        """Take a sample of every lane that is up, and do what the controller makes of them."""
        up = {lane.connection: lane for lane in self.lanes if lane.is_up}
        samples = {connection: sample for connection, lane in up.items() if (sample := lane.sample()) is not None}
        if up or not self.controller.is_at_rest:
            choice = self.controller.chosen_congestion
            with self._wake:
                self.arrivals.look(self.controller.state.min_rtt_s or 0.0, now_s)
                is_late = self.arrivals.is_late
            self._obey(self.controller.look(samples, len(up), now_s, is_late=is_late), up)
            self._tell_choice(choice)

    def _tell_choice(self, before: str | None) -> None:
        choice = self.controller.chosen_congestion
        if choice != before:
            logger.info("lanes to %s use %s from now on", self.peer, choice)

    def _obey(self, orders: LinkOrders, up: Mapping[int, OutboundLane]) -> None:
        with self._wake:
            self.gate.limit = orders.send_limit
            self.ledger.num_senders = orders.senders
            self.ledger.chunk_bytes = self.arrivals.chunk_bytes(min(orders.chunk_bytes, self.max_chunk_bytes))
            self._wake.notify_all()  # a lane may have become free to begin by the passing of time
        for connection, name in orders.congestion_by_lane.items():
            up[connection].use_congestion_control(name)
        for connection, bytes_per_s in orders.pace_by_lane.items():
            up[connection].pace(bytes_per_s)
        if orders.lanes > len(self.lanes) and not self.stopping.is_set():
            logger.info(
                "%d lanes to %s in place of %d, whose windows cannot fill the link",
                orders.lanes,
                self.peer,
                len(self.lanes),
            )
            self._have_lanes(orders.lanes)

    def snapshot(self) -> LinkSnapshot:
        """How the link is doing, and what is on its way over it."""
        with self._wake:
            ledger, arrivals = self.ledger, self.arrivals
            queued_bytes, num_transfers = ledger.queued_bytes + arrivals.unwanted_bytes, ledger.num_live
            arrives = arrivals.bytes_per_s
            left = {} if arrives is None else {t.transfer_id: t.bytes_left for t in ledger.live()[:MAX_TOLD]}
        return LinkSnapshot(self.controller.state, self.lanes_up, queued_bytes, num_transfers, arrives, left)

    def live_sockets(self) -> dict[int, socket.socket]:
        """Sockets of the lanes that are up, by connection: a lane that was redialled has another number. Their threads
        may close them at any moment."""
        found = [(lane.connection, lane.live_socket) for lane in self.lanes]
        return {connection: sock for connection, sock in found if sock is not None}

    def open(self, message: Open, extent: Extent, deadline_s: float) -> None:
        """Start a transfer whose bytes will be staged in `extent`. Raises Refused with `peer_down` or a ledger code."""
        now_s = self.plane.now_s()
        with self._wake:
            if self.stopping.is_set():
                raise Refused("peer_down", f"node {self.peer} is no peer any more")
            if not self.lanes_up and now_s - self._last_up_s > self.plane.limits.peer_lost_after_s:
                why = self.refusal or "no lane is up"
                raise Refused("peer_down", f"node {self.peer} cannot be reached: {why}")
            self.ledger.open(message.transfer_id, message.num_bytes, now_s, now_s + deadline_s)
            self._extents[message.transfer_id] = extent
            self._tokens[message.transfer_id] = message.token
            self._opens.append(message)
            self._wake.notify_all()

    def stage(self, transfer_id: str, ranges: Sequence[tuple[int, int]]) -> None:
        """Byte ranges of the image are final in the arena."""
        now_s = self.plane.now_s()
        with self._wake:
            for start, end in ranges:
                self.ledger.stage(transfer_id, start, end, now_s)
            self._wake.notify_all()

    def close_transfer(self, transfer_id: str) -> None:
        """The engine stages no more."""
        with self._wake:
            aborted = self.ledger.close(transfer_id, self.plane.now_s())
        self._abandon([aborted] if aborted else [])

    def abort(self, transfer_id: str, reason: str) -> None:
        """Give a transfer up."""
        with self._wake:
            aborted = self.ledger.abort(transfer_id, reason, self.plane.now_s())
        self._abandon([aborted] if aborted else [])

    def check(self, now_s: float) -> None:
        """Monitor's tick: dead lanes, deadlines, a lost peer."""
        limits = self.plane.limits
        with self._wake:
            slow = self.gate.slow(now_s)
        for lane in self.lanes:
            lane.check(now_s)
            if lane.desk.number in slow:
                logger.warning("lane to %s is far slower than the others; its chunk goes to them", self.peer)
                lane.shut()
        self._renew_a_lane()
        with self._wake:
            if self.lanes_up:
                self._last_up_s = now_s
            done = self.ledger.expire(now_s)
            if now_s - self._last_up_s > limits.peer_lost_after_s:
                done += self.ledger.abort_all(f"link to {self.peer} is lost", now_s)
        self._abandon(done)

    def _renew_a_lane(self) -> None:
        """One lane that was dialled with an older certificate makes way for a new one; all others carry on."""
        security = self.plane.security
        if security is None or self.lanes_up < len(self.lanes):
            return
        version = security.credentials.version
        old = next((lane for lane in self.lanes if lane.credentials_version < version), None)
        if old is not None:
            old.retire()

    # -- used by the lanes (`LaneDuties`)

    def congestion_for(self, place: int, *, is_short: bool) -> str:
        return self.controller.congestion_for(place, is_short=is_short)

    def wake(self) -> None:
        with self._wake:
            self._wake.notify_all()

    def greeted(self, welcome: Welcome) -> None:
        limits = self.plane.limits
        with self._wake:
            self.refusal = None
            self.max_chunk_bytes = min(limits.chunk_bytes, welcome.max_chunk_bytes)
            self.ledger.chunk_bytes = min(self.ledger.chunk_bytes, self.max_chunk_bytes)
            self.ledger.credit_bytes = min(limits.credit_bytes, welcome.credit_bytes)

    def refused(self, reason: str) -> bool:
        told, self.refusal = self.refusal, reason
        return told != reason

    def ended(self, reason: str) -> None:
        self.refusal = self.refusal or reason

    def next_work(self, lane: LaneDesk, sent: Chunk | None, ping_at_s: float) -> Work:
        with self._wake:
            if sent is not None:
                self.gate.handed_over(lane.number)
                self.plane.counters["bytes_sent", self.peer] += sent.length
            while not self._is_done(lane):
                work = self._locked_message() or self._locked_chunk(lane)
                if work is not None:
                    return work
                if lane.pongs_due:
                    lane.pongs_due -= 1
                    return Errand.PONG
                # Waking up is no sign of life: other lanes' acknowledgements wake this one too.
                left_s = ping_at_s - self.plane.now_s()
                if left_s <= 0 and not lane.is_pinged:
                    return Errand.PING
                self._wake.wait(left_s if left_s > 0 else None)
            return Errand.LEAVE

    def lost(self, lane: LaneDesk) -> None:
        with self._wake:
            lost = self.ledger.lane_lost(lane.number)
            self.gate.lost(lane.number)
            self.arrivals.lost(lane.number)
            self.plane.counters["bytes_resent", self.peer] += lost
            self._opens.extend(self._sent_opens.values())
            self._sent_opens.clear()
            self._wake.notify_all()

    def answered(self, received: Received) -> None:
        header, message = received.header, received.message
        if header.type is FrameType.ACK:
            self._acked(header.handle, header.offset)
        elif header.type is FrameType.NACK:
            self._nacked(header.handle, header.offset)
        elif isinstance(message, Opened):
            self._opened(message.transfer_id, header.handle)
        elif isinstance(message, Abort):
            self._aborted_by_peer(header.handle, message)

    # -- for these; names that begin with "locked" hold the lock

    def _is_done(self, lane: LaneDesk) -> bool:
        retired = lane.is_retiring and not self.ledger.is_carrying(lane.number)
        return self.stopping.is_set() or not lane.is_up or retired

    def _locked_message(self) -> Message | None:
        while self._opens:
            message = self._opens.popleft()
            if message.transfer_id in self._extents:
                self._sent_opens[message.transfer_id] = message
                return message
        return self._aborts.popleft() if self._aborts else None

    def _locked_chunk(self, lane: LaneDesk) -> ChunkWork | None:
        now_s = self.plane.now_s()
        before = (other.desk.number for other in self.lanes[: lane.place] if other.is_up)
        if lane.is_retiring or not self.arrivals.has_room or not self.gate.may_begin(now_s, before):
            return None
        chunk = self.ledger.next_chunk(lane.number, now_s)
        if chunk is None:
            return None
        self.gate.begun(lane.number, (chunk.handle, chunk.offset), chunk.length, now_s)
        self.arrivals.begun(lane.number, (chunk.handle, chunk.offset), chunk.length, now_s)
        start = self._extents[chunk.transfer_id].start + chunk.offset
        return ChunkWork(chunk, self.plane.arena.view[start : start + chunk.length])

    def _opened(self, transfer_id: str, handle: int) -> None:
        with self._wake:
            self._sent_opens.pop(transfer_id, None)
            self.ledger.opened(transfer_id, handle)
            self._wake.notify_all()

    def _acked(self, handle: int, offset: int) -> None:
        with self._wake:
            now_s = self.plane.now_s()
            done = self.ledger.acked(handle, offset, now_s)
            self.gate.answered((handle, offset), now_s)
            self.arrivals.answered((handle, offset), now_s)
            # A lane that is woken for nothing costs the one that sends its core.
            if done is not None or (self.gate.may_begin(now_s) and self.ledger.can_send()):
                self._wake.notify_all()
        self._finish([done] if done else [])

    def _nacked(self, handle: int, offset: int) -> None:
        with self._wake:
            now_s = self.plane.now_s()
            aborted = self.ledger.nacked(handle, offset, now_s)
            self.gate.answered((handle, offset), now_s)
            self.arrivals.answered((handle, offset), now_s)
            self.plane.counters["chunks_nacked", self.peer] += 1
            self._wake.notify_all()
        self._abandon([aborted] if aborted else [])

    def _aborted_by_peer(self, handle: int, abort: Abort) -> None:
        with self._wake:
            now_s = self.plane.now_s()
            if not abort.transfer_id:
                self.arrivals.discarded(handle, now_s)  # the answer to a chunk that came too late
            transfer_id = abort.transfer_id or self.ledger.transfer_of(handle)
            done = self.ledger.abort(transfer_id, f"{abort.code}: {abort.message}", now_s)
            self._wake.notify_all()
        self._finish([done] if done else [])

    def _abandon(self, done: list[OutboundTransfer]) -> None:
        if not done:
            return
        with self._wake:
            self._aborts.extend(
                Abort(t.transfer_id, self._tokens.get(t.transfer_id, ""), "sender_aborted", (t.reason or "")[:500])
                for t in done
            )
            self._wake.notify_all()
        self._finish(done)

    def _finish(self, done: list[OutboundTransfer]) -> None:
        for transfer in done:
            with self._wake:
                self._extents.pop(transfer.transfer_id, None)
                self._tokens.pop(transfer.transfer_id, None)
                self._sent_opens.pop(transfer.transfer_id, None)
                if transfer.handle is not None:
                    self.gate.over(transfer.handle)
                    self.arrivals.over(transfer.handle)
            self.on_done(transfer)
