"""The dialing side: N persistent lanes to one peer, each with a writer and a reader thread.

Every lane asks the ledger for the next chunk when it is free, so a slow lane slows nothing else. The ledger decides;
these threads only sum, send and report.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections import deque
from collections.abc import Callable

from prfaas.core.cache.extents import Extent
from prfaas.core.errors import Refused, RemoteProtocolError
from prfaas.core.wire.frames import FrameType, checksum
from prfaas.core.wire.lane import LaneProtocol, LaneState, Received
from prfaas.core.wire.messages import Abort, Hello, Message, Open, Opened, Refuse, Welcome
from prfaas.core.wire.outbound import Chunk, Outbound, OutboundTransfer
from prfaas.transport.exchange import Exchange
from prfaas.transport.liveness import Liveness
from prfaas.transport.sockets import LaneClosed, receive_into, send_all, shut, tune

logger = logging.getLogger("prfaas.lanes")

Dial = Callable[[], socket.socket]


def tcp_dialer(host: str, port: int, timeout_s: float) -> Dial:
    """Opens TCP connections to a peer's lanes address."""

    def dial() -> socket.socket:
        sock = socket.create_connection((host, port), timeout_s)
        sock.settimeout(None)
        return sock

    return dial


class PeerLink:
    """All lanes to one peer, and the ledger of what goes there.

    `on_done(transfer)` is called, without the lock, when a transfer ended; its staging may be freed then.
    """

    def __init__(self, exchange: Exchange, peer: str, dial: Dial, on_done: Callable[[OutboundTransfer], None]) -> None:
        self.exchange = exchange
        self.peer = peer
        self.dial = dial
        self.on_done = on_done
        limits = exchange.limits
        self.ledger = Outbound(limits.chunk_bytes, limits.credit_bytes)
        self.wake = threading.Condition(exchange.lock)
        self.stopping = threading.Event()
        self.refusal: str | None = None
        self.lanes: list[OutboundLane] = []
        self._extents: dict[str, Extent] = {}
        self._tokens: dict[str, str] = {}
        self._opens: deque[Open] = deque()
        self._aborts: deque[Abort] = deque()
        self._sent_opens: dict[str, Open] = {}
        self._last_up_s = exchange.now_s()

    # -- used by the node

    def start(self) -> None:
        """Dial every lane; lanes redial for as long as the link lives."""
        for _ in range(self.exchange.limits.num_lanes):
            lane = OutboundLane(self)
            self.lanes.append(lane)
            threading.Thread(target=lane.run, name=f"prfaas-out-{self.peer}", daemon=True).start()

    def stop(self) -> None:
        """Close every lane and abort what is under way."""
        self.stopping.set()
        with self.wake:
            done = self.ledger.abort_all("the node is stopping", self.exchange.now_s())
            self.wake.notify_all()
        for lane in self.lanes:
            lane.shut()
        self._finish(done)

    @property
    def lanes_up(self) -> int:
        return sum(lane.is_up for lane in self.lanes)

    def live_sockets(self) -> dict[int, socket.socket]:
        """Sockets of the lanes that are up, by connection: a lane that was redialled has another number. Their threads
        may close them at any moment."""
        found = [(lane.connection, lane._sock) for lane in self.lanes if lane.is_up]
        return {connection: sock for connection, sock in found if sock is not None}

    def open(self, message: Open, extent: Extent, deadline_s: float) -> None:
        """Start a transfer whose bytes will be staged in `extent`. Raises Refused with `peer_down` or a ledger code."""
        now_s = self.exchange.now_s()
        with self.wake:
            if not self.lanes_up and now_s - self._last_up_s > self.exchange.limits.peer_lost_after_s:
                why = self.refusal or "no lane is up"
                raise Refused("peer_down", f"node {self.peer} cannot be reached: {why}")
            self.ledger.open(message.transfer_id, message.num_bytes, now_s, now_s + deadline_s)
            self._extents[message.transfer_id] = extent
            self._tokens[message.transfer_id] = message.token
            self._opens.append(message)
            self.wake.notify_all()

    def stage(self, transfer_id: str, ranges: list[tuple[int, int]]) -> None:
        """Byte ranges of the image are final in the arena."""
        now_s = self.exchange.now_s()
        with self.wake:
            for start, end in ranges:
                self.ledger.stage(transfer_id, start, end, now_s)
            self.wake.notify_all()

    def close_transfer(self, transfer_id: str) -> None:
        """The engine stages no more."""
        with self.wake:
            aborted = self.ledger.close(transfer_id, self.exchange.now_s())
        self._abandon([aborted] if aborted else [])

    def abort(self, transfer_id: str, reason: str) -> None:
        """Give a transfer up."""
        with self.wake:
            aborted = self.ledger.abort(transfer_id, reason, self.exchange.now_s())
        self._abandon([aborted] if aborted else [])

    def check(self, now_s: float) -> None:
        """Monitor's tick: dead lanes, deadlines, a lost peer."""
        limits = self.exchange.limits
        for lane in self.lanes:
            lane.check(now_s)
        with self.wake:
            if self.lanes_up:
                self._last_up_s = now_s
            done = self.ledger.expire(now_s)
            if now_s - self._last_up_s > limits.peer_lost_after_s:
                done += self.ledger.abort_all(f"link to {self.peer} is lost", now_s)
        self._abandon(done)

    # -- used by the lanes; those that start with "locked" hold the lock

    def memory(self, chunk: Chunk) -> memoryview | None:
        """The staged bytes of a chunk, or None if the transfer ended meanwhile. Called with the lock held."""
        extent = self._extents.get(chunk.transfer_id)
        if extent is None:
            return None
        start = extent.start + chunk.offset
        return self.exchange.arena.view[start : start + chunk.length]

    def locked_control(self) -> Message | None:
        """The next control message that any lane may carry."""
        while self._opens:
            message = self._opens.popleft()
            if message.transfer_id in self._extents:
                self._sent_opens[message.transfer_id] = message
                return message
        return self._aborts.popleft() if self._aborts else None

    def lane_lost(self, lane: int) -> None:
        """What the lane carried unanswered goes to the others."""
        with self.wake:
            lost = self.ledger.lane_lost(lane)
            self.exchange.counters["bytes_resent", self.peer] += lost
            self._opens.extend(self._sent_opens.values())
            self._sent_opens.clear()
            self.wake.notify_all()

    def opened(self, transfer_id: str, handle: int) -> None:
        """The peer accepted a transfer."""
        with self.wake:
            self._sent_opens.pop(transfer_id, None)
            self.ledger.opened(transfer_id, handle)
            self.wake.notify_all()

    def acked(self, handle: int, offset: int) -> None:
        """The peer verified a chunk."""
        with self.wake:
            done = self.ledger.acked(handle, offset, self.exchange.now_s())
            self.wake.notify_all()
        self._finish([done] if done else [])

    def nacked(self, handle: int, offset: int) -> None:
        """The peer wants a chunk again."""
        with self.wake:
            aborted = self.ledger.nacked(handle, offset, self.exchange.now_s())
            self.exchange.counters["chunks_nacked", self.peer] += 1
            self.wake.notify_all()
        self._abandon([aborted] if aborted else [])

    def aborted_by_peer(self, handle: int, abort: Abort) -> None:
        """The peer gave a transfer up."""
        with self.wake:
            transfer_id = abort.transfer_id or self.ledger.transfer_of(handle)
            done = self.ledger.abort(transfer_id, f"{abort.code}: {abort.message}", self.exchange.now_s())
        self._finish([done] if done else [])

    def _abandon(self, done: list[OutboundTransfer]) -> None:
        if not done:
            return  # waking writers for nothing would keep them from ever being idle for a heartbeat
        with self.wake:
            self._aborts.extend(
                Abort(t.transfer_id, self._tokens.get(t.transfer_id, ""), "sender_aborted", (t.reason or "")[:500])
                for t in done
            )
            self.wake.notify_all()
        self._finish(done)

    def _finish(self, done: list[OutboundTransfer]) -> None:
        for transfer in done:
            with self.wake:
                self._extents.pop(transfer.transfer_id, None)
                self._tokens.pop(transfer.transfer_id, None)
                self._sent_opens.pop(transfer.transfer_id, None)
            self.on_done(transfer)


