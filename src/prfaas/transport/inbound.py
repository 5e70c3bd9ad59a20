"""The accepting side: a listener, and one thread per lane that reads frames and chunks straight into the arena."""

from __future__ import annotations

import contextlib
import logging
import queue
import socket
import threading
import time
from collections.abc import Callable

from prfaas.core.errors import Refused, RemoteProtocolError
from prfaas.core.transfer.extents import Extent
from prfaas.core.transfer.landings import ChunkVerdict, Landing, Occupied
from prfaas.core.wire.frames import TRAILER_BYTES, FrameType, Header, checksum, segments
from prfaas.core.wire.lane import LaneProtocol, LaneState, Received
from prfaas.core.wire.messages import Abort, Hello, Message, Open, Opened, Refuse, Welcome
from prfaas.transport.data_plane import DataPlane
from prfaas.transport.liveness import Liveness
from prfaas.transport.secure import SecurePeer, shake_hands
from prfaas.transport.sockets import LaneClosed, Scratch, receive_into, send_all, shut, tune

logger = logging.getLogger("prfaas.lanes")


def check_hello(plane: DataPlane, hello: Hello) -> Refuse | None:
    """Why this peer must not send to us, or None. An empty fingerprint is checked later, at Open."""
    me = plane.identity
    if hello.target != me.name:
        return Refuse("wrong_node", f"you want node {hello.target!r}, this is {me.name!r}; check the endpoints")
    ours, theirs = (me.hash_algorithm, me.hash_seed), (hello.hash_algorithm, hello.hash_seed)
    if ours != theirs:
        return Refuse("hash_mismatch", "block hash algorithm or seed differ; set transfer.hash alike on both sides")
    if hello.fingerprint and plane.fingerprint and hello.fingerprint != plane.fingerprint:
        return Refuse("layout_mismatch", "the two engines' KV layouts differ; compare model, dtype and block size")
    return None


