"""The few socket calls that lanes need, blocking, without copies.

Sockets stay in blocking mode without a Python timeout: `MSG_WAITALL` then reads a whole chunk in one call with the
interpreter lock released. Liveness is the monitor's business (`liveness`), which shuts a dead lane's socket down.
"""

from __future__ import annotations

import contextlib
import socket

from prfaas.core.errors import PrfaasError
from prfaas.transport.tcp_info import tcp_info


class LaneClosed(PrfaasError):
    """The connection ended: the peer closed it, the network did, or the monitor shut it down."""


def tune(sock: socket.socket, dead_after_s: float) -> None:
    """Options of every lane. SO_SNDBUF and SO_RCVBUF stay unset: setting one switches the kernel's autotuning off."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(dead_after_s * 1000))


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
