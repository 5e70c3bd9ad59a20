"""What each link between two clusters carries: what the file says, corrected by what the sending nodes see.

Laws of this file:
- A rate falls at once with what is seen, and rises slowly while nothing is seen: it doubles in `DOUBLES_S`. So a link
  that recovers is used again little by little, and one that only seems to has cost little.
- Each time that such a hope turns out wrong, it doubles half as fast, down to `MAX_DOUBLES_S`: whoever tries costs a
  request some seconds. Once more crosses than `PROVES` times what the link had fallen to, it is believed at once.
- What is seen counts while the link holds a sender up: it says that the link is pressed or congested, and its host has
  bytes that it cannot get rid of, or bytes do not arrive in time. Then the link carries what all its senders deliver
  together, or what those that are held up say that it can.
- A sender whose host has nothing left to send delivers what its engine makes, whatever round trips are like. That says
  nothing of the link.
- A sender that is congested and cannot get rid of its bytes delivers what the link carries for it, whatever it took the
  capacity for before: that is a maximum of the last minutes, and links become slower.
- What is seen to arrive, by the receiver's word, goes before all that: a socket may take in, and a proxy acknowledge,
  what will not arrive for long.
- What is old counts as not seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from prfaas.core.control import events as e
from prfaas.core.portable_math import exp2
from prfaas.core.topology import Topology

#: Ten times as much is reached within seven seconds.
DOUBLES_S: Final = 2.0
MAX_DOUBLES_S: Final = 8.0
#: Beyond that every rate is what the file says.
_MAX_DOUBLINGS: Final = 64.0
#: A rate that has grown by less was no hope: what is delivered varies.
HOPES: Final = 1.25
PROVES: Final = 2.0
#: The verdict of a link that holds nobody up.
CLEAR: Final = "clear"
#: Of one on which bytes queue in the network.
CONGESTED: Final = "congested"
#: Nodes say how their links are once a second; whoever has missed five words is not heard.
STALE_S: Final = 5.0
#: What is older is taken out of the sums so often.
SWEEP_EVERY_S: Final = 1.0

Pair = tuple[str, str]


@dataclass(slots=True)
class _Rate:
    """`low_bytes_per_s`: what it fell to last."""

    bytes_per_s: float
    as_of_s: float
    low_bytes_per_s: float
    doubles_s: float = DOUBLES_S

    def fell(self, bytes_per_s: float, now_s: float) -> None:
        if self.bytes_per_s > HOPES * self.low_bytes_per_s:
            self.doubles_s = min(2 * self.doubles_s, MAX_DOUBLES_S)
        self.bytes_per_s = self.low_bytes_per_s = bytes_per_s
        self.as_of_s = now_s

    def crosses(self, bytes_per_s: float) -> None:
        """So much does."""
        if bytes_per_s > PROVES * self.low_bytes_per_s:
            self.low_bytes_per_s, self.doubles_s = bytes_per_s, DOUBLES_S
            self.bytes_per_s = max(self.bytes_per_s, bytes_per_s)


class _Said:
    """What the nodes at one link said last. A link may have ten thousand pairs of them, so that sums are kept."""

    __slots__ = ("_delivered_bytes_per_s", "_held_up", "_last", "_num_deliver", "_swept_s")

    def __init__(self) -> None:
        #: By pair of instances: the word, and when.
        self._last: dict[Pair, tuple[e.LinkSeen, float]] = {}
        self._held_up: dict[Pair, None] = {}
        #: How many say what they deliver, and the sum.
        self._num_deliver = 0
        self._delivered_bytes_per_s = 0.0
        self._swept_s = -math.inf

    def queued_bytes(self, now_s: float) -> int:
        """What all who are held up have still to send."""
        last = map(self._last.__getitem__, self._held_up)
        return sum(seen.queued_bytes or 0 for seen, at_s in last if now_s - at_s <= STALE_S)

    def left_bytes(self, now_s: float) -> dict[str, int]:
        """What is missing, by transfer, of all who are held up."""
        last = map(self._last.__getitem__, self._held_up)
        return {name: left for seen, at_s in last if now_s - at_s <= STALE_S for name, left in seen.left_bytes.items()}

    @property
    def holds_up(self) -> bool:
        """Somebody said so last, however long ago."""
        return bool(self._held_up)

    @property
    def delivered_bytes_per_s(self) -> float:
        """By all together."""
        return self._delivered_bytes_per_s

    def take(self, seen: e.LinkSeen, now_s: float) -> None:
        names = seen.source, seen.target
        self._forget(names)
        self._last[names] = seen, now_s
        crosses = _crosses(seen)
        if crosses is not None:
            self._num_deliver += 1
            self._delivered_bytes_per_s += crosses
        if _is_held_up(seen):
            self._held_up[names] = None

    def lost(self, source: str) -> None:
        for names in [names for names in self._last if names[0] == source]:
            self._forget(names)

    def bytes_per_s(self, now_s: float) -> float | None:
        """What crosses, or could, while somebody is held up; None if nobody is."""
        if not self._held_up:
            return None
        if now_s - self._swept_s >= SWEEP_EVERY_S:
            self._sweep(now_s)
        fresh = [seen for seen, at_s in map(self._last.__getitem__, self._held_up) if now_s - at_s <= STALE_S]
        could = [rate for rate in map(_could, fresh) if rate is not None]
        if not fresh or not (could or self._num_deliver):
            return None
        return max(math.fsum(could), self._delivered_bytes_per_s)

    def _sweep(self, now_s: float) -> None:
        self._swept_s = now_s
        for names in [names for names, (_, at_s) in self._last.items() if now_s - at_s > STALE_S]:
            self._forget(names)

    def _forget(self, names: Pair) -> None:
        seen, _ = self._last.pop(names, (None, 0.0))
        self._held_up.pop(names, None)
        crosses = None if seen is None else _crosses(seen)
        if crosses is not None:
            self._num_deliver -= 1
            # Sums of floats drift; of nothing the sum is nothing.
            left = max(0.0, self._delivered_bytes_per_s - crosses)
            self._delivered_bytes_per_s = left if self._num_deliver else 0.0


def _is_held_up(seen: e.LinkSeen) -> bool:
    """By the link. Where nobody says what the host has left to send, whatever is queued counts."""
    if seen.verdict == CLEAR or not seen.queued_bytes:
        return False
    return seen.unsent_bytes != 0 or seen.arrives_bytes_per_s is not None


def _crosses(seen: e.LinkSeen) -> float | None:
    """What one sender gets across."""
    return seen.delivered_bytes_per_s if seen.arrives_bytes_per_s is None else seen.arrives_bytes_per_s


def _could(seen: e.LinkSeen) -> float | None:
    """What one sender that is held up could send."""
    if seen.arrives_bytes_per_s is not None:
        return seen.arrives_bytes_per_s
    if seen.verdict == CONGESTED and seen.unsent_bytes and seen.delivered_bytes_per_s is not None:
        return seen.delivered_bytes_per_s
    return seen.capacity_bytes_per_s


class LinkRates:
    """By source and target cluster. A link of which nothing is known has no limit."""

    def __init__(self) -> None:
        self._given: dict[Pair, float] = {}
        self._rates: dict[Pair, _Rate] = {}
        self._said: dict[Pair, _Said] = {}

    def apply(self, topology: Topology) -> None:
        """The links are these from now on."""
        self._given = {
            (link.source, link.target): math.inf if link.bytes_per_s is None else link.bytes_per_s
            for link in topology.links
        }
        self._rates = {pair: rate for pair, rate in self._rates.items() if pair in self._given}
        self._said = {pair: said for pair, said in self._said.items() if pair in self._given}

    def saw(self, pair: Pair, seen: e.LinkSeen, now_s: float) -> bool:
        """A node of cluster `pair[0]` has said so. Returns True if the rate fell by a tenth or more."""
        if pair not in self._given:
            return False
        before = self.bytes_per_s(pair, now_s)
        said = self._said.setdefault(pair, _Said())
        said.take(seen, now_s)
        is_seen = said.bytes_per_s(now_s)
        rate = self._rates.get(pair)
        if is_seen is not None and is_seen < before:
            if rate is None:
                self._rates[pair] = _Rate(is_seen, now_s, is_seen)
            else:
                rate.fell(is_seen, now_s)
            return is_seen <= 0.9 * before
        if rate is not None:
            rate.crosses(said.delivered_bytes_per_s)
        return False

    def lost(self, source: str) -> None:
        """Instance `source` says nothing any more."""
        for said in self._said.values():
            said.lost(source)

    def bytes_per_s(self, pair: Pair, now_s: float) -> float:
        """inf if nothing limits it, as far as is known."""
        given = self._given.get(pair, math.inf)
        rate = self._rates.get(pair) if self._rates else None
        if rate is None:
            return given
        said = self._said.get(pair)
        bound = None if said is None else said.bytes_per_s(now_s)
        passed_s = now_s - rate.as_of_s
        if passed_s > 0:
            # A floor, or a link that once gave nothing would never be tried again.
            least = 1e-3 * given if given < math.inf else 1e6
            grown = max(rate.bytes_per_s, least) * exp2(min(passed_s / rate.doubles_s, _MAX_DOUBLINGS))
            rate.bytes_per_s, rate.as_of_s = min(grown, given if bound is None else max(bound, rate.bytes_per_s)), now_s
        if rate.bytes_per_s >= given:
            del self._rates[pair]
            return given
        return rate.bytes_per_s

    @property
    def some_are_slow(self) -> bool:
        """Whether any carries less than the file says, as far as is known."""
        return bool(self._rates)

    def is_slow(self, pair: Pair) -> bool:
        """Whether this one does."""
        return pair in self._rates

    @property
    def are_as_given(self) -> bool:
        """Every rate is what the file says, and nobody is held up."""
        return not self._rates and not any(said.holds_up for said in self._said.values())

    def queued_bytes(self, pair: Pair, now_s: float) -> int:
        """What all senders that are held up have still to send, as they said last."""
        said = self._said.get(pair)
        return 0 if said is None else said.queued_bytes(now_s)

    def left_bytes(self, pair: Pair, now_s: float) -> Mapping[str, int]:
        """What is missing of transfers, as far as their senders have said."""
        said = self._said.get(pair)
        return {} if said is None else said.left_bytes(now_s)

    def given(self, pair: Pair) -> float:
        """What the file says; inf if it does not."""
        return self._given.get(pair, math.inf)

    def shown(self, now_s: float) -> Mapping[Pair, float]:
        """All of them."""
        return {pair: self.bytes_per_s(pair, now_s) for pair in self._given}
