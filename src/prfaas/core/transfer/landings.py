"""Landings: space reserved on the decode side's node, and the ledger of what has come into it.

Laws of this file:
- A landing is written only by a sender that showed its token, only where nothing verified lies yet, and only in
  RESERVED and RECEIVING. It becomes LANDED when, and only when, every byte is verified.
- A landing is claimed only by an engine that shows the claim secret and computes the digest of the reserved prompt.
  Sender and loader know different secrets: whoever may write a landing may not read it.
- A landing that nobody renews expires, unless an engine has claimed it; a claim lives as long as its engine.
- Two lanes never write the same bytes. A chunk whose place another lane is still writing waits until that lane has
  ended: it is neither damaged nor refused, so nothing is sent again for it.
- Its extent is freed exactly once, and never while a lane still writes into it (`writing`) or an engine reads it.
- Final records are kept, bounded, so that whoever asks late still gets an answer.
"""

from __future__ import annotations

import hmac
from collections import OrderedDict
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from prfaas.core.errors import Refused
from prfaas.core.transfer.extents import Extent, ExtentAllocator
from prfaas.core.transfer.intervals import IntervalSet
from prfaas.core.wire.node_api import FINAL_STATES, OPEN_STATES, LandingRecord, LandingState

#: Enough for a gateway that asks minutes late at hundreds of requests a second; about 1 KiB each.
MAX_FINAL_RECORDS: Final = 10_000
#: A landing is reserved per request in flight; a node that holds more has lost its gateway.
MAX_LANDINGS: Final = 4_096


@dataclass(frozen=True, slots=True, eq=False)
class ClaimKey:
    """What only the gateway's decode leg can show: the claim secret, and a prompt with this `token_digest`."""

    num_prompt_tokens: int
    token_digest: str
    secret: str = field(repr=False)

    def opens(self, shown: ClaimKey) -> bool:
        """Whether `shown` is this key. Every part is compared, whichever differs."""
        same_length = self.num_prompt_tokens == shown.num_prompt_tokens
        return same_length & _same(self.token_digest, shown.token_digest) & _same(self.secret, shown.secret)


@dataclass(eq=False)
class Landing:
    """One reserved image. Times are the node's monotonic seconds."""

    transfer_id: str
    token: str = field(repr=False)
    claim_key: ClaimKey
    handle: int
    extent: Extent
    skip_tokens: int
    fingerprint: str
    reserved_s: float
    lease_end_s: float
    state: LandingState = LandingState.RESERVED
    reason: str | None = None
    verified: IntervalSet = field(default_factory=IntervalSet)
    writing: dict[int, tuple[int, int]] = field(default_factory=dict)
    sender: str | None = None
    claimed_by: str | None = None
    landed_s: float | None = None
    tokens_loaded: int | None = None
    tokens_recomputed: int | None = None
    bytes_repeated: int = 0
    extent_freed: bool = False

    def record(self) -> LandingRecord:
        """How it is, as the gateway is told."""
        return LandingRecord(
            transfer_id=self.transfer_id,
            state=self.state,
            reason=self.reason,
            num_bytes=self.extent.size,
            bytes_landed=self.verified.size,
            num_prompt_tokens=self.claim_key.num_prompt_tokens,
            skip_tokens=self.skip_tokens,
            tokens_loaded=self.tokens_loaded,
            tokens_recomputed=self.tokens_recomputed,
            bytes_resent=self.bytes_repeated,
            landed_after_s=None if self.landed_s is None else self.landed_s - self.reserved_s,
        )


@dataclass(frozen=True, slots=True)
class Occupied:
    """These lanes are writing where a chunk belongs. A sender repeats a chunk only after it gave its lane up, so the
    shell closes them, waits until one has ended, and asks again; the chunk's payload stays unread until then."""

    lanes: tuple[int, ...]


