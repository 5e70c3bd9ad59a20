"""Is a lane alive? Judged by bytes moved, so that a slow lane is not mistaken for a dead one."""

from __future__ import annotations

import socket

from prfaas.transport.sockets import bytes_moved, shut


class Liveness:
    """Watches one socket. `check` is called by the node's monitor a few times a second."""

    def __init__(self, sock: socket.socket, now_s: float, first_frame_by_s: float) -> None:
        self.sock = sock
        self.last_moved_s = now_s
        self.greeted = False
        self._first_frame_by_s = first_frame_by_s
        self._moved = -1

    def touch(self, now_s: float) -> None:
        """A whole frame came."""
        self.last_moved_s = now_s

    def check(self, now_s: float, dead_after_s: float) -> str | None:
        """Shut the socket down if it is dead; returns why."""
        moved = bytes_moved(self.sock)
        if moved != self._moved:
            self._moved = moved
            self.last_moved_s = now_s
        if not self.greeted and now_s > self._first_frame_by_s:
            reason = "no handshake in time"
        elif now_s - self.last_moved_s > dead_after_s:
            reason = f"nothing moved for {dead_after_s:g} s"
        else:
            return None
        shut(self.sock)
        return reason