class InboundLane:
    """One accepted connection. Its thread is the only one that reads from the socket; what is written goes through
    `_send`. `close_lane` shuts another inbound lane down, by number."""

    def __init__(self, plane: DataPlane, sock: socket.socket, close_lane: Callable[[int], None]) -> None:
        self.plane = plane
        self.sock = sock
        self._close_lane = close_lane
        self.number = plane.new_lane_number()
        self.sender: str | None = None
        self.node = "?"
        now_s = plane.now_s()
        self.liveness = Liveness(sock, now_s, now_s + plane.limits.handshake_s)
        self._protocol = LaneProtocol(dialer=False, max_chunk_bytes=plane.limits.chunk_bytes)
        self._peer: SecurePeer | None = None
        self._control = memoryview(bytearray(64 * 1024))
        self._sealed, self._unwanted = Scratch(), Scratch()
        self._sending = threading.Lock()

    def run(self) -> None:
        """Serve the lane until it ends; never raises."""
        try:
            tune(self.sock, self.plane.limits.lane_dead_after_s)
            self._secure()
            while self._protocol.state is not LaneState.CLOSED:
                self._serve_frame()
        except RemoteProtocolError as error:
            self.plane.count("frames_rejected", error.code)
            # Strangers knock all the time: counted for everyone, told only for peers that had said who they are.
            level = logging.WARNING if self.liveness.greeted else logging.DEBUG
            logger.log(level, "lane from %s closed: %s", self.node, error)
        except LaneClosed as error:
            logger.debug("lane from %s ended: %s", self.node, error)
        except Exception:
            logger.exception("lane from %s failed", self.node)
        finally:
            self.sock.close()
            with self.plane.lock:
                self.plane.ledgers.landings.lane_lost(self.number)
                self.plane.place_freed.notify_all()

    def check(self, now_s: float) -> str | None:
        """Monitor's tick: shut the lane down if it is dead or its peer's certificate has ended; returns why."""
        if self._peer is not None and time.time() > self._peer.not_after_s:
            shut(self.sock)
            return "the certificate of the peer has expired"
        return self.liveness.check(now_s, self.plane.limits.lane_dead_after_s)

    def _secure(self) -> None:
        security = self.plane.security
        if security is None:
            return
        self._peer = shake_hands(self.sock, security.credentials, dialer=False)
        limit = self.plane.limits.chunk_bytes
        self._protocol = LaneProtocol(dialer=False, max_chunk_bytes=limit, seals=self._peer.seals)

    def _serve_frame(self) -> None:
        buffer = self._control[: self._protocol.wanted_bytes()]
        receive_into(self.sock, buffer)
        received = self._protocol.receive(buffer)
        if received is None:
            return
        self.liveness.touch(self.plane.now_s())
        if received.header.type is FrameType.DATA:
            self._take_chunk(received.header)
        else:
            self._take_control(received)

    def _take_control(self, received: Received) -> None:
        message = received.message
        if isinstance(message, Hello):
            self._greet(message)
        elif isinstance(message, Open):
            self._open(message)
        elif isinstance(message, Abort):
            with self.plane.lock:
                landing = self.plane.ledgers.landings.find(message.transfer_id)
                if landing is not None and landing.token == message.token:
                    self.plane.ledgers.landings.drop(message.transfer_id, f"sender gave up: {message.message}")
            self.plane.on_change(message.transfer_id)
        elif received.header.type is FrameType.PING:
            self._signal(FrameType.PONG)

    def _greet(self, hello: Hello) -> None:
        plane = self.plane
        self.node = hello.node
        refusal = self._check_identity(hello) or check_hello(plane, hello)
        if refusal is not None:
            plane.count("frames_rejected", refusal.code)
            logger.warning("refused a lane from %s: %s", hello.node, refusal.message)
            self.say(refusal)
            raise LaneClosed(refusal.message)
        self.sender = f"{hello.node}/{hello.boot_id}"
        self.liveness.greeted = True
        limits, me = plane.limits, plane.identity
        self.say(Welcome(me.name, me.boot_id, limits.chunk_bytes, limits.credit_bytes))

    def _check_identity(self, hello: Hello) -> Refuse | None:
        security = self.plane.security
        if security is None or self._peer is None:
            return None
        problem = security.problem_with(hello.node, self._peer)
        return None if problem is None else Refuse("wrong_identity", problem)

    def _open(self, message: Open) -> None:
        assert self.sender is not None
        try:
            with self.plane.lock:
                landing = self.plane.ledgers.landings.open(
                    self.sender, message.transfer_id, message.token, message.num_bytes, message.fingerprint
                )
        except Refused as error:
            self.say(Abort(message.transfer_id, "", error.code, error.message))
            return
        self.say(Opened(message.transfer_id), landing.handle)
        self.plane.on_change(message.transfer_id)

    def _take_chunk(self, header: Header) -> None:
        plane, sender = self.plane, self.sender
        assert sender is not None
        extent = self._place(sender, header)
        target = None if extent is None else plane.memory(extent)
        good = self._receive_payload(header.length, target)
        with plane.lock:
            verdict = plane.ledgers.landings.end_chunk(
                sender, self.number, header.handle, header.offset, header.length, good=good, now_s=plane.now_s()
            )
            plane.place_freed.notify_all()
            plane.counters["bytes_received", self.node] += header.length
            plane.counters["checksum_failures", ""] += not good
        self._answer(header, verdict)

    def _place(self, sender: str, header: Header) -> Extent | None:
        """Where the chunk goes. While another lane is writing there the payload stays in the socket: a thread whose
        socket is shut leaves as soon as it gets a core. Raises LaneClosed if it never does."""
        plane = self.plane
        give_up_s = plane.now_s() + plane.limits.lane_dead_after_s
        with plane.lock:
            while isinstance(place := self._begin(sender, header), Occupied):
                for rival in place.lanes:
                    self._close_lane(rival)
                left_s = give_up_s - plane.now_s()
                if left_s <= 0:
                    raise LaneClosed("another lane was writing where a chunk belongs, and has not ended")
                plane.place_freed.wait(left_s)
            return place

    def _begin(self, sender: str, header: Header) -> Extent | Occupied | None:
        landings = self.plane.ledgers.landings
        return landings.begin_chunk(sender, self.number, header.handle, header.offset, header.length)

    def _answer(self, header: Header, verdict: ChunkVerdict) -> None:
        if verdict is ChunkVerdict.UNKNOWN:
            self.say(Abort("", "", "unknown_landing", "the landing is gone"), header.handle)
        elif verdict in (ChunkVerdict.DAMAGED, ChunkVerdict.MISPLACED):
            self._signal(FrameType.NACK, header.handle, header.offset)
        else:
            self._signal(FrameType.ACK, header.handle, header.offset)
        if verdict is ChunkVerdict.LANDED:
            self.plane.landed(header.handle)

    def _receive_payload(self, length: int, target: memoryview | None) -> bool:
        """Read a DATA payload into `target`, or to nowhere; True if it is good. Summed or opened segment by segment,
        while it is in the cache."""
        protocol = self._protocol
        crc = 0 if protocol.is_sealed else protocol.data_sum()
        for start, end in segments(length):
            piece = self._unwanted.of(end - start) if target is None else target[start:end]
            if protocol.is_sealed:
                # Not in place: the tag behind the segment would lie on the next one's bytes.
                sealed = self._sealed.of(end - start + protocol.tag_bytes)
                receive_into(self.sock, sealed)
                protocol.open_segment(sealed, piece)
            else:
                receive_into(self.sock, piece)
                crc = checksum(piece, crc)
        if protocol.is_sealed:
            return True
        trailer = self._control[:TRAILER_BYTES]
        receive_into(self.sock, trailer)
        return protocol.data_received(crc, trailer)

    def say(self, message: Message, handle: int = 0) -> None:
        """May be called from any thread. Raises LaneClosed."""
        with self._sending:
            send_all(self.sock, self._protocol.send_message(message, handle))

    def _signal(self, frame_type: FrameType, handle: int = 0, offset: int = 0) -> None:
        with self._sending:
            send_all(self.sock, self._protocol.send_signal(frame_type, handle, offset))


