"""A TCP proxy between two nodes' lanes that misbehaves on demand: slow, stalled, cut, or with a flipped bit.

Public: whoever tests a deployment can put it where a WAN would be. Connection by connection, two threads each.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time


class LaneProxy:
    """Listens on a port of its own and forwards to `target`. Set the public attributes at any time."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        #: Forward direction's bytes per second over all connections; None is as fast as it goes.
        self.rate_bytes_per_s: float | None = None
        #: True: take bytes in and pass nothing on, in both directions; connections stay open.
        self.stalled = False
        #: Flip one bit of the next forward segment of at least 2,000 bytes, so often.
        self.flips_left = 0
        #: Forward bytes after which everything stalls; None is never.
        self.stall_after_bytes: int | None = None
        self.bytes_forward = 0
        self._lock = threading.Lock()
        self._free_at_s = 0.0
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    @property
    def address(self) -> str:
        """host:port for `--peer`."""
        host, port = self._listener.getsockname()[:2]
        return f"{host}:{port}"

    def heal(self) -> None:
        self.rate_bytes_per_s = self.stall_after_bytes = None
        self.stalled, self.flips_left, self.bytes_forward = False, 0, 0

    def cut(self) -> None:
        with self._lock:
            sockets, self._open = self._open, set()
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        # Closing alone leaves a thread in accept for ever.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self.target, 2.0)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            with self._lock:
                self._open |= {near, far}
            threading.Thread(target=self._pump, args=(near, far, True), daemon=True).start()
            threading.Thread(target=self._pump, args=(far, near, False), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, forward: bool) -> None:
        with contextlib.suppress(OSError):
            while data := bytearray(source.recv(16384 if self.rate_bytes_per_s else 262_144)):
                if forward:
                    self._wait_for_rate(len(data))
                    self.bytes_forward += len(data)
                    if self.stall_after_bytes is not None and self.bytes_forward > self.stall_after_bytes:
                        self.stalled = True
                    if self.flips_left and len(data) >= 2000:
                        self.flips_left -= 1
                        data[len(data) // 2] ^= 1
                if not self.stalled:
                    target.sendall(data)
        for sock in (source, target):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
            with self._lock:
                self._open.discard(sock)

    def _wait_for_rate(self, count: int) -> None:
        rate = self.rate_bytes_per_s
        if rate is None:
            return
        with self._lock:
            now_s = time.monotonic()
            self._free_at_s = max(now_s, self._free_at_s) + count / rate
            pause_s = self._free_at_s - now_s
        time.sleep(pause_s)
