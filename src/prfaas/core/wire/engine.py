"""The Unix-socket protocol between an engine and the KV node beside it: framing.

A message is a 4-byte little-endian length and a msgpack map. A map with `id` is a call and gets a reply with the same
`id` (`{"id", "ok": …}` or `{"id", "error": {"code", "message"}}`); one without is a post and gets none. Posts and calls
of one connection are handled in order. Only paths with mode 0600 in the node's own directory are used, so the peer is
the same user.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import msgspec

LENGTH: Final = struct.Struct("<I")
#: The longest message is a post of the byte ranges of one engine step: 16 bytes each, thousands of them.
MAX_MESSAGE_BYTES: Final = 4 << 20


def encode(message: dict[str, Any]) -> bytes:
    """A framed message."""
    payload = msgspec.msgpack.encode(message)
    return LENGTH.pack(len(payload)) + payload


def decode(payload: bytes) -> dict[str, Any]:
    """Raises ValueError on anything but a msgpack map with string keys."""
    try:
        return msgspec.msgpack.decode(payload, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(str(error)) from None