class InboundServer:
    """Listens for lanes of other nodes."""

    def __init__(self, plane: DataPlane, listener: socket.socket) -> None:
        self._plane = plane
        self._listener = listener
        self._lanes: dict[int, InboundLane] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._senders_seen_s: dict[str, float] = {}
        self._thread = threading.Thread(target=self._accept, name="prfaas-accept", daemon=True)
        #: Landings that are over, whose senders do not know; None: stop.
        self._over: queue.SimpleQueue[Landing | None] = queue.SimpleQueue()
        self._teller = threading.Thread(target=self._tell, name="prfaas-aborts", daemon=True)

    @property
    def address(self) -> tuple[str, int]:
        host, port = self._listener.getsockname()[:2]
        return host, port

    def start(self) -> None:
        """Accept from now on."""
        self._thread.start()
        self._teller.start()

    def stop(self) -> None:
        self._stopped.set()
        self._over.put(None)
        shut(self._listener)
        self._listener.close()
        for lane in self._snapshot():
            shut(lane.sock)

    def lanes_from(self) -> dict[str, int]:
        """Greeted lanes per sending node."""
        counts: dict[str, int] = {}
        for lane in self._snapshot():
            if lane.liveness.greeted:
                counts[lane.node] = counts.get(lane.node, 0) + 1
        return counts

    def is_over(self, landing: Landing) -> None:
        """Nobody wants the rest of it: its sender is told at once, and not with the next chunk that arrives, which may
        be behind many others. Never waits."""
        if landing.sender is not None and self._teller.ident is not None:
            self._over.put(landing)

    def _tell(self) -> None:
        while (landing := self._over.get()) is not None:
            gone = Abort(landing.transfer_id, "", "unknown_landing", "the landing was given up")
            for lane in self._snapshot():
                if lane.sender == landing.sender:
                    # One that ends meanwhile tells nothing; the next may.
                    with contextlib.suppress(LaneClosed):
                        lane.say(gone, landing.handle)
                        break

    def close_lane(self, number: int) -> None:
        """Shut one lane down; its thread cleans up. May be called with the ledgers' lock held."""
        with self._lock:
            lane = self._lanes.get(number)
        if lane is not None:
            shut(lane.sock)

    def check(self, now_s: float) -> list[str]:
        """Monitor's tick: close dead lanes; returns transfer ids of senders that have been gone for too long."""
        limits = self._plane.limits
        for lane in self._snapshot():
            reason = lane.check(now_s)
            if reason is not None:
                logger.warning("lane from %s is dead: %s", lane.node, reason)
            elif lane.sender is not None:
                self._senders_seen_s[lane.sender] = now_s
        with self._plane.lock:
            waiting = self._plane.ledgers.landings.receiving_senders()
            self._senders_seen_s = {
                s: seen for s, seen in self._senders_seen_s.items() if s in waiting or seen == now_s
            }
            strangers = [lane for lane in self._snapshot() if self._is_stranger(lane) and lane.sender not in waiting]
            lost = [s for s in waiting if now_s - self._senders_seen_s.setdefault(s, now_s) > limits.peer_lost_after_s]
            stranded = [
                x for s in lost for x in self._plane.ledgers.landings.sender_gone(s, "link to the sender is lost")
            ]
        for lane in strangers:
            logger.info("lane from %s closed: that node is no peer any more", lane.node)
            shut(lane.sock)
        return [landing.transfer_id for landing in stranded]

    def _is_stranger(self, lane: InboundLane) -> bool:
        """It was let in, and would not be now."""
        security = self._plane.security
        return security is not None and lane.liveness.greeted and not security.knows(lane.node)

    def _snapshot(self) -> list[InboundLane]:
        with self._lock:
            return list(self._lanes.values())

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError as error:
                if self._stopped.is_set():
                    return
                # Out of descriptors, or a connection that died in the queue: neither may end the listener.
                logger.warning("accepting a lane failed: %s", error)
                self._stopped.wait(0.1)
                continue
            if len(self._lanes) >= self._plane.limits.max_inbound:
                self._plane.count("frames_rejected", "too_many_connections")
                sock.close()
                continue
            lane = InboundLane(self._plane, sock, self.close_lane)
            with self._lock:
                self._lanes[lane.number] = lane
            threading.Thread(target=self._run, args=(lane,), name=f"prfaas-in-{lane.number}", daemon=True).start()

    def _run(self, lane: InboundLane) -> None:
        try:
            lane.run()
        finally:
            with self._lock, contextlib.suppress(KeyError):
                del self._lanes[lane.number]
