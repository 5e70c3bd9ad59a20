"""The few socket calls that lanes need, blocking, without copies.

Sockets stay in blocking mode without a Python timeout: `MSG_WAITALL` then reads a whole chunk in one call with the
interpreter lock released. Liveness is the monitor's business (`liveness`), which shuts a dead lane's socket down.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from functools import cache
from typing import Final

from prfaas.core.errors import PrfaasError
from prfaas.transport.tcp_info import tcp_info

#: asm-generic/socket.h; Python's socket module does not name it.
_SO_MAX_PACING_RATE: Final = 47
_UNPACED: Final = (1 << 64) - 1


class LaneClosed(PrfaasError):
    """The connection ended: the peer closed it, the network did, or the monitor shut it down."""


class Scratch:
    """Memory of one lane for bytes that have no place of their own, allocated when first needed and then kept. Lengths
    are within what this node announced, never what a peer asks for."""

    def __init__(self) -> None:
        self._memory = memoryview(b"")

    def of(self, length: int) -> memoryview:
        """`length` writable bytes, the same ones at every call."""
        if len(self._memory) < length:
            self._memory = memoryview(bytearray(length))
        return self._memory[:length]


def tune(sock: socket.socket, dead_after_s: float) -> None:
    """Options of every lane. SO_SNDBUF and SO_RCVBUF stay unset: setting one switches the kernel's autotuning off."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(dead_after_s * 1000))


@cache
def available_congestion_controls() -> tuple[str, ...]:
    """Those that this process may use; empty where the kernel does not say."""
    try:
        with open("/proc/sys/net/ipv4/tcp_available_congestion_control", encoding="ascii") as file:
            return tuple(file.read().split())
    except OSError:
        return ()


def use_congestion_control(sock: socket.socket, name: str) -> str:
    """Set it on this socket and return what is in use now: without right or module the kernel keeps its own. Empty for
    what is not TCP."""
    with contextlib.suppress(OSError):
        if name:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).partition(b"\0")[0].decode()
    except OSError:
        return ""


def limit_unsent(sock: socket.socket, num_bytes: int) -> None:
    """Sending blocks while so many bytes have not left yet."""
    if num_bytes:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, num_bytes)


def pace(sock: socket.socket, bytes_per_s: float | None) -> None:
    """The kernel sends no faster on this connection; None lifts the limit. A socket that is closed is left alone."""
    value = _UNPACED if bytes_per_s is None else max(1, int(bytes_per_s))
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, struct.pack("=Q", value))


def receive_into(sock: socket.socket, view: memoryview) -> None:
    """Fill `view` from the stream. Raises LaneClosed."""
    received = 0
    while received < len(view):
        try:
            count = sock.recv_into(view[received:], 0, socket.MSG_WAITALL)
        except OSError as error:
            raise LaneClosed(f"receiving failed: {error.strerror or error}") from None
        if count == 0:
            raise LaneClosed("the peer closed the connection")
        received += count


def send_all(sock: socket.socket, *buffers: bytes | memoryview) -> None:
    """Send every byte of `buffers` in order. Raises LaneClosed."""
    pending = [memoryview(buffer) for buffer in buffers if len(buffer)]
    while pending:
        try:
            count = sock.sendmsg(pending)
        except OSError as error:
            raise LaneClosed(f"sending failed: {error.strerror or error}") from None
        while pending and count >= len(pending[0]):
            count -= len(pending.pop(0))
        if count:
            pending[0] = pending[0][count:]


def shut(sock: socket.socket) -> None:
    """End the connection now, whoever is blocked in it. Does not close the descriptor; its own thread does."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def bytes_moved(sock: socket.socket) -> int:
    """Payload bytes that the kernel has moved on this connection, acknowledged plus received; 0 if it cannot say.

    Grows while one large chunk is under way, when no frame is complete yet: a slow lane is not a dead one.
    """
    info = tcp_info(sock)
    return 0 if info is None else info.bytes_acked + info.bytes_received
