"""Control messages between two KV nodes, as msgpack.

A message's type is the frame's type, so a payload is a bare map. Decoding is typed and bounded: unknown fields are
ignored (a newer minor peer may send them), missing or mistyped ones close the lane.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from prfaas.core.errors import RemoteProtocolError
from prfaas.core.wire.frames import MAX_CONTROL_BYTES, FrameType

#: Names and ids go into logs and metrics, where a line break would forge a line: such a message is malformed.
Short = Annotated[str, msgspec.Meta(max_length=256, pattern=r"\A[^\x00-\x1f\x7f-\x9f\u2028\u2029]*\Z")]
Text = Annotated[str, msgspec.Meta(max_length=2048)]
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]


class Hello(msgspec.Struct, frozen=True):
    """First frame of the dialing node. `fingerprint` is empty while no engine has registered a layout."""

    node: Short
    boot_id: Short
    target: Short
    lane: Annotated[int, msgspec.Meta(ge=0, lt=1024)]
    hash_algorithm: Short
    hash_seed: Short
    fingerprint: Short


class Welcome(msgspec.Struct, frozen=True):
    """The accepting node's answer: the limits that the dialing node must keep."""

    node: Short
    boot_id: Short
    max_chunk_bytes: Annotated[int, msgspec.Meta(ge=1, le=1 << 26)]
    credit_bytes: Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]


class Refuse(msgspec.Struct, frozen=True):
    """The accepting node will not talk to this peer. The lane closes after it."""

    code: Short
    message: Text


class Open(msgspec.Struct, frozen=True):
    """Ask to write a transfer into a reserved landing. `token` proves that the gateway sent us."""

    transfer_id: Short
    token: Short
    num_bytes: Count
    fingerprint: Short


class Opened(msgspec.Struct, frozen=True):
    """The landing is ours; its handle is in the frame header."""

    transfer_id: Short


class Abort(msgspec.Struct, frozen=True):
    """This transfer is over and nothing of it may be used. A sender shows the landing's token, because it may give up
    before its Open was answered; a receiver that knows no id leaves it empty and names the handle."""

    transfer_id: Short
    token: Short
    code: Short
    message: Text


Message = Hello | Welcome | Refuse | Open | Opened | Abort

MESSAGE_TYPES: Final[dict[FrameType, type[Message]]] = {
    FrameType.HELLO: Hello,
    FrameType.WELCOME: Welcome,
    FrameType.REFUSE: Refuse,
    FrameType.OPEN: Open,
    FrameType.OPENED: Opened,
    FrameType.ABORT: Abort,
}
FRAME_TYPES: Final[dict[type[Message], FrameType]] = {message: frame for frame, message in MESSAGE_TYPES.items()}

_encoder = msgspec.msgpack.Encoder()
_decoders = {frame: msgspec.msgpack.Decoder(message) for frame, message in MESSAGE_TYPES.items()}


def encode_message(message: Message) -> bytes:
    """Payload of `message`, at most MAX_CONTROL_BYTES by construction of its fields."""
    payload = _encoder.encode(message)
    assert len(payload) <= MAX_CONTROL_BYTES, f"{type(message).__name__} of {len(payload)} bytes"
    return payload


def decode_message(frame_type: FrameType, payload: bytes | bytearray | memoryview) -> Message:
    """Raises RemoteProtocolError, never anything else, whatever the bytes are."""
    try:
        message: Message = _decoders[frame_type].decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError("bad_message", f"{frame_type.name}: {error}") from None
    if isinstance(message, (Refuse, Abort)) and not message.message.isprintable():
        # Words for people, which may repeat what a third said: kept, on one line.
        words = "".join(character if character.isprintable() else " " for character in message.message)
        message = msgspec.structs.replace(message, message=words)
    return message