class OutboundLane:
    """One connection to the peer, redialled when it is lost. `run` is its writer thread and never raises."""

    def __init__(self, link: PeerLink) -> None:
        self.link = link
        self.number = link.exchange.new_lane_number()
        self.is_up = False
        #: Unique within the node's life, new for every connection.
        self.connection = self.number
        self._sock: socket.socket | None = None
        self._liveness: Liveness | None = None
        self._pongs = 0

    def run(self) -> None:
        """Dial, serve, redial, until the link stops."""
        limits = self.link.exchange.limits
        pause_s = limits.redial_first_s
        while not self.link.stopping.is_set():
            try:
                sock = self.link.dial()
            except OSError as error:
                self.link.refusal = f"connecting failed: {error.strerror or error}"
            else:
                if self._serve(sock):
                    pause_s = limits.redial_first_s
            self.link.stopping.wait(pause_s)
            pause_s = min(pause_s * 2, limits.redial_max_s)

    def check(self, now_s: float) -> None:
        """Shut the connection down if it is dead."""
        liveness = self._liveness
        if liveness is not None:
            reason = liveness.check(now_s, self.link.exchange.limits.lane_dead_after_s)
            if reason is not None:
                logger.warning("lane to %s is dead: %s", self.link.peer, reason)

    def shut(self) -> None:
        """End the connection from another thread."""
        sock = self._sock
        if sock is not None:
            shut(sock)

    def _serve(self, sock: socket.socket) -> bool:
        exchange = self.link.exchange
        limits = exchange.limits
        now_s = exchange.now_s()
        self._sock, self._liveness = sock, Liveness(sock, now_s, now_s + limits.handshake_s)
        protocol = LaneProtocol(dialer=True, max_chunk_bytes=limits.chunk_bytes)
        reader = threading.Thread(target=self._read, args=(sock, protocol), name="prfaas-acks", daemon=True)
        greeted = False
        try:
            tune(sock, limits.lane_dead_after_s)
            self._greet(sock, protocol)
            self.connection = exchange.new_lane_number()
            greeted = self.is_up = True
            self.link.refusal = None
            reader.start()
            self._write(sock, protocol)
        except (LaneClosed, RemoteProtocolError) as error:
            self.link.refusal = self.link.refusal or str(error)
            logger.debug("lane to %s ended: %s", self.link.peer, error)
        except Exception:
            logger.exception("lane to %s failed", self.link.peer)
        finally:
            self.is_up = False
            shut(sock)
            if reader.ident is not None:
                reader.join()
            self._sock = self._liveness = None
            sock.close()
            self.link.lane_lost(self.number)
        return greeted

    def _greet(self, sock: socket.socket, protocol: LaneProtocol) -> None:
        exchange, me = self.link.exchange, self.link.exchange.identity
        hello = Hello(
            me.name,
            me.boot_id,
            self.link.peer,
            self.number % 1024,
            me.hash_algorithm,
            me.hash_seed,
            exchange.fingerprint,
        )
        send_all(sock, protocol.send_message(hello))
        received = _read_frame(sock, protocol)
        if isinstance(received.message, Refuse):
            self.link.refusal = f"{received.message.code}: {received.message.message}"
            logger.error("node %s refuses us: %s", self.link.peer, received.message.message)
            raise LaneClosed(self.link.refusal)
        welcome = received.message
        assert isinstance(welcome, Welcome) and self._liveness is not None
        self._liveness.greeted = True
        with self.link.wake:
            ledger = self.link.ledger
            ledger.chunk_bytes = min(exchange.limits.chunk_bytes, welcome.max_chunk_bytes)
            ledger.credit_bytes = min(exchange.limits.credit_bytes, welcome.credit_bytes)

    def _write(self, sock: socket.socket, protocol: LaneProtocol) -> None:
        link = self.link
        while not link.stopping.is_set() and self.is_up:
            with link.wake:
                message = link.locked_control()
                chunk = None if message else link.ledger.next_chunk(self.number, link.exchange.now_s())
                memory = link.memory(chunk) if chunk else None
                idle = message is None and chunk is None and not self._pongs
                notified = link.wake.wait(link.exchange.limits.heartbeat_s) if idle and self.is_up else True
            if message is not None:
                send_all(sock, protocol.send_message(message))
            elif chunk is not None and memory is not None:
                header = protocol.send_data_header(chunk.handle, chunk.offset, chunk.length, checksum(memory))
                send_all(sock, header, memory)
                link.exchange.count("bytes_sent", link.peer, chunk.length)
            elif self._pongs:
                self._pongs -= 1
                send_all(sock, protocol.send_signal(FrameType.PONG))
            elif not notified:
                send_all(sock, protocol.send_signal(FrameType.PING))

    def _read(self, sock: socket.socket, protocol: LaneProtocol) -> None:
        try:
            while protocol.state is LaneState.SENDER:
                self._handle(_read_frame(sock, protocol))
        except LaneClosed:
            pass
        except RemoteProtocolError as error:
            self.link.exchange.count("frames_rejected", error.code)
            logger.warning("lane to %s closed: %s", self.link.peer, error)
        except Exception:
            logger.exception("reading acknowledgements of %s failed", self.link.peer)
        finally:
            self.is_up = False
            shut(sock)
            with self.link.wake:
                self.link.wake.notify_all()

    def _handle(self, received: Received) -> None:
        header, message, link = received.header, received.message, self.link
        if self._liveness is not None:
            self._liveness.touch(link.exchange.now_s())
        if header.type is FrameType.ACK:
            link.acked(header.handle, header.offset)
        elif header.type is FrameType.NACK:
            link.nacked(header.handle, header.offset)
        elif isinstance(message, Opened):
            link.opened(message.transfer_id, header.handle)
        elif isinstance(message, Abort):
            link.aborted_by_peer(header.handle, message)
        elif header.type is FrameType.PING:
            with link.wake:
                self._pongs += 1
                link.wake.notify_all()


def _read_frame(sock: socket.socket, protocol: LaneProtocol) -> Received:
    while True:
        buffer = memoryview(bytearray(protocol.wanted_bytes()))
        receive_into(sock, buffer)
        received = protocol.receive(buffer)
        if received is not None:
            return received
