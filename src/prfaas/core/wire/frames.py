"""The frame: a fixed header of 40 bytes, then a payload of known length.

Laws of this file:
- A header is checked (magic, version, type, its own CRC, length limits) before a byte of payload is read, and before
  any memory is touched. Nothing here allocates by a length that the peer sent.
- Every payload has a CRC-32C, or on an encrypted lane a tag of AES-GCM. TCP's 16-bit sum misses about one in 65,536
  damaged segments; one wrong byte of KV is wrong output, silently.
- Frames of a lane are numbered. A gap, repeat or reorder is a broken or hostile peer and closes the lane.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import crc32c as _crc32c

from prfaas.core.errors import LocalProtocolError, RemoteProtocolError

MAGIC: Final = b"PRFS"
#: 1: first version (2026-11). 2: encrypted lanes, their flag, and mutual TLS before the first frame.
PROTOCOL_VERSION: Final = 2
#: DATA travels in segments of this many bytes, the last one shorter: each is summed or sealed, and sent, while it is in
#: the processor's cache. On an encrypted lane each segment has a tag of its own.
SEGMENT_BYTES: Final = 512 * 1024
#: Behind the last segment on a plain lane: the CRC-32C of the header's first 36 bytes and the whole payload. (Of the
#: payload alone, another frame's header would be a good payload of 36 bytes with its trailer.)
TRAILER_BYTES: Final = 4
#: The only flag: the payload is sealed (`core.wire.seal`), and a tag follows it.
SEALED: Final = 1

_HEADER: Final = struct.Struct("<4sBBHQQIIII")
HEADER_BYTES: Final = _HEADER.size

#: Control messages carry names and codes, never KV. The longest (Hello with the longest names) is under 2 KiB.
MAX_CONTROL_BYTES: Final = 16 * 1024
#: A chunk is the unit of retransmission and of a lane's head-of-line blocking: 64 MiB at 1 Gbit/s is half a second.
MAX_CHUNK_BYTES: Final = 64 * 1024 * 1024


class FrameType(IntEnum):
    """What a frame is. Values are on the wire: never reuse one."""

    HELLO = 1
    WELCOME = 2
    REFUSE = 3
    OPEN = 4
    OPENED = 5
    DATA = 6
    ACK = 7
    NACK = 8
    ABORT = 9
    PING = 10
    PONG = 11


#: Frames with a msgpack payload; DATA carries KV, the rest carry nothing.
CONTROL_TYPES: Final = frozenset(
    {FrameType.HELLO, FrameType.WELCOME, FrameType.REFUSE, FrameType.OPEN, FrameType.OPENED, FrameType.ABORT}
)


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header. `handle` names a transfer at the receiver; `offset` is a byte of its image."""

    type: FrameType
    handle: int
    offset: int
    length: int
    payload_crc: int
    sequence: int


def checksum(data: bytes | bytearray | memoryview, so_far: int = 0) -> int:
    """CRC-32C of `data`, or of what gave `so_far` followed by `data`."""
    return int(_crc32c.crc32c(data, so_far))


def segments(length: int) -> Iterator[tuple[int, int]]:
    """Half-open ranges of a DATA payload's segments."""
    for start in range(0, length, SEGMENT_BYTES):
        yield start, min(start + SEGMENT_BYTES, length)


def max_payload_bytes(frame_type: FrameType, max_chunk_bytes: int) -> int:
    """Largest legal payload of a frame of this type."""
    if frame_type is FrameType.DATA:
        return max_chunk_bytes
    return MAX_CONTROL_BYTES if frame_type in CONTROL_TYPES else 0


def encode_header(header: Header, flags: int = 0) -> bytes:
    """The 40 bytes of `header`, ended with a CRC of the first 36."""
    if header.length > MAX_CHUNK_BYTES:
        raise LocalProtocolError(f"frame of {header.length} bytes is over the limit of {MAX_CHUNK_BYTES}")
    fields = (
        MAGIC,
        PROTOCOL_VERSION,
        header.type,
        flags,
        header.handle,
        header.offset,
        header.length,
        header.payload_crc,
        header.sequence & 0xFFFFFFFF,
    )
    unended = _HEADER.pack(*fields, 0)
    return _HEADER.pack(*fields, checksum(unended[:-4]))


def decode_header(data: bytes | bytearray | memoryview, max_chunk_bytes: int, flags_due: int = 0) -> Header:
    """Check and decode exactly HEADER_BYTES bytes, which must have just the flags `flags_due`. Raises
    RemoteProtocolError, never anything else."""
    if len(data) != HEADER_BYTES:
        raise LocalProtocolError(f"a header has {HEADER_BYTES} bytes, got {len(data)}")
    magic, version, raw_type, flags, handle, offset, length, payload_crc, sequence, header_crc = _HEADER.unpack(data)
    if magic != MAGIC:
        tls = bytes(data[:2]) == b"\x16\x03"
        what = "the peer wants TLS; set transfer.encryption alike on both sides" if tls else "not the PrfaaS protocol"
        raise RemoteProtocolError("bad_magic", what)
    if version != PROTOCOL_VERSION:
        raise RemoteProtocolError(
            "version",
            f"the peer speaks protocol version {version}, this node {PROTOCOL_VERSION}; upgrade the older one",
        )
    if checksum(memoryview(data)[:-4]) != header_crc:
        raise RemoteProtocolError("bad_header_crc", "frame header is damaged")
    try:
        frame_type = FrameType(raw_type)
    except ValueError:
        raise RemoteProtocolError("bad_type", f"unknown frame type {raw_type}") from None
    if flags != flags_due:
        raise RemoteProtocolError("bad_flags", f"frame flags are {flags:#x}, {flags_due:#x} was due on this lane")
    limit = max_payload_bytes(frame_type, max_chunk_bytes)
    if length > limit:
        raise RemoteProtocolError("too_long", f"{frame_type.name} of {length} bytes is over the limit of {limit}")
    return Header(frame_type, handle, offset, length, payload_crc, sequence)


def sum_of_header(header: bytes) -> int:
    """The checksum so far with which that of a DATA payload begins: the header's own."""
    return int.from_bytes(header[-TRAILER_BYTES:], "little")


def data_trailer(crc: int) -> bytes:
    """What ends a DATA frame on a plain lane."""
    return crc.to_bytes(TRAILER_BYTES, "little")