class Landings:
    """All landings of one node. Every method is synchronous; the shell holds one lock around each call."""

    def __init__(
        self, arena: ExtentAllocator, *, max_landings: int = MAX_LANDINGS, max_final_records: int = MAX_FINAL_RECORDS
    ) -> None:
        self._arena = arena
        self._max_landings = max_landings
        self._max_final_records = max_final_records
        self._live: dict[str, Landing] = {}
        self._by_handle: dict[int, Landing] = {}
        self._final: OrderedDict[str, Landing] = OrderedDict()
        self._lingering: set[Landing] = set()

    # -- the gateway's side

    def reserve(
        self,
        transfer_id: str,
        *,
        token: str,
        claim_key: ClaimKey,
        handle: int,
        num_bytes: int,
        skip_tokens: int,
        fingerprint: str,
        now_s: float,
        lease_s: float,
    ) -> Landing:
        """Reserve space. Raises Refused with `exists`, `too_many_landings` or `arena_full`."""
        if transfer_id in self._live or transfer_id in self._final:
            raise Refused("exists", "this transfer has a landing already")
        if len(self._live) >= self._max_landings:
            raise Refused("too_many_landings", f"this node holds {self._max_landings} landings already")
        extent = self._arena.allocate(num_bytes)
        if extent is None:
            free = self._arena.free_bytes
            raise Refused("arena_full", f"no room for {num_bytes} bytes: {free} of {self._arena.capacity} are free")
        landing = Landing(
            transfer_id, token, claim_key, handle, extent, skip_tokens, fingerprint, now_s, now_s + lease_s
        )
        self._live[transfer_id] = self._by_handle[handle] = landing
        return landing

    def find(self, transfer_id: str) -> Landing | None:
        """Live or remembered landing."""
        return self._live.get(transfer_id) or self._final.get(transfer_id)

    def known(self) -> list[Landing]:
        """Every landing that `find` would find, live ones last."""
        return [*self._final.values(), *self._live.values()]

    def by_handle(self, handle: int) -> Landing | None:
        """The landing that lanes know by this handle, until its extent is freed."""
        return self._by_handle.get(handle)

    def renew(self, transfer_id: str, now_s: float, lease_s: float) -> Landing | None:
        """Let the lease run from now; no effect on a final landing."""
        landing = self._live.get(transfer_id)
        if landing is not None:
            landing.lease_end_s = max(landing.lease_end_s, now_s + lease_s)
        return self.find(transfer_id)

    def drop(self, transfer_id: str, reason: str) -> Landing | None:
        """Give a landing up. One that an engine is loading stays until the engine lets go."""
        landing = self._live.get(transfer_id)
        if landing is not None and landing.state is not LandingState.CLAIMED:
            self._finish(landing, LandingState.ABORTED, reason)
        return self.find(transfer_id)

    def expire(self, now_s: float) -> list[Landing]:
        """End every unclaimed landing whose lease ran out; returns them."""
        overdue = [
            landing
            for landing in self._live.values()
            if landing.state is not LandingState.CLAIMED and now_s >= landing.lease_end_s
        ]
        for landing in overdue:
            self._finish(landing, LandingState.EXPIRED, "lease ran out")
        return overdue

    # -- the lanes' side

    def open(self, sender: str, transfer_id: str, token: str, num_bytes: int, fingerprint: str) -> Landing:
        """A sender asks to write. Idempotent for the same sender. Raises Refused; the code goes into the Abort."""
        landing = self._live.get(transfer_id)
        if landing is None or not _same(landing.token, token):
            # One answer for both, so that ids cannot be probed without their tokens.
            raise Refused("unknown_landing", f"no landing for transfer {transfer_id} with that token")
        if landing.fingerprint != fingerprint:
            raise Refused("layout_mismatch", "the two engines' KV layouts differ; compare model, dtype and block size")
        if landing.extent.size != num_bytes:
            raise Refused("size_mismatch", f"landing holds {landing.extent.size} bytes, the sender has {num_bytes}")
        if landing.state not in OPEN_STATES or landing.sender not in (None, sender):
            raise Refused("not_open", f"landing is {landing.state.value}")
        landing.sender = sender
        landing.state = LandingState.RECEIVING
        return landing

    def begin_chunk(self, sender: str, lane: int, handle: int, offset: int, length: int) -> Extent | Occupied | None:
        """Where lane `lane` shall receive this chunk: an arena extent, nowhere yet, or None for scratch.

        Scratch means that its bytes are not wanted: a duplicate, or the landing is over. The payload must be read
        then too, to stay in step with the stream.
        """
        landing = self._by_handle.get(handle)
        if landing is None or landing.sender != sender or landing.state is not LandingState.RECEIVING:
            return None
        end = offset + length
        if end > landing.extent.size or landing.verified.overlaps(offset, end):
            return None
        rivals = tuple(rival for rival, (start, stop) in landing.writing.items() if start < end and offset < stop)
        if rivals:
            return Occupied(rivals)
        landing.writing[lane] = (offset, end)
        return Extent(landing.extent.start + offset, length)

    def end_chunk(
        self, sender: str, lane: int, handle: int, offset: int, length: int, *, good: bool, now_s: float
    ) -> ChunkVerdict:
        """A chunk's payload has been read (into arena or scratch) and its checksum compared."""
        landing = self._by_handle.get(handle)
        if landing is None or landing.sender != sender:
            return ChunkVerdict.UNKNOWN
        in_arena = landing.writing.pop(lane, None) is not None
        self._free_if_idle(landing)
        if landing.state in FINAL_STATES:
            return ChunkVerdict.UNKNOWN
        if not good:
            return ChunkVerdict.DAMAGED
        if not in_arena:
            landing.bytes_repeated += length
            wanted = not landing.verified.contains(offset, offset + length)
            return ChunkVerdict.MISPLACED if wanted else ChunkVerdict.ACCEPTED
        landing.verified.add(offset, offset + length)
        if landing.verified.size == landing.extent.size:
            landing.state, landing.landed_s = LandingState.LANDED, now_s
            return ChunkVerdict.LANDED
        return ChunkVerdict.ACCEPTED

    def lane_lost(self, lane: int) -> None:
        """The lane's thread is gone; it writes nowhere any more."""
        for landing in [*self._by_handle.values()]:
            if landing.writing.pop(lane, None) is not None:
                self._free_if_idle(landing)

    def sender_gone(self, sender: str, reason: str) -> list[Landing]:
        """Abort every unfinished landing of a sender that is gone for good; returns them."""
        stranded = [x for x in self._live.values() if x.sender == sender and x.state is LandingState.RECEIVING]
        for landing in stranded:
            self._finish(landing, LandingState.ABORTED, reason)
        return stranded

    # -- the engine's side

    def claim(self, transfer_id: str, engine: str, key: ClaimKey) -> Landing:
        """The decode engine will load it. Idempotent per engine. Raises Refused: `unknown_landing` unless id and key
        belong together, then `not_landed` unless it has landed."""
        known = self.find(transfer_id)
        if known is None or not known.claim_key.opens(key):
            # One answer for all, so that ids, prompts and secrets cannot be probed one by one.
            raise Refused("unknown_landing", "no landing here has that transfer id, claim secret and prompt")
        again = known.state is LandingState.CLAIMED and known.claimed_by == engine
        if not (known.state is LandingState.LANDED or again):
            raise Refused("not_landed", f"the landing cannot be loaded: it is {known.state.value}")
        known.state, known.claimed_by = LandingState.CLAIMED, engine
        return known

    def consumed(self, transfer_id: str, engine: str, tokens_loaded: int, tokens_recomputed: int) -> bool:
        """The engine has loaded what it wanted and reads the arena no more. False if its claim had ended: then what
        it loaded must not be used."""
        landing = self._live.get(transfer_id)
        if landing is None or landing.state is not LandingState.CLAIMED or landing.claimed_by != engine:
            return False
        landing.tokens_loaded, landing.tokens_recomputed = tokens_loaded, tokens_recomputed
        self._finish(landing, LandingState.CONSUMED, None)
        return True

    def declined(self, transfer_id: str, secret: str, reason: str, tokens_recomputed: int) -> Landing | None:
        """The engine will not load it, and computes the prompt itself. Without the claim secret nothing happens: a
        request that only names somebody's landing must not end it. The prompt may differ; that is why it declines."""
        landing = self.find(transfer_id)
        if landing is None or not _same(landing.claim_key.secret, secret):
            return None
        if landing.state is not LandingState.CONSUMED:
            landing.tokens_loaded, landing.tokens_recomputed = 0, tokens_recomputed
            if landing.state not in FINAL_STATES:
                self._finish(landing, LandingState.ABORTED, reason)
        return landing

    def engine_gone(self, engine: str) -> list[Landing]:
        """Free what a dead engine was loading; returns those landings."""
        held = [x for x in self._live.values() if x.claimed_by == engine]
        for landing in held:
            self._finish(landing, LandingState.ABORTED, "the decode engine disconnected while it was loading")
        return held

    # -- bookkeeping

    def count_by_state(self) -> dict[LandingState, int]:
        """Live landings per state."""
        counts = dict.fromkeys((s for s in LandingState if s not in FINAL_STATES), 0)
        for landing in self._live.values():
            counts[landing.state] += 1
        return counts

    @property
    def num_final(self) -> int:
        """Landings that are over and remembered."""
        return len(self._final)

    def extents(self) -> list[Extent]:
        """What landings hold of the arena, those that are over but still written included."""
        return [landing.extent for landing in (*self._live.values(), *self._lingering)]

    def receiving_senders(self) -> set[str]:
        """Senders with unfinished landings here."""
        return {x.sender for x in self._live.values() if x.sender and x.state is LandingState.RECEIVING}

    def check(self) -> None:
        """Invariants; the message is the landing's record."""
        for landing in self._live.values():
            assert landing.state not in FINAL_STATES and not landing.extent_freed, landing.record()
            complete = landing.verified.size == landing.extent.size
            assert complete == (landing.state in (LandingState.LANDED, LandingState.CLAIMED)), landing.record()
        held = len(self._live) + len(self._lingering)
        assert held <= self._arena.num_live, f"{held} landings hold {self._arena.num_live} extents"
        for landing in self._lingering:
            assert landing.writing and not landing.extent_freed, landing.record()
        assert all(landing.extent_freed or landing in self._lingering for landing in self._final.values())

    def _finish(self, landing: Landing, state: LandingState, reason: str | None) -> None:
        landing.state, landing.reason = state, reason
        del self._live[landing.transfer_id]
        self._final[landing.transfer_id] = landing
        while len(self._final) > self._max_final_records:
            self._final.popitem(last=False)
        self._lingering.add(landing)
        self._free_if_idle(landing)

    def _free_if_idle(self, landing: Landing) -> None:
        if landing in self._lingering and not landing.writing:
            self._lingering.remove(landing)
            self._arena.free(landing.extent)
            landing.extent_freed = True
            self._by_handle.pop(landing.handle, None)


def _same(ours: str, shown: str) -> bool:
    # In a time that does not tell how many characters are right.
    return hmac.compare_digest(ours.encode("utf-8", "surrogatepass"), shown.encode("utf-8", "surrogatepass"))


class ChunkVerdict(StrEnum):
    """What became of a chunk. The receiver answers ACK to the first two, NACK to the next two, Abort to the last.
    `misplaced`: it has not the borders of its first sending, or ends behind the landing."""

    ACCEPTED = "accepted"
    LANDED = "landed"
    DAMAGED = "damaged"
    MISPLACED = "misplaced"
    UNKNOWN = "unknown"
