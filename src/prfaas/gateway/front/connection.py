"""One client's connection: uvicorn's, with limits on what it may cost.

Laws of this file:
- A head is handed to the parser whole. Until then it is bytes that are counted and timed: nothing is parsed, and no
  header grows piece by piece.
- The parser is given one message at a time: what comes behind a body of known length waits until that has ended.
- One request at a time. What comes behind a request that is still being answered is dropped, and the connection ends
  with that answer: whoever sends ahead must be ready for that (RFC 9112, 9.3.2). A connection that stops reading would
  not notice that its client has left.
- An offer of another protocol (HTTP/2, websocket) is not taken up: its header is left out, and the request answered.
- A client that closes its sending half only is answered if that takes a moment; else it counts as gone.
"""

from __future__ import annotations

import asyncio
import math
import os
import re
import socket
import time
from enum import Enum, auto
from typing import Any, Final

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from prfaas.gateway.api.errors import ApiError
from prfaas.gateway.front.doorkeeper import Closing, Doorkeeper
from prfaas.transport.tcp_info import tcp_info

_HEAD_ENDS: Final = re.compile(rb"\n\r?\n")
#: Longest match of the above, less one: it may begin in what was there already.
_OVERLAP: Final = 2
_OFFERS: Final = re.compile(rb"(?i)(?<=\n)(?:upgrade|http2-settings):[^\n]*\n")
#: After a refusal a client may still be sending; it reads the answer only if its bytes are taken.
_MAX_DRAINED_BYTES: Final = 1 << 20
#: As long as most answers of health checks and refusals take.
_HALF_CLOSED_S: Final = 0.05


class _Phase(Enum):
    FRESH = auto()  # nothing has come yet
    IDLE = auto()  # between an answer and the next request
    HEAD = auto()
    BODY = auto()
    ANSWER = auto()  # the request is whole, its answer is not


