"""The sender's ledger of one peer: which bytes are staged, in flight, acknowledged, and what goes out next.

Laws of this file:
- A byte is sent only after it was staged, and staged bytes never change; so a repeat is always the same bytes.
- In flight (sent, not acknowledged) is at most the receiver's credit, over all transfers and lanes.
- A lost lane's unacknowledged chunks go back to waiting and leave on any other lane.
- A transfer ends exactly once: committed when every byte is acknowledged, else aborted as a whole.
- Among transfers, the one with the fewest bytes left to send goes first; one that has waited `max_wait_s` since its
  last chunk goes before all, so that long ones are not starved by a stream of short ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from prfaas.core.errors import Refused
from prfaas.core.link.lane_plan import next_chunk_bytes
from prfaas.core.transfer.intervals import IntervalSet
from prfaas.core.wire.node_api import TransferRecord, TransferState

#: A chunk that fails its checksum this often is not bad luck: TCP's own sum catches nearly all of it.
MAX_CHUNK_REPEATS: Final = 8
#: A transfer is at most one request's prefill; a node that stages more has lost its engine.
MAX_TRANSFERS: Final = 4_096
#: Age bound of shortest-first: a user notices a second, and a link serves many short transfers in one.
MAX_WAIT_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Chunk:
    """Half-open byte range [offset, offset + length) of a transfer's image, to go out on one lane."""

    transfer_id: str
    handle: int
    offset: int
    length: int
    is_repeat: bool


@dataclass(eq=False)
class OutboundTransfer:
    """One image on its way. Times are the node's monotonic seconds."""

    transfer_id: str
    num_bytes: int
    opened_s: float
    deadline_s: float
    state: TransferState = TransferState.STAGING
    reason: str | None = None
    handle: int | None = None
    staged: IntervalSet = field(default_factory=IntervalSet)
    waiting: IntervalSet = field(default_factory=IntervalSet)
    acked: IntervalSet = field(default_factory=IntervalSet)
    in_flight: dict[int, tuple[int, int]] = field(default_factory=dict)  #: offset -> (length, lane)
    again: dict[int, int] = field(default_factory=dict)  #: offset -> length of chunks to send once more
    damaged: dict[int, int] = field(default_factory=dict)  #: offset -> how often it came damaged
    bytes_sent: int = 0
    bytes_resent: int = 0
    last_chunk_s: float = 0.0
    first_staged_s: float | None = None
    last_staged_s: float | None = None
    first_sent_s: float | None = None
    finished_s: float | None = None

    @property
    def bytes_left(self) -> int:
        return self.num_bytes - self.acked.size

    @property
    def is_ready(self) -> bool:
        """Has bytes that may go out now."""
        return self.handle is not None and bool(self.waiting or self.again)

    def take(self, max_bytes: int) -> tuple[int, int, bool]:
        """Next (offset, length, is_repeat). A repeat keeps the borders of its first sending: then whatever part of
        it the receiver has, it has whole, and an acknowledgement means one thing."""
        if self.again:
            offset = min(self.again)
            return offset, self.again.pop(offset), True
        interval = self.waiting.first()
        assert interval is not None, self.record()
        offset, length = interval[0], min(interval[1] - interval[0], max_bytes)
        self.waiting.remove(offset, offset + length)
        return offset, length, False

    def record(self) -> TransferRecord:
        """How it is, for whoever asks the node."""

        def since_open(time_s: float | None) -> float | None:
            return None if time_s is None else time_s - self.opened_s

        return TransferRecord(
            transfer_id=self.transfer_id,
            state=self.state,
            reason=self.reason,
            num_bytes=self.num_bytes,
            bytes_staged=self.staged.size,
            bytes_sent=self.bytes_sent,
            bytes_acked=self.acked.size,
            bytes_resent=self.bytes_resent,
            first_staged_s=since_open(self.first_staged_s),
            last_staged_s=since_open(self.last_staged_s),
            first_sent_s=since_open(self.first_sent_s),
            finished_s=since_open(self.finished_s),
        )


