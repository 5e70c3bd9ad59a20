"""An engine's connection to the KV node beside it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from prfaas.core.errors import PrfaasError, Refused
from prfaas.core.wire.engine import LENGTH, MAX_MESSAGE_BYTES, decode, encode


class NodeUnavailable(PrfaasError):
    """The KV node beside this engine does not answer; the next call tries to reach it again."""


class ConnectionEnded(NodeUnavailable):
    """The node has hung up."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """What the node told a connecting engine."""

    node: str
    node_boot_id: str
    arena_path: str
    arena_bytes: int


class NodeClient:
    """An engine's connection to its node. Thread-safe and blocking; every call has a deadline.

    `greeting` is the `attach` message, sent again on every reconnect, because a node that restarted knows nothing.
    """

    def __init__(self, socket_path: str, greeting: dict[str, Any], timeout_s: float = 2.0) -> None:
        self._path = socket_path
        self._greeting = greeting
        self._timeout_s = timeout_s
        self._lock = threading.RLock()
        self._sock: socket.socket | None = None
        self._next_id = 0
        self._connects = 0
        self._attachment: Attachment | None = None

    def attach(self) -> Attachment:
        """Connect if not connected. Raises NodeUnavailable, or Refused if the node does not want this engine."""
        with self._lock:
            self._connected()
            assert self._attachment is not None
            return self._attachment

    @contextlib.contextmanager
    def pinned(self, connection: int | None) -> Iterator[int]:
        """Hold the connection while writing into the arena; yields its number.

        The node gives an engine's stagings away when the connection ends, so a writer must keep it from ending, and
        must not go on after another one took its place. Raises NodeUnavailable if it is not number `connection`.
        """
        with self._lock:
            self._connected()
            if connection is not None and connection != self._connects:
                raise NodeUnavailable("the connection to the KV node was lost meanwhile")
            yield self._connects

    def call(self, op: str, **fields: Any) -> dict[str, Any]:
        """Raises Refused with the node's code, or NodeUnavailable.

        A connection that was kept may have ended unnoticed, because the node was restarted: then the call goes out once
        more over a new one. That is safe for every call: a node that was restarted knows nothing of the first one, and
        any other refuses to open or claim twice, and to consume twice changes nothing.
        """
        with self._lock:
            was_kept = self._sock is not None
            try:
                return self._exchange(self._connected(), {"op": op, **fields})
            except ConnectionEnded:
                if not was_kept:
                    raise
            return self._exchange(self._connected(), {"op": op, **fields})

    def post(self, op: str, **fields: Any) -> None:
        """Send without waiting. Raises NodeUnavailable."""
        with self._lock:
            sock = self._connected()
            try:
                sock.sendall(encode({"op": op, **fields}))
            except OSError as error:
                self._drop()
                raise NodeUnavailable(f"KV node at {self._path}: {error}") from None

    def close(self) -> None:
        """Hang up; the node frees what this engine held."""
        with self._lock:
            self._drop()

    def _connected(self) -> socket.socket:
        if self._sock is not None:
            return self._sock
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(self._timeout_s)
        try:
            sock.connect(self._path)
        except OSError as error:
            sock.close()
            raise NodeUnavailable(f"no KV node listens at {self._path}: {error.strerror or error}") from None
        self._sock = sock
        self._connects += 1
        try:
            reply = self._exchange(sock, {"op": "attach", **self._greeting})
            self._attachment = msgspec.convert(reply, Attachment)
        except BaseException:
            self._drop()
            raise
        return sock

    def _exchange(self, sock: socket.socket, message: dict[str, Any]) -> dict[str, Any]:
        self._next_id += 1
        try:
            sock.sendall(encode({**message, "id": self._next_id}))
            reply = decode(self._receive(sock))
        except (OSError, ValueError) as error:
            # A late reply to this call must not be taken for the next one's.
            self._drop()
            kind = ConnectionEnded if isinstance(error, ConnectionError) else NodeUnavailable
            raise kind(f"KV node at {self._path}: {error}") from None
        if reply.get("id") != self._next_id:
            self._drop()
            raise NodeUnavailable(f"KV node at {self._path} answered out of turn")
        if "error" in reply:
            raise Refused(str(reply["error"].get("code")), str(reply["error"].get("message")))
        result = reply.get("ok")
        return result if isinstance(result, dict) else {}

    def _receive(self, sock: socket.socket) -> bytes:
        (length,) = LENGTH.unpack(_receive_exactly(sock, LENGTH.size))
        if length > MAX_MESSAGE_BYTES:
            raise ValueError(f"message of {length} bytes")
        return _receive_exactly(sock, length)

    def _drop(self) -> None:
        if self._sock is not None:
            with contextlib.suppress(OSError):
                self._sock.close()
        self._sock = None
        self._attachment = None


def _receive_exactly(sock: socket.socket, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        part = sock.recv(count - len(parts))
        if not part:
            raise ConnectionError("it closed the connection")
        parts += part
    return bytes(parts)
