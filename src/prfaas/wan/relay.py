"""Moves the bytes: sockets at both ends of a line, driven by one event loop.

Laws of this file:
- What comes in at one end goes out at the other, every byte, in order, but for bits that shall flip; then the end of
  the stream, or its reset.
- Nothing is read that the line has no room for: the kernel's window then tells the sender.
- No call moves more than a bounded number of bytes, so that neither control nor another link waits for long.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
import time
from collections.abc import Callable
from typing import Final

from prfaas.wan.blocks import Bytes, Pool
from prfaas.wan.line import Flow, Line, Way

logger = logging.getLogger("prfaas.wan")

#: Not the loop's time, which counts milliseconds and stands still while callbacks run.
now_s: Final = time.monotonic

#: Read at one time from one connection.
MAX_READ: Final = 1 << 20
#: The shortest sleep: timers of event loops count milliseconds, and less would be spinning.
MIN_SLEEP_S: Final = 0.001
#: What a kernel may take in for us ahead of our reading: so much time of the link, shared by its connections. To the
#: sender it is as good as sent, so it must be little; a connection with less than MIN_WINDOW would starve.
WINDOW_S: Final = 0.01
MIN_WINDOW: Final = 32 << 10
MAX_WINDOW: Final = 1 << 20
#: Largest segment that is sent to us. Those of loopback have 64 KiB, more than a small window: the sender would wait
#: for a window that never opens, and send when its timer for that runs out, five times a second.
SEGMENT: Final = 8 << 10
#: What a kernel may hold for a far end that is slow.
SEND_BUFFER: Final = 512 << 10
_RESET: Final = struct.pack("ii", 1, 0)


def prepare(sock: socket.socket) -> None:
    """A socket that will listen or dial: what its connections tell their peers at the handshake."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT)
    fit_window(sock, MIN_WINDOW)


def fit_window(sock: socket.socket, size: int) -> None:
    """At most so many bytes are taken in ahead of our reading. Not TCP_WINDOW_CLAMP, which the kernel raises again."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size // 2)  # the kernel doubles it


class Runner:
    """One line in an event loop, with the pipes that share it."""

    def __init__(self, line: Line, loop: asyncio.AbstractEventLoop, pool: Pool) -> None:
        self.line = line
        self.loop = loop
        self.pool = pool
        self._pipes: dict[Flow, Pipe] = {}
        #: Those that could read and had no room.
        self._thirsty: set[Pipe] = set()
        self._timer: asyncio.Handle | None = None

    def open(self, source: socket.socket, target: socket.socket, way: Way, first_at_s: float) -> Pipe:
        """From `source` to `target`; nothing is read before `Pipe.fill`."""
        pipe = Pipe(self, source, target, self.line.open(way, first_at_s))
        self._pipes[pipe.flow] = pipe
        self.fit_windows()
        return pipe

    def forget(self, pipe: Pipe) -> None:
        self.line.close(pipe.flow)
        self._thirsty.discard(pipe)
        if self._pipes.pop(pipe.flow, None) is not None:
            self.fit_windows()

    def wants_room(self, pipe: Pipe) -> None:
        self._thirsty.add(pipe)

    def fit_windows(self) -> None:
        """After a change of the bandwidth or of the number of connections."""
        rate = self.line.settings.bandwidth
        size = MAX_WINDOW
        if rate is not None and self._pipes:
            size = min(MAX_WINDOW, max(MIN_WINDOW, int(rate * WINDOW_S / len(self._pipes))))
        for pipe in self._pipes.values():
            fit_window(pipe.source, size)

    def pump(self) -> None:
        """Let the line's time pass, deliver what has arrived, read where there is room."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for flow in self.line.step(now_s()):
            pipe = self._pipes.get(flow)
            if pipe is not None:
                pipe.drain()
        is_more = False
        for pipe in tuple(self._thirsty):
            self._thirsty.discard(pipe)
            is_more |= pipe.fill()
        at_s = now_s()
        wake_s = at_s if is_more else self.line.next_s(at_s)
        if wake_s is None:
            return
        if wake_s <= at_s:
            self._timer = self.loop.call_soon(self.pump)
        else:
            self._timer = self.loop.call_later(max(MIN_SLEEP_S, wake_s - at_s), self.pump)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


