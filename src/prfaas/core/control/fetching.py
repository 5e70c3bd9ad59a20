"""Cached prefixes that move before a prompt is prefilled: from who holds most of it to who computes it.

Laws of this file:
- A prefix is fetched only if that costs less than to compute it: with what the link has to do already, and with what
  others on the link wait for it.
- Of several that could send one, the prompt gets the one that costs least.
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
from prfaas.core.control.link_rates import Pair
from prfaas.core.control.options import HANDOVER_S, delay_to_others_s


class Fetch(NamedTuple):
    """`source` sends the first `num_tokens` of a prompt, which takes `takes_s`; what is left then takes `prefill_s`.
    KVCache of prompts that shares the link waits `others_s` longer for it."""

    source: Instance
    num_tokens: int
    takes_s: float
    prefill_s: float
    others_s: float

    @property
    def done_s(self) -> float:
        return self.takes_s + self.prefill_s

    @property
    def cost_s(self) -> float:
        """What is compared."""
        return self.takes_s + self.prefill_s + self.others_s


class Fetching:
    """Of one placer. `link_bytes` is what KVCache of prompts is still to cross from one cluster to another."""

    def __init__(self, fleet: Fleet, estimates: Estimates, link_bytes: Mapping[Pair, float]) -> None:
        self._fleet = fleet
        self._estimates = estimates
        self._link_bytes = link_bytes
        #: When what is fetched already should have crossed. Who gives up a fetch does not say so; time does.
        self._until_s: dict[Pair, float] = {}

    def best(
        self, num_tokens: int, known: Iterable[tuple[Instance, PrefixMatch]], cluster: str, now_s: float
    ) -> Fetch | None:
        """For a prompt of so many tokens that an instance of `cluster` computes; None if nobody can send any of it."""
        longest: dict[str, tuple[Instance, int]] = {}
        for instance, match in known:
            held = match.reusable_prefix_tokens
            if held > longest.get(instance.cluster, (None, 0))[1] and self._reaches(instance, cluster):
                longest[instance.cluster] = instance, held
        found = (self._from(instance, held, num_tokens, cluster, now_s) for instance, held in longest.values())
        return min(found, key=lambda fetch: fetch.cost_s, default=None)

    def begins(self, source: Instance, target: Instance, num_tokens: int, now_s: float) -> float:
        """From now on a prefix of so many tokens crosses. Returns how long that takes."""
        pair = source.cluster, target.cluster
        takes_s = self.takes_s(*pair, self._estimates.kv_bytes(num_tokens), now_s)
        if pair[0] != pair[1]:
            self._until_s[pair] = now_s + takes_s
        return takes_s

    def _reaches(self, source: Instance, cluster: str) -> bool:
        if not source.engine_healthy or not source.node_ready:
            return False
        return any(can_send(source, target) for target in self._fleet.working_prefillers(cluster))

    def _from(self, source: Instance, held: int, num_tokens: int, cluster: str, now_s: float) -> Fetch:
        takes_s = self.takes_s(source.cluster, cluster, self._estimates.kv_bytes(held), now_s)
        prefill_s = self._estimates.prefill_s(cluster, max(1, num_tokens - held))
        return Fetch(source, held, takes_s, prefill_s, self._others_s(source.cluster, cluster, held, now_s))

    def _others_s(self, source: str, target: str, held: int, now_s: float) -> float:
        """Only what leads from where prompts are prefilled for others has KVCache of prompts on it."""
        rate_rps, load = self._estimates.rate_and_load(source, now_s)
        bytes_per_s = self._estimates.links.bytes_per_s((source, target), now_s)
        if source == target or not rate_rps or bytes_per_s <= 0:
            return 0.0
        queued_s = self._link_bytes.get((source, target), 0.0) / bytes_per_s
        return delay_to_others_s(rate_rps, load, queued_s, self._estimates.kv_bytes(held) / bytes_per_s)

    def takes_s(self, source: str, target: str, num_bytes: float, now_s: float) -> float:
        """Until so many bytes of one cluster are in another; inf where no link leads there."""
        if source == target:
            return HANDOVER_S
        topology, links, pair = self._fleet.topology, self._estimates.links, (source, target)
        if topology.link_between(source, target) is None:
            return math.inf
        bytes_per_s = min(links.bytes_per_s(pair, now_s), links.bytes_per_s((target, source), now_s))
        if bytes_per_s <= 0:
            return math.inf
        before_s = max(self._until_s.get(pair, now_s) - now_s, self._link_bytes.get(pair, 0.0) / bytes_per_s)
        rtt_s = max(self._fleet.rtt_s(source, target), self._fleet.rtt_s(target, source))
        return HANDOVER_S + rtt_s + before_s + num_bytes / bytes_per_s


def can_send(source: Instance, target: Instance) -> bool:
    """Whether there are lanes, as both ends say."""
    return target.name not in source.cut_off_from and source.name not in target.cut_off_from
