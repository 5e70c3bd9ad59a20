"""An engine's connection to the KV node beside it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import TypeVar

import msgspec

from prfaas.core.errors import PrfaasError, Refused
from prfaas.core.wire.contract import BadMessage
from prfaas.core.wire.engine import (
    LENGTH,
    MAX_MESSAGE_BYTES,
    Attach,
    Attached,
    Claim,
    Claimed,
    Confirmed,
    Consumed,
    Declined,
    Done,
    Ping,
    Reply,
    Request,
    StageClose,
    Staged,
    StageOpen,
    StageOpened,
    content,
    decode_reply,
    frame,
)

R = TypeVar("R", bound=Reply)


class NodeUnavailable(PrfaasError):
    """The KV node beside this engine does not answer; the next call tries to reach it again."""


class ConnectionEnded(NodeUnavailable):
    """The node has hung up."""


class NodeClient:
    """An engine's connection to its node: one method per message of `core.wire.engine`. Thread-safe and blocking; every
    call has a deadline. All raise NodeUnavailable, and those that are answered Refused with the node's code.

    `greeting` is sent again on every reconnect, because a node that restarted knows nothing.
    """

    def __init__(self, socket_path: str, greeting: Attach, timeout_s: float = 2.0) -> None:
        self._path = socket_path
        self._greeting = greeting
        self._timeout_s = timeout_s
        self._lock = threading.RLock()
        self._sock: socket.socket | None = None
        self._next_id = 0
        self._connects = 0
        self._attachment: Attached | None = None

    def attach(self) -> Attached:
        """Connect if not connected. Refused if the node does not want this engine."""
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

    def ping(self) -> None:
        self._call(Ping(), Done)

    def stage_open(self, request: StageOpen) -> StageOpened:
        return self._call(request, StageOpened)

    def staged(self, request: Staged) -> None:
        self._post(request)

    def stage_close(self, request: StageClose) -> None:
        self._post(request)

    def claim(self, request: Claim) -> Claimed:
        return self._call(request, Claimed)

    def consumed(self, request: Consumed) -> Confirmed:
        return self._call(request, Confirmed)

    def declined(self, request: Declined) -> None:
        self._post(request)

    def close(self) -> None:
        """Hang up; the node frees what this engine held."""
        with self._lock:
            self._drop()

    def _call(self, request: Request, answer: type[R]) -> R:
        """A connection that was kept may have ended unnoticed, because the node was restarted: then the call goes out
        once more over a new one. That is safe for every call: a node that was restarted knows nothing of the first one,
        and any other refuses to open or claim twice, and to consume twice changes nothing."""
        with self._lock:
            was_kept = self._sock is not None
            try:
                return self._exchange(self._connected(), request, answer)
            except ConnectionEnded:
                if not was_kept:
                    raise
            return self._exchange(self._connected(), request, answer)

    def _post(self, request: Request) -> None:
        with self._lock:
            sock = self._connected()
            try:
                sock.sendall(frame(request))
            except OSError as error:
                self._drop()
                raise NodeUnavailable(f"KV node at {self._path}: {error}") from None

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
            self._attachment = self._exchange(sock, self._greeting, Attached)
        except BaseException:
            self._drop()
            raise
        return sock

    def _exchange(self, sock: socket.socket, request: Request, answer: type[R]) -> R:
        self._next_id += 1
        try:
            sock.sendall(frame(msgspec.structs.replace(request, id=self._next_id)))
            envelope = decode_reply(self._receive(sock))
            if envelope.id != self._next_id:
                raise BadMessage("it answered out of turn")
            if envelope.error is None:
                return content(envelope, answer)
        except (OSError, ValueError, BadMessage) as error:
            # A late reply to this call must not be taken for the next one's.
            self._drop()
            kind = ConnectionEnded if isinstance(error, ConnectionError) else NodeUnavailable
            raise kind(f"KV node at {self._path}: {error}") from None
        raise Refused(envelope.error.code, envelope.error.message)

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
