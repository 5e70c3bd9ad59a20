"""What each link between two clusters carries: what the file says, corrected by what the sending nodes see.

Laws of this file:
- A rate falls at once with what is seen, and rises slowly: it doubles in `DOUBLES_S`. So a link that recovers is used
  again little by little, and one that only seems to has cost little.
- What is seen counts while a sender says that the link is pressed or congested: only then is the link what holds it up.
  Then the link carries what all its senders deliver together, or what those that are held up say that it can.
- What is old counts as not seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from prfaas.core.control import events as e
from prfaas.core.topology import Topology

#: Ten times as much is reached within seven seconds.
DOUBLES_S: Final = 2.0
#: The verdict of a link that holds nobody up.
CLEAR: Final = "clear"
#: Nodes say how their links are once a second; whoever has missed five words is not heard.
STALE_S: Final = 5.0

Pair = tuple[str, str]


@dataclass(slots=True)
class _Rate:
    bytes_per_s: float
    as_of_s: float


class LinkRates:
    """By source and target cluster. A link of which nothing is known has no limit."""

    def __init__(self) -> None:
        self._given: dict[Pair, float] = {}
        self._rates: dict[Pair, _Rate] = {}
        #: By pair of clusters, then of instances: what was said last, and when.
        self._said: dict[Pair, dict[Pair, tuple[e.LinkSeen, float]]] = {}

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
        self._said.setdefault(pair, {})[seen.source, seen.target] = seen, now_s
        is_seen = self._seen_bytes_per_s(pair, now_s)
        if is_seen is not None and is_seen < before:
            self._rates[pair] = _Rate(is_seen, now_s)
            return is_seen <= 0.9 * before
        return False

    def lost(self, source: str) -> None:
        """Instance `source` says nothing any more."""
        for said in self._said.values():
            for names in [names for names in said if names[0] == source]:
                del said[names]

    def bytes_per_s(self, pair: Pair, now_s: float) -> float:
        """inf if nothing limits it, as far as is known."""
        given = self._given.get(pair, math.inf)
        rate = self._rates.get(pair)
        if rate is None:
            return given
        bound = self._seen_bytes_per_s(pair, now_s)
        passed_s = now_s - rate.as_of_s
        if passed_s > 0:
            # A floor, or a link that once gave nothing would never be tried again.
            grown = max(rate.bytes_per_s, 1e-3 * given if given < math.inf else 1e6) * 2.0 ** (passed_s / DOUBLES_S)
            rate.bytes_per_s, rate.as_of_s = min(grown, given if bound is None else max(bound, rate.bytes_per_s)), now_s
        if rate.bytes_per_s >= given:
            del self._rates[pair]
            return given
        return rate.bytes_per_s

    def given(self, pair: Pair) -> float:
        """What the file says; inf if it does not."""
        return self._given.get(pair, math.inf)

    def shown(self, now_s: float) -> Mapping[Pair, float]:
        """All of them."""
        return {pair: self.bytes_per_s(pair, now_s) for pair in self._given}

    def _seen_bytes_per_s(self, pair: Pair, now_s: float) -> float | None:
        """What crosses, or could, while somebody is held up; None if nobody is."""
        fresh = [seen for seen, at_s in self._said.get(pair, {}).values() if now_s - at_s <= STALE_S]
        held_up = [seen for seen in fresh if seen.verdict != CLEAR and seen.queued_bytes]
        could = [seen.capacity_bytes_per_s for seen in held_up if seen.capacity_bytes_per_s is not None]
        delivered = [seen.delivered_bytes_per_s for seen in fresh if seen.delivered_bytes_per_s is not None]
        if not held_up or not (could or delivered):
            return None
        return max(sum(could), sum(delivered))
