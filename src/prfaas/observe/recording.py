"""What requests were like, without what they said: a trace in Mooncake's format, made while a gateway runs.

Laws of this file:
- A block's id is a keyed hash of its name, with a key that this gateway's life alone knows: equal ids in one life mean
  equal prefixes, and nothing else can be learned from them.
- Blocks are `BLOCK_TOKENS` tokens long, or as long as the engine's if these are longer: of shorter ones every so many
  is taken, since each names everything before it.
- At most `MAX_IDS` ids and `MAX_REQUESTS` requests are kept, the last ones.
- A request that the gateway could not count, or that was refused, is counted as left out.
"""

from __future__ import annotations

import hashlib
import secrets
from array import array
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from prfaas.core.cache.hashing import TokenChain
from prfaas.core.control import actions as a
from prfaas.core.control import events as e
from prfaas.observe.journal import Noted

BLOCK_TOKENS: Final = 512
MAX_REQUESTS: Final = 20_000
MAX_IDS: Final = 2_000_000
#: 2^52 is a whole number in every JSON reader.
_ID_BITS: Final = 52


@dataclass(slots=True)
class _Begun:
    arrived_s: float
    num_tokens: int | None = None
    block_tokens: int = 0
    ids: array[int] | None = None
    output_tokens: int | None = None
    is_ok: bool = False


@dataclass(frozen=True, slots=True)
class Recorded:
    """One answered request. `output_tokens` is 0 where the answer did not say."""

    number: int
    arrived_s: float
    num_tokens: int
    output_tokens: int
    block_tokens: int
    ids: array[int]

    def line(self, began_s: float) -> dict[str, object]:
        """As Mooncake has it; times are since `began_s`."""
        return {
            "timestamp": max(0, round((self.arrived_s - began_s) * 1e3)),
            "input_length": self.num_tokens,
            "output_length": self.output_tokens,
            "hash_ids": list(self.ids),
        }


class Recording:
    """A fold over the journal."""

    def __init__(self, key: bytes | None = None) -> None:
        self._key = secrets.token_bytes(16) if key is None else key
        #: Tells one life of a gateway from another.
        self.life = hashlib.blake2b(b"life", key=self._key, digest_size=8).hexdigest()
        self._open: dict[str, _Begun] = {}
        self.requests: deque[Recorded] = deque()
        self._num_ids = 0
        self.num_recorded = self.num_left_out = self.num_without_usage = 0
        self.began_s: float | None = None

    def note(self, now_s: float, event: Noted, actions: Sequence[a.Action]) -> None:
        """See `Fold`."""
        match event:
            case e.RequestArrived(request_id):
                self.began_s = now_s if self.began_s is None else self.began_s
                self._open[request_id] = _Begun(now_s)
            case e.PromptCounted(request_id, num_tokens, chains) if request_id in self._open:
                self._counted(self._open[request_id], num_tokens, chains)
            case e.AnswerEnded(request_id, outcome, _, _, completion_tokens) if request_id in self._open:
                begun = self._open[request_id]
                begun.is_ok, begun.output_tokens = outcome == "ok", completion_tokens
        for action in actions:
            if isinstance(action, a.Close):
                self._close(action.request_id)

    def after(self, number: int, most: int) -> list[Recorded]:
        """At most so many, from the first whose number is greater."""
        found = []
        for request in reversed(self.requests):
            if request.number <= number:
                break
            found.append(request)
        return found[::-1][:most]

    def _counted(self, begun: _Begun, num_tokens: int, chains: Mapping[int, TokenChain]) -> None:
        begun.num_tokens = num_tokens
        if not chains:
            return
        chain = chains[min(chains)]
        step = max(1, -(-BLOCK_TOKENS // chain.block_tokens))
        begun.block_tokens = step * chain.block_tokens
        begun.ids = array("Q", map(self._id, chain.hashes[step - 1 :: step]))

    def _id(self, name: bytes) -> int:
        digest = hashlib.blake2b(name, key=self._key, digest_size=8).digest()
        return int.from_bytes(digest, "big") >> (64 - _ID_BITS)

    def _close(self, request_id: str) -> None:
        begun = self._open.pop(request_id, None)
        if begun is None:
            return
        if not begun.is_ok or not begun.num_tokens:
            self.num_left_out += 1
            return
        self.num_recorded += 1
        self.num_without_usage += begun.output_tokens is None
        ids = begun.ids or array("Q")
        self.requests.append(
            Recorded(
                self.num_recorded, begun.arrived_s, begun.num_tokens, begun.output_tokens or 0, begun.block_tokens, ids
            )
        )
        self._num_ids += len(ids)
        while len(self.requests) > MAX_REQUESTS or (self._num_ids > MAX_IDS and len(self.requests) > 1):
            self._num_ids -= len(self.requests.popleft().ids)
