"""What a lane asks of the link that it belongs to, and what it tells it. Lanes know nothing else of their link.

Every method may be called from any lane's thread, without a lock.
"""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from prfaas.core.transfer.outbound import Chunk
from prfaas.core.wire.lane import Received
from prfaas.core.wire.messages import Message, Welcome


@dataclass(frozen=True, slots=True)
class ChunkWork:
    """Send this chunk, whose staged bytes are `memory`."""

    chunk: Chunk
    memory: memoryview


class Errand(Enum):
    """Work without a payload. LEAVE: the lane has nothing more to do, it has ended or retired or the link stops."""

    PING = "ping"
    PONG = "pong"
    LEAVE = "leave"


Work = Message | ChunkWork | Errand


@dataclass(slots=True)
class LaneDesk:
    """What a link must know of one lane to give it work. The lane's threads write it, the link reads it.

    `number` is unique within the node's life and stays when the lane is dialled again; `place` is its place among the
    link's lanes, from 0."""

    number: int
    place: int
    is_up: bool = False
    #: Takes no more chunks, and is done when those under way are answered.
    is_retiring: bool = False
    #: Pings of the peer that the lane has not answered yet.
    pongs_due: int = 0
    #: Nothing has come since the lane's last ping. It sends no other: the next kernel acknowledges each, and behind a
    #: proxy that is not the peer's.
    is_pinged: bool = False


class LaneDuties(Protocol):
    """A link, as its lanes see it."""

    peer: str
    #: Set when the link stops.
    stopping: threading.Event

    def dial(self) -> socket.socket:
        """A new connection. Raises OSError."""

    def congestion_for(self, place: int, *, is_short: bool) -> str:
        """The congestion control of a new connection; empty leaves it to the kernel."""

    def greeted(self, welcome: Welcome) -> None:
        """The peer has taken a lane on, with these limits."""

    def refused(self, reason: str) -> bool:
        """A lane cannot come up. True if the last one was told something else."""

    def ended(self, reason: str) -> None:
        """A connection has ended."""

    def next_work(self, lane: LaneDesk, sent: Chunk | None, ping_at_s: float) -> Work:
        """Wait for something to send; at `ping_at_s` that is a ping. `sent` is the chunk that the lane has handed to
        its socket since it asked last: told in the same step, so that a lane whose memory is warm keeps its turn."""

    def answered(self, received: Received) -> None:
        """The peer has accepted or refused a chunk or a transfer."""

    def lost(self, lane: LaneDesk) -> None:
        """The connection is gone: what it carried unanswered goes out on others."""

    def wake(self) -> None:
        """A lane's desk has changed: let it ask again."""
