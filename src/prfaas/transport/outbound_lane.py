"""One connection to a peer: its dialling, handshake, writer and reader threads, its renewal."""

from __future__ import annotations

import logging
import socket
import threading
import time
from typing import TYPE_CHECKING

from prfaas.core.errors import RemoteProtocolError
from prfaas.core.link.pacing import MIN_RTT_S
from prfaas.core.transfer.outbound import Chunk
from prfaas.core.wire.frames import FrameType, checksum, data_trailer, segments, sum_of_header
from prfaas.core.wire.lane import LaneProtocol, LaneState, Received
from prfaas.core.wire.messages import Abort, Hello, Opened, Refuse, Welcome
from prfaas.transport.liveness import Liveness
from prfaas.transport.secure import SecurePeer, shake_hands
from prfaas.transport.sockets import (
    LaneClosed,
    Scratch,
    limit_unsent,
    receive_into,
    send_all,
    shut,
    tune,
    use_congestion_control,
)
from prfaas.transport.tcp_info import tcp_info

if TYPE_CHECKING:
    from prfaas.transport.outbound import PeerLink

logger = logging.getLogger("prfaas.lanes")


class OutboundLane:
    """One connection to the peer, redialled when it is lost. `run` is its writer thread and never raises."""

    def __init__(self, link: PeerLink, index: int) -> None:
        self.link = link
        self.index = index
        self.number = link.plane.new_lane_number()
        self.is_up = False
        #: Unique within the node's life, new for every connection.
        self.connection = self.number
        #: What TCP uses on this connection.
        self.congestion = ""
        #: Of the certificate that this connection was made with.
        self.credentials_version = 0
        self._sock: socket.socket | None = None
        self._liveness: Liveness | None = None
        self._peer: SecurePeer | None = None
        self._sealed = Scratch()
        self._pongs = 0
        self._retiring = False

    def run(self) -> None:
        """Dial, serve, redial, until the link stops."""
        limits = self.link.plane.limits
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
        liveness, peer = self._liveness, self._peer
        if peer is not None and time.time() > peer.not_after_s:
            logger.warning("the certificate of %s has expired; its lanes are closed", self.link.peer)
            self.shut()
        elif liveness is not None:
            reason = liveness.check(now_s, self.link.plane.limits.lane_dead_after_s)
            if reason is not None:
                logger.warning("lane to %s is dead: %s", self.link.peer, reason)

    def retire(self) -> None:
        """Take no more chunks, wait for what is under way, then dial anew."""
        with self.link.wake:
            self._retiring = True
            self.link.wake.notify_all()

    def use_congestion_control(self, name: str) -> None:
        """Change it on the connection that is up."""
        sock = self._sock
        if sock is not None:
            self.congestion = use_congestion_control(sock, name)

    def shut(self) -> None:
        """End the connection from another thread."""
        sock = self._sock
        if sock is not None:
            shut(sock)

    def _serve(self, sock: socket.socket) -> bool:
        plane = self.link.plane
        limits = plane.limits
        now_s = plane.now_s()
        self._sock, self._liveness = sock, Liveness(sock, now_s, now_s + limits.handshake_s)
        reader: threading.Thread | None = None
        greeted = self._retiring = False
        try:
            tune(sock, limits.lane_dead_after_s)
            info = tcp_info(sock)
            is_short = info is not None and info.rtt < MIN_RTT_S * 1e6
            # Where processors are the limit, waking up for every half a MiB costs more than overtaking gains.
            limit_unsent(sock, 0 if is_short else limits.unsent_bytes)
            self.congestion = use_congestion_control(sock, self.link.congestion_for(self.index, is_short=is_short))
            protocol = self._secure(sock)
            self._greet(sock, protocol)
            reader = threading.Thread(target=self._read, args=(sock, protocol), name="prfaas-acks", daemon=True)
            self.connection = plane.new_lane_number()
            greeted = self.is_up = True
            self.link.refusal = None
            reader.start()
            self._write(sock, protocol)
        except (LaneClosed, RemoteProtocolError) as error:
            self._ended(error, greeted=greeted)
        except Exception:
            logger.exception("lane to %s failed", self.link.peer)
        finally:
            self.is_up = False
            shut(sock)
            if reader is not None and reader.ident is not None:
                reader.join()
            self._sock = self._liveness = self._peer = None
            sock.close()
            self.link.lane_lost(self.number)
        return greeted

    def _ended(self, error: Exception, *, greeted: bool) -> None:
        told = self.link.refusal
        if isinstance(error, RemoteProtocolError) and not greeted:
            self.link.refusal = f"{error.code}: {error}"
            if told != self.link.refusal:  # once, not at every attempt
                logger.error("no lane to %s: %s", self.link.peer, error)
        else:
            self.link.refusal = told or str(error)
            logger.debug("lane to %s ended: %s", self.link.peer, error)

    def _secure(self, sock: socket.socket) -> LaneProtocol:
        limit, security = self.link.plane.limits.chunk_bytes, self.link.plane.security
        if security is None:
            return LaneProtocol(dialer=True, max_chunk_bytes=limit)
        self.credentials_version = security.credentials.version
        peer = shake_hands(sock, security.credentials, dialer=True)
        problem = security.problem_with(self.link.peer, peer)
        if problem is not None:
            raise RemoteProtocolError("wrong_identity", problem)
        self._peer = peer
        return LaneProtocol(dialer=True, max_chunk_bytes=limit, seals=peer.seals)

    def _greet(self, sock: socket.socket, protocol: LaneProtocol) -> None:
        plane, me = self.link.plane, self.link.plane.identity
        hello = Hello(
            me.name,
            me.boot_id,
            self.link.peer,
            self.number % 1024,
            me.hash_algorithm,
            me.hash_seed,
            plane.fingerprint,
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
            self.link.max_chunk_bytes = min(plane.limits.chunk_bytes, welcome.max_chunk_bytes)
            ledger.chunk_bytes = min(ledger.chunk_bytes, self.link.max_chunk_bytes)
            ledger.credit_bytes = min(plane.limits.credit_bytes, welcome.credit_bytes)

    def _write(self, sock: socket.socket, protocol: LaneProtocol) -> None:
        link, plane = self.link, self.link.plane
        ping_at_s = plane.now_s() + plane.limits.heartbeat_s
        sent: Chunk | None = None
        while not link.stopping.is_set() and self.is_up:
            with link.wake:
                # In one go with taking the next chunk: a lane whose memory is warm keeps its turn.
                if sent is not None:
                    self._locked_chunk_sent(sent)
                sent = None
                if self._retiring and not link.ledger.is_carrying(self.number):
                    return
                message = link.locked_control()
                chunk = None if message or self._retiring else self._locked_next_chunk()
                memory = link.memory(chunk) if chunk else None
                idle = message is None and chunk is None and not self._pongs
                # Waking up is no sign of life: other lanes' acknowledgements wake this one too.
                if idle and (left_s := ping_at_s - plane.now_s()) > 0:
                    link.wake.wait(left_s)
                    continue
            if message is not None:
                send_all(sock, protocol.send_message(message))
            elif chunk is not None and memory is not None:
                self._send_chunk(sock, protocol, chunk, memory)
                sent = chunk
            elif self._pongs:
                self._pongs -= 1
                send_all(sock, protocol.send_signal(FrameType.PONG))
            else:
                send_all(sock, protocol.send_signal(FrameType.PING))
            ping_at_s = plane.now_s() + plane.limits.heartbeat_s

    def _locked_next_chunk(self) -> Chunk | None:
        link, now_s = self.link, self.link.plane.now_s()
        before = (lane.number for lane in link.lanes[: self.index] if lane.is_up)
        chunk = link.ledger.next_chunk(self.number, now_s) if link.turns.may_begin(now_s, before) else None
        if chunk is not None:
            link.turns.begun(self.number, (chunk.handle, chunk.offset), chunk.length, now_s)
        return chunk

    def _locked_chunk_sent(self, chunk: Chunk) -> None:
        link = self.link
        link.turns.handed_over(self.number)
        link.plane.counters["bytes_sent", link.peer] += chunk.length

    def _send_chunk(self, sock: socket.socket, protocol: LaneProtocol, chunk: Chunk, memory: memoryview) -> None:
        ahead = protocol.send_data_header(chunk.handle, chunk.offset, chunk.length)
        crc = sum_of_header(ahead)
        for start, end in segments(chunk.length):
            piece = memory[start:end]
            if protocol.is_sealed:
                sealed = self._sealed.of(end - start + protocol.tag_bytes)
                protocol.seal_segment(piece, sealed)
                send_all(sock, ahead, sealed)
            else:
                crc = checksum(piece, crc)
                send_all(sock, ahead, piece, data_trailer(crc) if end == chunk.length else b"")
            ahead = b""

    def _read(self, sock: socket.socket, protocol: LaneProtocol) -> None:
        try:
            while protocol.state is LaneState.SENDER:
                self._handle(_read_frame(sock, protocol))
        except LaneClosed:
            pass
        except RemoteProtocolError as error:
            self.link.plane.count("frames_rejected", error.code)
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
            self._liveness.touch(link.plane.now_s())
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