class Pipe:
    """One direction of a connection. `on_end` is called once, when the stream has ended at the target, or has come
    to nothing there; `was_reset`: it did not end in order."""

    def __init__(self, runner: Runner, source: socket.socket, target: socket.socket, flow: Flow) -> None:
        self.runner = runner
        self.source = source
        self.target = target
        self.flow = flow
        self.was_reset = False
        self.is_over = False
        self.on_end: Callable[[], None] = lambda: None
        self.on_source_broken: Callable[[], None] = lambda: None
        self.on_target_broken: Callable[[], None] = lambda: None
        self._bytes = Bytes(runner.pool)
        self._is_reading = False
        self._is_writing = False

    def fill(self) -> bool:
        """Read what is there and has room; True: there may be more of both."""
        line, flow = self.runner.line, self.flow
        got = 0
        if self.is_over or flow.is_ending:
            return False
        while got < MAX_READ:
            room = line.room(flow)
            if not room:
                self._read_when_ready(False)
                self.runner.wants_room(self)
                return False
            view = self._bytes.space(min(room, MAX_READ - got))
            count = self._read(view)
            if count > 0 and line.settings.flips_per_mb:
                line.flip(view[:count])
            self._bytes.wrote(max(0, count))
            if count < 0:
                # While something waits for the bottleneck the next look at it is soon enough, and cheaper.
                is_idle = not line.waiting(flow)
                self._read_when_ready(is_idle)
                if not is_idle:
                    self.runner.wants_room(self)
                return False
            if not count:
                return self._source_ended()
            got += count
            line.offer(flow, count, now_s())
        self.runner.wants_room(self)
        return True

    def drain(self) -> None:
        """Send what has arrived, as far as the target takes it."""
        flow = self.flow
        while flow.arrived and not self._is_writing and not self.is_over:
            try:
                count = self.target.send(self._bytes.front(flow.arrived))
            except BlockingIOError:
                self._is_writing = True
                self.runner.loop.add_writer(self.target, self._on_writable)
                return
            except OSError:
                self.on_target_broken()
                return
            self._bytes.drop(count)
            self.runner.line.delivered(flow, count)
        if flow.has_ended and not flow.arrived and not self.is_over:
            self._finish()

    def reset(self) -> None:
        """The source is broken: its reset follows what it had sent."""
        if not self.flow.is_ending:
            self.was_reset = True
            self._source_ended()

    def abandon(self) -> None:
        """Drop what is under way, for the target is no more."""
        if self.is_over:
            return
        self.is_over = True
        self._read_when_ready(False)
        if self._is_writing:
            self._is_writing = False
            self.runner.loop.remove_writer(self.target)
        self.runner.forget(self)
        self._bytes.clear()

    def _finish(self) -> None:
        self.abandon()
        if not self.was_reset:
            with contextlib.suppress(OSError):
                self.target.shutdown(socket.SHUT_WR)
        self.on_end()

    def _read(self, view: memoryview) -> int:
        """Bytes read; 0 at the end; -1: nothing there."""
        try:
            return self.source.recv_into(view)
        except BlockingIOError:
            return -1
        except OSError:
            self.was_reset = True
            return 0

    def _source_ended(self) -> bool:
        self._read_when_ready(False)
        self.runner.line.end(self.flow, now_s())
        if self.was_reset:
            self.on_source_broken()
        return True  # the end has to travel

    def _on_readable(self) -> None:
        self.fill()
        self.runner.pump()

    def _on_writable(self) -> None:
        self._is_writing = False
        self.runner.loop.remove_writer(self.target)
        self.drain()
        self.runner.pump()

    def _read_when_ready(self, wanted: bool) -> None:
        if wanted != self._is_reading and not (wanted and self.is_over):
            self._is_reading = wanted
            if wanted:
                self.runner.loop.add_reader(self.source, self._on_readable)
            else:
                self.runner.loop.remove_reader(self.source)


class Connection:
    """Two sockets and the pipes between them. `on_close` is called once."""

    def __init__(
        self,
        near: socket.socket,
        far: socket.socket,
        runners: tuple[Runner, Runner],
        way: Way,
        first_at_s: float,
        on_close: Callable[[Connection], None],
    ) -> None:
        self._near = near
        self._far = far
        self._on_close = on_close
        self._is_closed = False
        for sock in (near, far):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self.forth = runners[0].open(near, far, way, first_at_s)
        self.back = runners[1].open(far, near, way, first_at_s)
        for pipe, other in ((self.forth, self.back), (self.back, self.forth)):
            pipe.on_end = self._ended
            # A broken socket ends both: what it sent still travels, with the reset behind it; what it was sent is lost.
            pipe.on_source_broken = other.abandon
            pipe.on_target_broken = lambda pipe=pipe, other=other: self._target_broke(pipe, other)  # type: ignore[misc]

    def start(self) -> None:
        """Read at both ends."""
        for pipe in (self.forth, self.back):
            pipe.fill()
            pipe.runner.pump()

    def hold(self) -> None:
        """Nothing passes, without a word to either end."""
        for pipe in (self.forth, self.back):
            pipe.runner.line.hold(pipe.flow)

    def release(self) -> None:
        for pipe in (self.forth, self.back):
            pipe.runner.line.release(pipe.flow, now_s())
            pipe.runner.pump()

    def close(self, *, reset: bool) -> None:
        """Now, at both ends."""
        if self._is_closed:
            return
        self._is_closed = True
        for pipe in (self.forth, self.back):
            pipe.abandon()
        for sock in (self._near, self._far):
            with contextlib.suppress(OSError):
                if reset:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            sock.close()
        self._on_close(self)

    def _ended(self) -> None:
        if self.forth.was_reset or self.back.was_reset:
            self.close(reset=True)
        elif self.forth.is_over and self.back.is_over:
            self.close(reset=False)

    def _target_broke(self, pipe: Pipe, other: Pipe) -> None:
        pipe.abandon()
        if other.is_over:
            self.close(reset=True)
        else:
            other.reset()
            other.runner.pump()