class FrontConnection(HttpToolsProtocol):
    """`http=partial(FrontConnection, doorkeeper)` of a uvicorn configuration."""

    def __init__(
        self,
        doorkeeper: Doorkeeper,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._doorkeeper = doorkeeper
        self._limits = doorkeeper.limits
        self._phase = _Phase.FRESH
        self._since_s = self._answered_s = time.monotonic()
        self._head = bytearray()
        #: Of a body whose length is known, what has not come yet.
        self._num_body_bytes_left: int | None = None
        self._num_body_bytes = 0
        self._num_other_bytes = 0
        self._num_drained_bytes = 0
        self._num_taken_bytes = 0
        self._unwritten_since_s: float | None = None
        #: Nothing that comes is looked at any more.
        self._is_deaf = False

    @property
    def address(self) -> str:
        """Without the port; that of a Unix socket is empty."""
        return self.client[0] if self.client else ""

    # asyncio

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        why = self._doorkeeper.admit(self)
        if why is None:
            self._doorkeeper.becomes_idle(self)
        else:
            self._refuse(503, why, "overloaded")

    def connection_lost(self, exc: Exception | None) -> None:
        self._doorkeeper.forget(self)
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]
        if self._phase is not _Phase.ANSWER:
            return False
        self.loop.call_later(_HALF_CLOSED_S, self.transport.close)
        return True

    def data_received(self, data: bytes) -> None:
        if self._is_deaf or self.transport.is_closing():
            return
        if self._phase is _Phase.ANSWER:
            if data.strip(b"\r\n"):  # some clients end a body with a line of its own
                self._stop_listening()
        elif self._phase is _Phase.BODY:
            self._take_body(data)
        else:
            self._take_head(data)

    def _take_head(self, data: bytes) -> None:
        if not self._head:
            data = data.lstrip(b"\r\n")
            if not data:
                return
            self._unset_keepalive_if_required()
            self._enter(_Phase.HEAD)
            if not data[:1].isalpha():  # no method begins like this: the parser says so at once
                super().data_received(data)
                return
        searched = max(0, len(self._head) - _OVERLAP)
        self._head += data
        ends = _HEAD_ENDS.search(self._head, searched)
        if (ends.end() if ends else len(self._head)) > self._limits.head_bytes:
            self._doorkeeper.closed(Closing.HEAD_TOO_LARGE)
            self._refuse(431, f"the head is larger than {self._limits.head_bytes} bytes", "head_too_large")
        elif ends:
            head, rest = bytes(self._head[: ends.end()]), bytes(self._head[ends.end() :])
            self._head = bytearray()
            super().data_received(_OFFERS.sub(b"", head))
            if self._phase is _Phase.HEAD and not self.transport.is_closing():
                self.send_400_response("")  # the parser waits for more of it
            elif rest:
                self.data_received(rest)

    def _take_body(self, data: bytes) -> None:
        left = self._num_body_bytes_left
        if left is None:
            self._take_piece(data)
            return
        self._num_body_bytes_left = max(0, left - len(data))
        self._take_piece(data[:left])
        if len(data) > left:
            self.data_received(data[left:])

    def _take_piece(self, data: bytes) -> None:
        if self.cycle.response_complete:
            self._num_drained_bytes += len(data)
            if self._num_drained_bytes > _MAX_DRAINED_BYTES:
                self.transport.close()
                return
        num_before = self._num_body_bytes
        super().data_received(data)
        if self._phase is not _Phase.BODY or self._num_body_bytes > num_before:
            self._num_other_bytes = 0
            return
        # The parser keeps a header behind the body until it is whole, however long it gets.
        self._num_other_bytes += len(data)
        if self._num_other_bytes > self._limits.head_bytes:
            self._doorkeeper.closed(Closing.HEAD_TOO_LARGE)
            self._refuse(
                431,
                f"what is between pieces of the body is larger than {self._limits.head_bytes} bytes",
                "head_too_large",
            )

    # Of the parser

    def on_message_begin(self) -> None:
        if self._phase is not _Phase.HEAD:  # in the same read as the end of a body in chunks
            self._stop_listening()
        elif not self._is_deaf:
            super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self._is_deaf:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        # Behind a body: trailers, which nobody reads, and which are not bounded by the head's limit.
        if not self._is_deaf and self._phase is _Phase.HEAD:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._is_deaf:
            return
        self._enter(_Phase.BODY)
        self._num_body_bytes = self._num_other_bytes = self._num_drained_bytes = 0
        lengths = {value for name, value in self.headers if name == b"content-length"}
        is_chunked = any(name == b"transfer-encoding" for name, _ in self.headers)
        # The parser has refused what is no number, and lengths that differ.
        self._num_body_bytes_left = None if is_chunked else int(next(iter(lengths), b"0"))
        super().on_headers_complete()
        if self.expect_100_continue:
            # Whether a body comes after an answer without a 100 nobody can tell.
            self.cycle.keep_alive = False
        if self._doorkeeper.is_stopping():
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        if self._is_deaf:
            return
        self._num_body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._is_deaf:
            return
        is_answered = self.cycle.response_complete
        super().on_message_complete()
        self._enter(_Phase.IDLE if is_answered else _Phase.ANSWER)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._answered_s = time.monotonic()
        if self._phase is _Phase.ANSWER:
            self._enter(_Phase.IDLE)
        if self._is_deaf:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "this is not HTTP/1.1", "invalid_http")

    def _unsupported_upgrade_warning(self) -> None:
        """CONNECT: it is answered, and nothing behind it is a request. No word in the log, which clients could fill."""
        self._stop_listening()

    # Limits

    def leave(self) -> None:
        # To close is to wait for what is unwritten, and who takes nothing would keep the connection.
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    def look(self, now_s: float) -> None:
        limits, lasts_s = self._limits, now_s - self._since_s
        if self._is_stuck(now_s):
            self._doorkeeper.closed(Closing.WRITE_TIMEOUT)
            self.transport.abort()
        elif self.transport.is_closing():
            return
        elif self._phase is _Phase.FRESH and lasts_s > limits.head_s:
            self._doorkeeper.closed(Closing.HEAD_TIMEOUT)
            self.transport.close()
        elif self._phase is _Phase.IDLE and lasts_s > limits.idle_s:
            self.transport.close()
        elif self._phase is _Phase.HEAD and lasts_s > limits.head_s:
            self._doorkeeper.closed(Closing.HEAD_TIMEOUT)
            self._refuse(408, f"the head took longer than {limits.head_s:g} s", "timeout")
        elif self._phase is _Phase.BODY and self.cycle.response_complete:
            if now_s - self._answered_s > limits.body_grace_s:
                self.transport.close()
        elif self._phase is _Phase.BODY and lasts_s > max(limits.body_grace_s, self._least_body_s):
            self._doorkeeper.closed(Closing.BODY_TOO_SLOW)
            self._refuse(408, f"the body came slower than {limits.body_bytes_per_s:g} bytes a second", "timeout")

    @property
    def _least_body_s(self) -> float:
        """What has come of the body may have taken so long."""
        rate = self._limits.body_bytes_per_s
        return self._num_body_bytes / rate if rate else math.inf

    def _is_stuck(self, now_s: float) -> bool:
        unwritten = self.transport.get_write_buffer_size()
        if unwritten == 0:
            self._unwritten_since_s = None
            return False
        taken = self._acknowledged()
        # Where that cannot be known: what is unwritten becomes less. The kernel says so a third of its buffer late.
        taken = -unwritten if taken is None else taken
        if self._unwritten_since_s is None or taken > self._num_taken_bytes:
            self._unwritten_since_s = now_s
        self._num_taken_bytes = taken
        return now_s - self._unwritten_since_s > self._limits.write_s

    def _acknowledged(self) -> int | None:
        sock = self.transport.get_extra_info("socket")
        try:
            with socket.socket(fileno=os.dup(sock.fileno())) as own:
                info = tcp_info(own)
        except (OSError, AttributeError):
            return None
        return None if info is None else info.bytes_acked

    def _enter(self, phase: _Phase) -> None:
        if phase is _Phase.IDLE:
            self._doorkeeper.becomes_idle(self)
        elif phase is _Phase.BODY:  # one byte of a head is no work
            self._doorkeeper.becomes_busy(self)
        self._phase, self._since_s = phase, time.monotonic()

    def _stop_listening(self) -> None:
        """The connection ends with the answer that is under way. It is read on, so that a hang-up is noticed."""
        self._is_deaf = True
        self.cycle.keep_alive = False
        self.flow.resume_reading()
        if self.cycle.response_complete:
            self.transport.close()

    def _refuse(self, status: int, message: str, code: str) -> None:
        """Tell the client, unless an answer has begun, and close."""
        self._is_deaf = True
        cycle = self.cycle
        if cycle is None or cycle.response_complete or not cycle.response_started:
            body = ApiError(status, message, code=code).body()
            head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
            self.transport.write(STATUS_LINE[status] + head + body)
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        self.transport.close()
