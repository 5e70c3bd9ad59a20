"""One lane's protocol: which frames may come in which state. No sockets, no clock, no memory for KV.

Laws of this file:
- `TRANSITIONS` is the whole law of what may be received; docs/wire.md draws its picture from it.
- The machine never holds KV payload. It says how many bytes it wants next and what for; the shell reads them
  straight into the arena (or into scratch) and reports the checksum.
- On an encrypted lane every frame is sealed, those without payload too: a tag follows each.
- After an error, or in CLOSED, nothing is accepted any more.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from prfaas.core.errors import LocalProtocolError, RemoteProtocolError
from prfaas.core.wire.frames import (
    CONTROL_TYPES,
    HEADER_BYTES,
    MAX_CHUNK_BYTES,
    SEALED,
    FrameType,
    Header,
    checksum,
    data_trailer,
    decode_header,
    encode_header,
    sum_of_header,
)
from prfaas.core.wire.messages import FRAME_TYPES, Message, Welcome, decode_message, encode_message
from prfaas.core.wire.seal import TAG_BYTES, LaneSeals


class LaneState(Enum):
    """Where a lane is. Data flows only from the dialer to the acceptor; answers flow back on the same lane."""

    AWAIT_WELCOME = "await_welcome"
    AWAIT_HELLO = "await_hello"
    SENDER = "sender"
    RECEIVER = "receiver"
    CLOSED = "closed"


T = FrameType
#: state -> received frame -> next state. What is not here is a protocol error.
TRANSITIONS: Final[dict[LaneState, dict[FrameType, LaneState]]] = {
    LaneState.AWAIT_WELCOME: {T.WELCOME: LaneState.SENDER, T.REFUSE: LaneState.CLOSED},
    LaneState.AWAIT_HELLO: {T.HELLO: LaneState.RECEIVER},
    LaneState.SENDER: {
        **dict.fromkeys((T.OPENED, T.ACK, T.NACK, T.ABORT, T.PING, T.PONG), LaneState.SENDER),
        T.REFUSE: LaneState.CLOSED,
    },
    LaneState.RECEIVER: {
        **dict.fromkeys((T.OPEN, T.DATA, T.ABORT, T.PING, T.PONG), LaneState.RECEIVER),
    },
    LaneState.CLOSED: {},
}


@dataclass(frozen=True, slots=True)
class Received:
    """A whole frame: its header and, for control frames, its decoded message. DATA's payload is with the shell."""

    header: Header
    message: Message | None = None


