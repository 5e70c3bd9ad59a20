"""Cached prefixes that move before a prompt is prefilled: from who holds most of it to who computes it.

Laws of this file:
- A prefix is fetched only if that is expected to be sooner than to compute it, with what the link has to do already.
- Of several that could send one, the prompt gets the one with which its prefill ends first.
- Inside a cluster a fetch costs a handover. What leads back to a PrfaaS cluster carries as much as what leads from it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from prfaas.core.cache.engine_cache import PrefixMatch
from prfaas.core.control.estimates import Estimates
from prfaas.core.control.fleet import Fleet
from prfaas.core.control.instance import Instance
from prfaas.core.control.options import HANDOVER_S


class Fetch(NamedTuple):
    """`source` sends the first `num_tokens` of a prompt, which takes `takes_s`; what is left then takes `prefill_s`."""

    source: Instance
    num_tokens: int
    takes_s: float
    prefill_s: float

    @property
    def done_s(self) -> float:
        return self.takes_s + self.prefill_s


class Fetching:
    """Of one placer. `link_bytes` is what is still to cross from one cluster to another."""

    def __init__(self, fleet: Fleet, estimates: Estimates, link_bytes: Mapping[tuple[str, str], float]) -> None:
        self._fleet = fleet
        self._estimates = estimates
        self._link_bytes = link_bytes

    def best(
        self, num_tokens: int, known: Iterable[tuple[Instance, PrefixMatch]], cluster: str, now_s: float
    ) -> Fetch | None:
        """For a prompt of so many tokens that an instance of `cluster` computes; None if nobody holds any of it."""
        longest: dict[str, tuple[Instance, int]] = {}
        for instance, match in known:
            held = match.reusable_prefix_tokens
            if instance.engine_healthy and instance.node_ready and held > longest.get(instance.cluster, (None, 0))[1]:
                longest[instance.cluster] = instance, held
        found = (self._from(instance, held, num_tokens, cluster, now_s) for instance, held in longest.values())
        return min(found, key=lambda fetch: fetch.done_s, default=None)

    def _from(self, source: Instance, held: int, num_tokens: int, cluster: str, now_s: float) -> Fetch:
        takes_s = self.takes_s(source.cluster, cluster, self.num_bytes(held), now_s)
        prefill_s = self._estimates.prefill_s(cluster, max(1, num_tokens - held))
        return Fetch(source, held, takes_s, prefill_s)

    def num_bytes(self, num_tokens: int) -> float:
        """Of a prefix."""
        return self._estimates.kv_bytes(num_tokens)

    def takes_s(self, source: str, target: str, num_bytes: float, now_s: float) -> float:
        """Until so many bytes of one cluster are in another."""
        if source == target:
            return HANDOVER_S
        links = self._estimates.links
        bytes_per_s = min(links.bytes_per_s((source, target), now_s), links.bytes_per_s((target, source), now_s))
        if bytes_per_s <= 0:
            return math.inf
        queued_bytes = self._link_bytes.get((source, target), 0.0)
        rtt_s = max(self._fleet.rtt_s(source, target), self._fleet.rtt_s(target, source))
        return HANDOVER_S + rtt_s + (queued_bytes + num_bytes) / bytes_per_s
