"""A link whose lane lands at once: what is staged at one node is in the other's landing when `stage` returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prfaas.core.errors import Refused
from prfaas.core.transfer.extents import Extent
from prfaas.core.transfer.outbound import Chunk, OutboundTransfer
from prfaas.core.wire.frames import FrameType, Header
from prfaas.core.wire.lane import Received
from prfaas.core.wire.messages import Abort, Open, Opened
from prfaas.transport.data_plane import DataPlane
from prfaas.transport.duties import ChunkWork, LaneDesk
from prfaas.transport.outbound import PeerLink


def _nowhere() -> None:
    raise OSError("an instant link dials nobody")


class InstantLink(PeerLink):
    """The real link, with one lane that has neither socket nor thread: its work is done by whoever gives it.
    `sink` gives the receiving node's half, or None while that node is dead."""

    def __init__(
        self,
        plane: DataPlane,
        peer: str,
        on_done: Callable[[OutboundTransfer], None],
        sink: Callable[[], DataPlane | None],
    ) -> None:
        super().__init__(plane, peer, _nowhere, on_done)  # type: ignore[arg-type]
        self._sink = sink
        self._desk = LaneDesk(plane.new_lane_number(), 0, is_up=True)

    @property
    def lanes_up(self) -> int:
        return 0 if self._sink() is None else self.plane.limits.num_lanes

    def start(self) -> None:
        """There is nothing to dial."""

    def open(self, message: Open, extent: Extent, deadline_s: float) -> None:
        if self._sink() is None:
            raise Refused("peer_down", f"node {self.peer} cannot be reached: it is dead")
        super().open(message, extent, deadline_s)
        self._work()

    def stage(self, transfer_id: str, ranges: Sequence[tuple[int, int]]) -> None:
        super().stage(transfer_id, ranges)
        self._work()

    def close_transfer(self, transfer_id: str) -> None:
        super().close_transfer(transfer_id)
        self._work()

    def abort(self, transfer_id: str, reason: str) -> None:
        super().abort(transfer_id, reason)
        self._work()

    def _work(self) -> None:
        sent: Chunk | None = None
        while (sink := self._sink()) is not None:
            # A ping that is due at once: with nothing to send, the link does not wait for something.
            work = self.next_work(self._desk, sent, ping_at_s=0.0)
            sent = None
            if isinstance(work, Open):
                self._open_at(sink, work)
            elif isinstance(work, Abort):
                self._abort_at(sink, work)
            elif isinstance(work, ChunkWork):
                sent = work.chunk
                write_chunk(sink, self._sender, sent.handle, sent.offset, work.memory)
                self.answered(Received(_header(FrameType.ACK, sent.handle, sent.offset)))
            else:
                return

    def _open_at(self, sink: DataPlane, asked: Open) -> None:
        try:
            with sink.lock:
                landing = sink.ledgers.landings.open(
                    self._sender, asked.transfer_id, asked.token, asked.num_bytes, asked.fingerprint
                )
        except Refused as refused:
            abort = Abort(asked.transfer_id, "", refused.code, refused.message)
            self.answered(Received(_header(FrameType.ABORT), abort))
            return
        self.answered(Received(_header(FrameType.OPENED, landing.handle), Opened(asked.transfer_id)))
        sink.on_change(asked.transfer_id)

    def _abort_at(self, sink: DataPlane, abort: Abort) -> None:
        with sink.lock:
            landing = sink.ledgers.landings.find(abort.transfer_id)
            if landing is not None and landing.token == abort.token:
                sink.ledgers.landings.drop(abort.transfer_id, f"sender gave up: {abort.message}")
        sink.on_change(abort.transfer_id)

    @property
    def _sender(self) -> str:
        return self.plane.identity.name


def write_chunk(sink: DataPlane, sender: str, handle: int, offset: int, source: memoryview) -> None:
    """What a lane does with one good chunk."""
    landings = sink.ledgers.landings
    with sink.lock:
        place = landings.begin_chunk(sender, 0, handle, offset, len(source))
    if isinstance(place, Extent):
        sink.memory(place)[:] = source
    with sink.lock:
        landings.end_chunk(sender, 0, handle, offset, len(source), good=True, now_s=sink.now_s())
    sink.landed(handle)


def _header(kind: FrameType, handle: int = 0, offset: int = 0) -> Header:
    return Header(kind, handle, offset, 0, 0, 0)
