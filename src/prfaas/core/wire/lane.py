"""One lane's protocol: which frames may come in which state. No sockets, no clock, no memory for KV.

Laws of this file:
- `TRANSITIONS` is the whole law of what may be received; docs/wire.md draws its picture from it.
- The machine never holds KV payload. It says how many bytes it wants next and what for; the shell reads them
  straight into the arena (or into scratch) and reports the checksum.
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
    FrameType,
    Header,
    checksum,
    decode_header,
    encode_header,
)
from prfaas.core.wire.messages import FRAME_TYPES, Message, Welcome, decode_message, encode_message


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
    """One end of one lane.

    The shell reads `wanted_bytes()` bytes and hands them to `receive()`. When that returns a DATA header, the shell
    reads `header.length` payload bytes wherever it likes and reports their checksum to `data_received()`.
    """

    def __init__(self, *, dialer: bool, max_chunk_bytes: int = MAX_CHUNK_BYTES) -> None:
        self.state = LaneState.AWAIT_WELCOME if dialer else LaneState.AWAIT_HELLO
        self.max_chunk_bytes = max_chunk_bytes
        self._next_in = 0
        self._next_out = 0
        self._pending: Header | None = None

    def wanted_bytes(self) -> int:
        """Bytes that `receive` needs next: a header's, or the pending control payload's."""
        pending = self._pending
        if pending is None:
            return HEADER_BYTES
        if pending.type is FrameType.DATA:
            raise LocalProtocolError("a DATA payload is pending; report it with data_received()")
        return pending.length

    def receive(self, data: bytes | bytearray | memoryview) -> Received | None:
        """Take exactly `wanted_bytes()` bytes. Returns a frame, or None when its payload is wanted next.

        A DATA frame is returned at its header. Raises RemoteProtocolError if the peer broke the protocol; the lane
        is then CLOSED and the shell must drop the connection.
        """
        try:
            return self._receive(data)
        except RemoteProtocolError:
            self.state = LaneState.CLOSED
            raise

    def _receive(self, data: bytes | bytearray | memoryview) -> Received | None:
        if self._pending is not None:
            header, self._pending = self._pending, None
            if checksum(data) != header.payload_crc:
                raise RemoteProtocolError("bad_payload_crc", f"{header.type.name} payload is damaged")
            return self._advance(header, decode_message(header.type, data))
        header = decode_header(data, self.max_chunk_bytes)
        if header.sequence != self._next_in:
            raise RemoteProtocolError("bad_sequence", f"frame {header.sequence} came, {self._next_in} was due")
        self._next_in = (self._next_in + 1) & 0xFFFFFFFF
        if header.type not in TRANSITIONS[self.state]:
            raise RemoteProtocolError("bad_state", f"{header.type.name} is not legal in state {self.state.value}")
        if header.type in CONTROL_TYPES:
            if header.length == 0:
                raise RemoteProtocolError("bad_message", f"{header.type.name} without a payload")
            self._pending = header
            return None
        if header.type is FrameType.DATA:
            if header.length == 0:
                raise RemoteProtocolError("bad_message", "DATA without a payload")
            self._pending = header
            return Received(header)
        return self._advance(header, None)

    def _advance(self, header: Header, message: Message | None) -> Received:
        if isinstance(message, Welcome):
            self.max_chunk_bytes = min(self.max_chunk_bytes, message.max_chunk_bytes)
        self.state = TRANSITIONS[self.state][header.type]
        return Received(header, message)

    def data_received(self, payload_crc: int) -> bool:
        """The shell has read the pending DATA payload. True if it is what the sender sent."""
        header = self._pending
        if header is None or header.type is not FrameType.DATA:
            raise LocalProtocolError("no DATA payload is pending")
        self._pending = None
        return payload_crc == header.payload_crc

    def send_message(self, message: Message, handle: int = 0) -> bytes:
        """Bytes of a control frame."""
        payload = encode_message(message)
        header = self._header(FRAME_TYPES[type(message)], handle, 0, len(payload), checksum(payload))
        return encode_header(header) + payload

    def send_signal(self, frame_type: FrameType, handle: int = 0, offset: int = 0) -> bytes:
        """Bytes of a frame without payload (ACK, NACK, PING, PONG)."""
        if frame_type in CONTROL_TYPES or frame_type is FrameType.DATA:
            raise LocalProtocolError(f"{frame_type.name} needs a payload")
        return encode_header(self._header(frame_type, handle, offset, 0, 0))

    def send_data_header(self, handle: int, offset: int, length: int, payload_crc: int) -> bytes:
        """Header of a DATA frame; the shell sends `length` bytes of the arena right behind it."""
        if self.state is not LaneState.SENDER:
            raise LocalProtocolError(f"DATA in state {self.state.value}")
        if not 0 < length <= self.max_chunk_bytes:
            raise LocalProtocolError(f"chunk of {length} bytes; the peer takes 1 to {self.max_chunk_bytes}")
        return encode_header(self._header(FrameType.DATA, handle, offset, length, payload_crc))

    def _header(self, frame_type: FrameType, handle: int, offset: int, length: int, payload_crc: int) -> Header:
        if self.state is LaneState.CLOSED:
            raise LocalProtocolError(f"{frame_type.name} on a closed lane")
        sequence, self._next_out = self._next_out, (self._next_out + 1) & 0xFFFFFFFF
        return Header(frame_type, handle, offset, length, payload_crc, sequence)