class LaneProtocol:
    """One end of one lane; with `seals` an encrypted one.

    The shell reads `wanted_bytes()` bytes and hands them to `receive()`. When that returns a DATA header, the shell
    reads the payload, segment by segment (`frames.segments`): on a plain lane it sums them, reads the trailer and tells
    both to `data_received()`; on an encrypted lane it hands each with its tag to `open_segment()`. One thread may send
    while another receives.
    """

    def __init__(self, *, dialer: bool, max_chunk_bytes: int = MAX_CHUNK_BYTES, seals: LaneSeals | None = None) -> None:
        self.state = LaneState.AWAIT_WELCOME if dialer else LaneState.AWAIT_HELLO
        self.max_chunk_bytes = max_chunk_bytes
        self._seals = seals
        self._flags = 0 if seals is None else SEALED
        self._next_in = 0
        self._next_out = 0
        #: Header whose payload or tag is due, decoded and as it came.
        self._pending: Header | None = None
        self._pending_bytes = b""
        self._opened_bytes = 0
        self._sent_header = b""

    @property
    def is_sealed(self) -> bool:
        """Encrypted lanes seal the segments of DATA, others sum them."""
        return self._seals is not None

    @property
    def tag_bytes(self) -> int:
        """Bytes behind every control payload and every segment of DATA."""
        return 0 if self._seals is None else TAG_BYTES

    def wanted_bytes(self) -> int:
        """Bytes that `receive` needs next: a header's, or the pending control payload's with its tag."""
        pending = self._pending
        if pending is None:
            return HEADER_BYTES
        if pending.type is FrameType.DATA:
            raise LocalProtocolError("a DATA payload is pending; report it with data_received() or open_segment()")
        return pending.length + self.tag_bytes

    def receive(self, data: bytes | bytearray | memoryview) -> Received | None:
        """Take exactly `wanted_bytes()` bytes. Returns a frame, or None when its payload or tag is wanted next.

        A DATA frame is returned at its header, which on an encrypted lane is not authentic before its first segment
        has opened. Raises RemoteProtocolError if the peer broke the protocol; the lane is then CLOSED and the shell
        must drop the connection.
        """
        try:
            return self._receive_payload(data) if self._pending is not None else self._receive_header(data)
        except RemoteProtocolError:
            self.state = LaneState.CLOSED
            raise

    def _receive_payload(self, data: bytes | bytearray | memoryview) -> Received:
        header, self._pending = self._pending, None
        assert header is not None
        if self._seals is not None:
            plain = bytearray(header.length)
            self._seals.incoming.open_into(self._pending_bytes, data, plain)
            data = plain
        elif checksum(data) != header.payload_crc:
            raise RemoteProtocolError("bad_payload_crc", f"{header.type.name} payload is damaged")
        return self._advance(header, decode_message(header.type, data) if header.type in CONTROL_TYPES else None)

    def _receive_header(self, data: bytes | bytearray | memoryview) -> Received | None:
        header = decode_header(data, self.max_chunk_bytes, self._flags)
        if header.sequence != self._next_in:
            raise RemoteProtocolError("bad_sequence", f"frame {header.sequence} came, {self._next_in} was due")
        self._next_in = (self._next_in + 1) & 0xFFFFFFFF
        if header.type not in TRANSITIONS[self.state]:
            raise RemoteProtocolError("bad_state", f"{header.type.name} is not legal in state {self.state.value}")
        if header.length == 0 and (header.type in CONTROL_TYPES or header.type is FrameType.DATA):
            raise RemoteProtocolError("bad_message", f"{header.type.name} without a payload")
        if header.length == 0 and not self.is_sealed:
            return self._advance(header, None)
        self._pending, self._pending_bytes, self._opened_bytes = header, bytes(data), 0
        return Received(header) if header.type is FrameType.DATA else None

    def _advance(self, header: Header, message: Message | None) -> Received:
        if isinstance(message, Welcome):
            self.max_chunk_bytes = min(self.max_chunk_bytes, message.max_chunk_bytes)
        self.state = TRANSITIONS[self.state][header.type]
        return Received(header, message)

    def data_sum(self) -> int:
        """What the checksum of the pending DATA payload starts from."""
        self._pending_data(sealed=False)
        return sum_of_header(self._pending_bytes)

    def data_received(self, crc: int, trailer: bytes | bytearray | memoryview) -> bool:
        """The shell has read the pending DATA payload, summed it from `data_sum()`, and read its trailer. True if it is
        what the sender sent."""
        self._pending_data(sealed=False)
        self._pending = None
        return data_trailer(crc) == trailer

    def open_segment(self, sealed: memoryview, out: memoryview) -> None:
        """The shell has read the next segment of the pending DATA payload and its tag: write the plaintext into `out`.
        Raises RemoteProtocolError with `bad_tag` if it is not what the sender sealed; `out` then holds rubbish and the
        lane is CLOSED. After the last segment a header is due."""
        header = self._pending_data(sealed=True)
        assert self._seals is not None
        try:
            self._seals.incoming.open_into(self._pending_bytes, sealed, out)
        except RemoteProtocolError:
            self.state = LaneState.CLOSED
            raise
        self._opened_bytes += len(out)
        if self._opened_bytes == header.length:
            self._pending = None

    def _pending_data(self, *, sealed: bool) -> Header:
        header = self._pending
        if header is None or header.type is not FrameType.DATA or sealed is not self.is_sealed:
            raise LocalProtocolError("no such DATA payload is pending")
        return header

    def send_message(self, message: Message, handle: int = 0) -> bytes:
        """Bytes of a control frame."""
        return self._small_frame(FRAME_TYPES[type(message)], handle, 0, encode_message(message))

    def send_signal(self, frame_type: FrameType, handle: int = 0, offset: int = 0) -> bytes:
        """Bytes of a frame without payload (ACK, NACK, PING, PONG)."""
        if frame_type in CONTROL_TYPES or frame_type is FrameType.DATA:
            raise LocalProtocolError(f"{frame_type.name} needs a payload")
        return self._small_frame(frame_type, handle, offset, b"")

    def _small_frame(self, frame_type: FrameType, handle: int, offset: int, payload: bytes) -> bytes:
        crc = checksum(payload) if payload and self._seals is None else 0
        header = self._header(frame_type, handle, offset, len(payload), crc)
        if self._seals is None:
            return header + payload
        sealed = bytearray(len(payload) + TAG_BYTES)
        self._seals.outgoing.seal_into(header, payload, memoryview(sealed))
        return header + sealed

    def send_data_header(self, handle: int, offset: int, length: int) -> bytes:
        """Header of a DATA frame. The shell sends the payload right behind it: on a plain lane the bytes of the arena
        and `data_trailer`, on an encrypted one what `seal_segment` makes of each segment, in order."""
        if self.state is not LaneState.SENDER:
            raise LocalProtocolError(f"DATA in state {self.state.value}")
        if not 0 < length <= self.max_chunk_bytes:
            raise LocalProtocolError(f"chunk of {length} bytes; the peer takes 1 to {self.max_chunk_bytes}")
        self._sent_header = self._header(FrameType.DATA, handle, offset, length, 0)
        return self._sent_header

    def seal_segment(self, segment: memoryview, out: memoryview) -> None:
        """Write the sealed form of the next segment of the DATA frame begun last into `out`, TAG_BYTES longer."""
        if self._seals is None:
            raise LocalProtocolError("sealed DATA on a lane without encryption")
        self._seals.outgoing.seal_into(self._sent_header, segment, out)

    def _header(self, frame_type: FrameType, handle: int, offset: int, length: int, payload_crc: int) -> bytes:
        if self.state is LaneState.CLOSED:
            raise LocalProtocolError(f"{frame_type.name} on a closed lane")
        sequence, self._next_out = self._next_out, (self._next_out + 1) & 0xFFFFFFFF
        return encode_header(Header(frame_type, handle, offset, length, payload_crc, sequence), self._flags)