class Outbound:
    """Everything on its way to one peer. Synchronous; the shell holds one lock around each call."""

    def __init__(self, chunk_bytes: int, credit_bytes: int) -> None:
        self.chunk_bytes = chunk_bytes
        #: Lanes that send at once; a transfer's last chunks are small, so that these end together.
        self.num_senders = 1
        self.credit_bytes = credit_bytes
        self.bytes_in_flight = 0
        self._live: dict[str, OutboundTransfer] = {}
        self._by_handle: dict[int, OutboundTransfer] = {}

    # -- the engine's side

    def open(self, transfer_id: str, num_bytes: int, now_s: float, deadline_s: float) -> OutboundTransfer:
        """Start a transfer that must be committed by `deadline_s` (absolute). Raises Refused."""
        if transfer_id in self._live:
            raise Refused("exists", f"transfer {transfer_id} is open already")
        if len(self._live) >= MAX_TRANSFERS:
            raise Refused("too_many_transfers", f"this node sends {MAX_TRANSFERS} transfers already")
        transfer = OutboundTransfer(transfer_id, num_bytes, now_s, deadline_s, last_chunk_s=now_s)
        self._live[transfer_id] = transfer
        return transfer

    def stage(self, transfer_id: str, start: int, end: int, now_s: float) -> None:
        """Bytes [start, end) of the image are final and may leave."""
        transfer = self._live.get(transfer_id)
        if transfer is None:
            return
        if not 0 <= start < end <= transfer.num_bytes or transfer.staged.overlaps(start, end):
            self._finish(transfer, TransferState.ABORTED, f"engine staged bytes {start} to {end} wrongly", now_s)
            return
        if transfer.first_staged_s is None:
            transfer.first_staged_s = now_s
        transfer.last_staged_s = now_s
        transfer.staged.add(start, end)
        transfer.waiting.add(start, end)
        if transfer.staged.size == transfer.num_bytes:
            transfer.state = TransferState.SENDING

    def close(self, transfer_id: str, now_s: float) -> OutboundTransfer | None:
        """The engine stages no more. A transfer that is not staged whole is aborted; returns it if so."""
        transfer = self._live.get(transfer_id)
        if transfer is None or transfer.state is TransferState.SENDING:
            return None
        self._finish(transfer, TransferState.ABORTED, "the prefill ended before its KVCache was whole", now_s)
        return transfer

    # -- the lanes' side

    def next_chunk(self, lane: int, now_s: float) -> Chunk | None:
        """What lane `lane` shall send now, or None. The chunk counts as in flight from here on."""
        if not self.has_room:
            return None
        ready = [t for t in self._live.values() if t.is_ready]
        if not ready:
            return None
        transfer = min(ready, key=lambda t: (now_s - t.last_chunk_s < MAX_WAIT_S, t.bytes_left, t.opened_s))
        assert transfer.handle is not None
        unsent = transfer.num_bytes - transfer.bytes_sent + transfer.bytes_resent
        start, length, is_repeat = transfer.take(next_chunk_bytes(self._full_chunk_bytes, unsent, self.num_senders))
        transfer.in_flight[start] = (length, lane)
        self.bytes_in_flight += length
        transfer.bytes_sent += length
        transfer.bytes_resent += length if is_repeat else 0
        transfer.last_chunk_s = now_s
        if transfer.first_sent_s is None:
            transfer.first_sent_s = now_s
        return Chunk(transfer.transfer_id, transfer.handle, start, length, is_repeat)

    @property
    def has_room(self) -> bool:
        """The credit has room for a full chunk."""
        return self.credit_bytes - self.bytes_in_flight >= self._full_chunk_bytes

    @property
    def _full_chunk_bytes(self) -> int:
        return min(self.chunk_bytes, self.credit_bytes)

    def can_send(self) -> bool:
        """Would `next_chunk` give something?"""
        return self.has_room and any(t.is_ready for t in self._live.values())

    def opened(self, transfer_id: str, handle: int) -> None:
        """The peer accepted the transfer under this handle."""
        transfer = self._live.get(transfer_id)
        if transfer is not None and transfer.handle is None:
            transfer.handle = handle
            self._by_handle[handle] = transfer

    def acked(self, handle: int, offset: int, now_s: float) -> OutboundTransfer | None:
        """The peer verified the chunk at `offset`. Returns the transfer if that was its last byte."""
        transfer = self._by_handle.get(handle)
        flight = None if transfer is None else transfer.in_flight.pop(offset, None)
        if transfer is None or flight is None:
            return None
        self.bytes_in_flight -= flight[0]
        transfer.acked.add(offset, offset + flight[0])
        if transfer.bytes_left:
            return None
        self._finish(transfer, TransferState.COMMITTED, None, now_s)
        return transfer

    def nacked(self, handle: int, offset: int, now_s: float) -> OutboundTransfer | None:
        """The chunk came damaged. Send it again, or abort after MAX_CHUNK_REPEATS; returns the transfer if aborted."""
        transfer = self._by_handle.get(handle)
        if transfer is None or offset not in transfer.in_flight:
            return None
        self._requeue(transfer, offset)
        count = transfer.damaged.get(offset, 0) + 1
        transfer.damaged[offset] = count
        if count <= MAX_CHUNK_REPEATS:
            return None
        self._finish(transfer, TransferState.ABORTED, f"chunk at {offset} came damaged {count} times", now_s)
        return transfer

    def is_carrying(self, lane: int) -> bool:
        """Something that went out on `lane` is not answered yet."""
        return any(carrier == lane for t in self._live.values() for _, carrier in t.in_flight.values())

    def lane_lost(self, lane: int) -> int:
        """The lane is gone; what it carried unacknowledged waits again. Returns how many bytes that is."""
        lost = 0
        for transfer in self._live.values():
            for offset in [o for o, (_, carrier) in transfer.in_flight.items() if carrier == lane]:
                lost += transfer.in_flight[offset][0]
                self._requeue(transfer, offset)
        return lost

    # -- endings

    def abort(self, transfer_id: str, reason: str, now_s: float) -> OutboundTransfer | None:
        """Give a transfer up; returns it if it was live."""
        transfer = self._live.get(transfer_id)
        if transfer is not None:
            self._finish(transfer, TransferState.ABORTED, reason, now_s)
        return transfer

    def abort_all(self, reason: str, now_s: float) -> list[OutboundTransfer]:
        """Give everything up, for example when the peer is lost for good."""
        return [t for name in list(self._live) if (t := self.abort(name, reason, now_s)) is not None]

    def expire(self, now_s: float) -> list[OutboundTransfer]:
        """Abort what is past its deadline; returns it."""
        overdue = [name for name, transfer in self._live.items() if now_s >= transfer.deadline_s]
        return [t for name in overdue if (t := self.abort(name, "deadline passed", now_s)) is not None]

    def transfer_of(self, handle: int) -> str:
        """Id of the live transfer with this handle, or empty."""
        transfer = self._by_handle.get(handle)
        return "" if transfer is None else transfer.transfer_id

    def find(self, transfer_id: str) -> OutboundTransfer | None:
        """The live transfer with this id."""
        return self._live.get(transfer_id)

    @property
    def queued_bytes(self) -> int:
        """Of all live transfers, what is not acknowledged; staged or still to be computed."""
        return sum(transfer.bytes_left for transfer in self._live.values())

    @property
    def num_live(self) -> int:
        return len(self._live)

    def live(self) -> list[OutboundTransfer]:
        """Transfers that have not ended."""
        return list(self._live.values())

    def check(self) -> None:
        """Invariants; the message is the transfer's record."""
        flying = 0
        for t in self._live.values():
            in_flight = sum(length for length, _ in t.in_flight.values())
            flying += in_flight
            unsent = t.waiting.size + sum(t.again.values())
            assert unsent + in_flight + t.acked.size == t.staged.size <= t.num_bytes, t.record()
            assert (t.staged.size == t.num_bytes) == (t.state is TransferState.SENDING), t.record()
        assert flying == self.bytes_in_flight >= 0, (flying, self.bytes_in_flight)

    def _requeue(self, transfer: OutboundTransfer, offset: int) -> None:
        length, _ = transfer.in_flight.pop(offset)
        self.bytes_in_flight -= length
        transfer.again[offset] = length

    def _finish(self, transfer: OutboundTransfer, state: TransferState, reason: str | None, now_s: float) -> None:
        transfer.state, transfer.reason, transfer.finished_s = state, reason, now_s
        self.bytes_in_flight -= sum(length for length, _ in transfer.in_flight.values())
        transfer.in_flight.clear()
        del self._live[transfer.transfer_id]
        if transfer.handle is not None:
            del self._by_handle[transfer.handle]
