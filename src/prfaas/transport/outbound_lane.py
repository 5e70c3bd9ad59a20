"""One connection to a peer: its dialling, handshake, writer and reader threads, its renewal."""

from __future__ import annotations

import logging
import socket
import threading
import time

from prfaas.core.errors import RemoteProtocolError
from prfaas.core.link.estimate import LaneSample
from prfaas.core.link.pacing import MIN_RTT_S
from prfaas.core.transfer.outbound import Chunk
from prfaas.core.wire.frames import FrameType, checksum, data_trailer, segments, sum_of_header
from prfaas.core.wire.lane import LaneProtocol, LaneState, Received
from prfaas.core.wire.messages import Hello, Refuse, Welcome
from prfaas.transport.data_plane import DataPlane
from prfaas.transport.duties import ChunkWork, Errand, LaneDesk, LaneDuties
from prfaas.transport.liveness import Liveness
from prfaas.transport.secure import SecurePeer, shake_hands
from prfaas.transport.sockets import (
    LaneClosed,
    Scratch,
    limit_unsent,
    pace,
    receive_into,
    send_all,
    shut,
    tune,
    use_congestion_control,
)
from prfaas.transport.tcp_info import lane_sample, tcp_info

logger = logging.getLogger("prfaas.lanes")


class OutboundLane:
    """One connection to the peer, redialled when it is lost. `run` is its writer thread and never raises."""

    def __init__(self, plane: DataPlane, duties: LaneDuties, place: int) -> None:
        self.plane = plane
        self.duties = duties
        self.desk = LaneDesk(plane.new_lane_number(), place)
        #: Unique within the node's life, new for every connection.
        self.connection = self.desk.number
        #: What TCP uses on this connection.
        self.congestion = ""
        #: Of the certificate that this connection was made with.
        self.credentials_version = 0
        self._sock: socket.socket | None = None
        self._liveness: Liveness | None = None
        self._peer: SecurePeer | None = None
        self._segment = Scratch()

    @property
    def is_up(self) -> bool:
        return self.desk.is_up

    @property
    def live_socket(self) -> socket.socket | None:
        """Of the connection while it is up. Its threads may close it at any moment."""
        return self._sock if self.desk.is_up else None

    def run(self) -> None:
        """Dial, serve, redial, until the link stops."""
        limits, duties = self.plane.limits, self.duties
        pause_s = limits.redial_first_s
        while not duties.stopping.is_set():
            try:
                sock = duties.dial()
            except OSError as error:
                duties.refused(f"connecting failed: {error.strerror or error}")
            else:
                if self._serve(sock):
                    pause_s = limits.redial_first_s
            duties.stopping.wait(pause_s)
            pause_s = min(pause_s * 2, limits.redial_max_s)

    def check(self, now_s: float) -> None:
        """Shut the connection down if it is dead."""
        liveness, peer = self._liveness, self._peer
        if peer is not None and time.time() > peer.not_after_s:
            logger.warning("the certificate of %s has expired; its lanes are closed", self.duties.peer)
            self.shut()
        elif liveness is not None:
            reason = liveness.check(now_s, self.plane.limits.lane_dead_after_s)
            if reason is not None:
                logger.warning("lane to %s is dead: %s", self.duties.peer, reason)

    def retire(self) -> None:
        """Take no more chunks, wait for what is under way, then dial anew."""
        self.desk.is_retiring = True
        self.duties.wake()

    def use_congestion_control(self, name: str) -> None:
        """Change it on the connection that is up."""
        sock = self._sock
        if sock is not None:
            self.congestion = use_congestion_control(sock, name)

    def sample(self) -> LaneSample | None:
        """What the kernel tells of the connection; None if it is not up, or not TCP."""
        sock = self.live_socket
        return None if sock is None else lane_sample(sock, self.congestion)

    def pace(self, bytes_per_s: float | None) -> None:
        """The connection that is up sends no faster; None lifts the limit."""
        sock = self._sock
        if sock is not None:
            pace(sock, bytes_per_s)

    def shut(self) -> None:
        """End the connection from another thread."""
        sock = self._sock
        if sock is not None:
            shut(sock)

    def _serve(self, sock: socket.socket) -> bool:
        plane, duties = self.plane, self.duties
        now_s = plane.now_s()
        self._sock, self._liveness = sock, Liveness(sock, now_s, now_s + plane.limits.handshake_s)
        reader: threading.Thread | None = None
        greeted = self.desk.is_retiring = False
        self.desk.pongs_due = 0
        self.desk.is_pinged = False
        try:
            self._tune(sock)
            protocol = self._secure(sock)
            self._greet(sock, protocol)
            reader = threading.Thread(target=self._read, args=(sock, protocol), name="prfaas-acks", daemon=True)
            self.connection = plane.new_lane_number()
            greeted = self.desk.is_up = True
            reader.start()
            self._write(sock, protocol)
        except (LaneClosed, RemoteProtocolError) as error:
            self._ended(error, greeted=greeted)
        except Exception:
            logger.exception("lane to %s failed", duties.peer)
        finally:
            self.desk.is_up = False
            shut(sock)
            if reader is not None and reader.ident is not None:
                reader.join()
            self._sock = self._liveness = self._peer = None
            sock.close()
            duties.lost(self.desk)
        return greeted

    def _tune(self, sock: socket.socket) -> None:
        limits = self.plane.limits
        tune(sock, limits.lane_dead_after_s)
        info = tcp_info(sock)
        is_short = info is not None and info.rtt < MIN_RTT_S * 1e6
        # Where processors are the limit, waking up for every half a MiB costs more than overtaking gains.
        limit_unsent(sock, 0 if is_short else limits.unsent_bytes)
        wanted = self.duties.congestion_for(self.desk.place, is_short=is_short)
        self.congestion = use_congestion_control(sock, wanted)

    def _ended(self, error: Exception, *, greeted: bool) -> None:
        if isinstance(error, RemoteProtocolError) and not greeted:
            if self.duties.refused(f"{error.code}: {error}"):  # once, not at every attempt
                logger.error("no lane to %s: %s", self.duties.peer, error)
        else:
            self.duties.ended(str(error))
            logger.debug("lane to %s ended: %s", self.duties.peer, error)

    def _secure(self, sock: socket.socket) -> LaneProtocol:
        limit, security = self.plane.limits.chunk_bytes, self.plane.security
        if security is None:
            return LaneProtocol(dialer=True, max_chunk_bytes=limit)
        self.credentials_version = security.credentials.version
        peer = shake_hands(sock, security.credentials, dialer=True)
        problem = security.problem_with(self.duties.peer, peer)
        if problem is not None:
            raise RemoteProtocolError("wrong_identity", problem)
        self._peer = peer
        return LaneProtocol(dialer=True, max_chunk_bytes=limit, seals=peer.seals)

    def _greet(self, sock: socket.socket, protocol: LaneProtocol) -> None:
        plane, me = self.plane, self.plane.identity
        hello = Hello(
            me.name,
            me.boot_id,
            self.duties.peer,
            self.desk.number % 1024,
            me.hash_algorithm,
            me.hash_seed,
            plane.fingerprint,
        )
        send_all(sock, protocol.send_message(hello))
        received = _read_frame(sock, protocol)
        if isinstance(received.message, Refuse):
            reason = f"{received.message.code}: {received.message.message}"
            self.duties.refused(reason)
            logger.error("node %s refuses us: %s", self.duties.peer, received.message.message)
            raise LaneClosed(reason)
        welcome = received.message
        assert isinstance(welcome, Welcome) and self._liveness is not None
        self._liveness.greeted = True
        self.duties.greeted(welcome)

    def _write(self, sock: socket.socket, protocol: LaneProtocol) -> None:
        plane, heartbeat_s = self.plane, self.plane.limits.heartbeat_s
        ping_at_s = plane.now_s() + heartbeat_s
        sent: Chunk | None = None
        while (work := self.duties.next_work(self.desk, sent, ping_at_s)) is not Errand.LEAVE:
            sent = None
            if isinstance(work, ChunkWork):
                self._send_chunk(sock, protocol, work.chunk, work.memory)
                sent = work.chunk
            elif isinstance(work, Errand):
                self.desk.is_pinged = self.desk.is_pinged or work is Errand.PING
                send_all(sock, protocol.send_signal(FrameType.PING if work is Errand.PING else FrameType.PONG))
            else:
                send_all(sock, protocol.send_message(work))
            ping_at_s = plane.now_s() + heartbeat_s

    def _send_chunk(self, sock: socket.socket, protocol: LaneProtocol, chunk: Chunk, memory: memoryview) -> None:
        ahead = protocol.send_data_header(chunk.handle, chunk.offset, chunk.length)
        crc = sum_of_header(ahead)
        for start, end in segments(chunk.length):
            piece = memory[start:end]
            if protocol.is_sealed:
                sealed = self._segment.of(end - start + protocol.tag_bytes)
                protocol.seal_segment(piece, sealed)
                send_all(sock, ahead, sealed)
            else:
                # The kernel copies what is in the cache faster than what is in the arena (docs/adr/0010).
                warm = self._segment.of(end - start)
                warm[:] = piece
                crc = checksum(warm, crc)
                send_all(sock, ahead, warm, data_trailer(crc) if end == chunk.length else b"")
            ahead = b""

    def _read(self, sock: socket.socket, protocol: LaneProtocol) -> None:
        try:
            while protocol.state is LaneState.SENDER:
                self._handle(_read_frame(sock, protocol))
        except LaneClosed:
            pass
        except RemoteProtocolError as error:
            self.plane.count("frames_rejected", error.code)
            logger.warning("lane to %s closed: %s", self.duties.peer, error)
        except Exception:
            logger.exception("reading acknowledgements of %s failed", self.duties.peer)
        finally:
            self.desk.is_up = False
            shut(sock)
            self.duties.wake()

    def _handle(self, received: Received) -> None:
        if self._liveness is not None:
            self._liveness.touch(self.plane.now_s())
        if self.desk.is_pinged:
            self.desk.is_pinged = False
            self.duties.wake()
        if received.header.type is FrameType.PING:
            self.desk.pongs_due += 1
            self.duties.wake()
        else:
            self.duties.answered(received)


def _read_frame(sock: socket.socket, protocol: LaneProtocol) -> Received:
    while True:
        buffer = memoryview(bytearray(protocol.wanted_bytes()))
        receive_into(sock, buffer)
        received = protocol.receive(buffer)
        if received is not None:
            return received
