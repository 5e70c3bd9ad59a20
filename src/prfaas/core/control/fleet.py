"""The instances of a deployment as events have told of them: health, load, and what their caches hold.

Laws of this file:
- An instance is down until it has been seen.
- One that leaves the topology takes no new work; it is forgotten when nothing of ours is there any more.
- Two that are to be joined by lanes since the topology changed are cut off until the sending node says otherwise.
- Only events change it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

from prfaas.core.cache.hashing import TokenChain
from prfaas.core.control.holders import Holders
from prfaas.core.control.instance import MAX_RECORD_BLOCKS, Instance
from prfaas.core.control.route import RouteKind
from prfaas.core.control.router import Candidate
from prfaas.core.control.standing import Standing
from prfaas.core.topology import Duty, Role, Topology
from prfaas.core.topology import Instance as Member


class Way(NamedTuple):
    """Instances of `source` prefill for a PD cluster; `pair` is both. `rtt_s` of the link between them, and `gateway_s`
    that the ways from the gateway, and back, add."""

    source: str
    pair: tuple[str, str]
    rtt_s: float
    gateway_s: float


class Fleet:
    """All instances by name: those of the topology in file order, then those that have left and are not idle yet."""

    def __init__(self, topology: Topology, max_record_blocks: int = MAX_RECORD_BLOCKS) -> None:
        self._max_record_blocks = max_record_blocks
        self.topology = Topology((), (), ())
        self.holders: Holders[Instance] = Holders()
        self.instances: dict[str, Instance] = {}
        self._ways_to: dict[str, tuple[Way, ...]] = {}
        self._links_from: dict[str, tuple[tuple[str, str], ...]] = {}
        self.decoders: tuple[Instance, ...] = ()
        self.prefillers: tuple[Instance, ...] = ()
        #: Some instance has left and is kept until it is idle.
        self.is_draining = False
        self.apply(topology)

    @property
    def all(self) -> tuple[Instance, ...]:
        """Decode instances first."""
        return (*self.decoders, *self.prefillers)

    @property
    def healthy(self) -> bool:
        """Whether any request can be served."""
        return any(self._still_decodes(instance) for instance in self.decoders)

    @property
    def block_sizes(self) -> tuple[int, ...]:
        """Block sizes of the decode engines, in tokens."""
        return tuple(sorted({size for standing in self._standings.values() for size in standing.decoder_block_sizes}))

    @property
    def all_block_sizes(self) -> tuple[int, ...]:
        """Of those that prefill for others too: what they hold they need not compute."""
        return tuple(sorted({size for standing in self._standings.values() for size in standing.block_sizes}))

    @property
    def prefills_in_pd(self) -> bool:
        """Whether some decode instance leaves prompts to prefill instances of its cluster."""
        return any(i.duty is Duty.DECODE and not i.is_draining for i in self.decoders)

    def reach(self, kind: RouteKind, decode: str) -> list[Candidate]:
        """Prefill instances that can send to a decode instance, for a kind of route."""
        cluster = self.instances[decode].cluster
        at_home = kind is RouteKind.PD_PREFILL
        members = [m for m in self.topology.prefillers_for(cluster) if (m.cluster == cluster) is at_home]
        return [self.instances[member.name].candidate() for member in members]

    def decode_candidates(self, chains: Mapping[int, TokenChain] | None = None) -> list[Candidate]:
        """All that decode. If no other works, one that is to get another duty still does, and one that is out."""
        found = [instance.candidate(chains) for instance in self.decoders]
        if not any(candidate.engine_healthy for candidate in found):
            return [replace(c, engine_healthy=self._still_decodes(self.instances[c.name])) for c in found]
        return found

    def _still_decodes(self, instance: Instance) -> bool:
        return instance.engine_healthy and not instance.is_draining

    def standing(self, cluster: str) -> Standing:
        """Of one cluster."""
        return self._standings.get(cluster) or Standing()

    def working_decoders(self, cluster: str) -> list[Instance]:
        """Of one cluster, in file order."""
        return self.standing(cluster).decoders

    def working_prefillers(self, cluster: str) -> list[Instance]:
        """Those that prefill for others, of one cluster, in file order."""
        return self.standing(cluster).prefillers

    def ways_to(self, decode_cluster: str) -> tuple[Way, ...]:
        """From clusters with instances that can prefill for a PD cluster: itself first, then those linked to it."""
        return self._ways_to.get(decode_cluster, ())

    def way(self, source: str, target: str) -> Way:
        """From a cluster to a PD cluster."""
        gateway_s = self.gateway_rtt_s(target) + self.gateway_rtt_s(source) / 2
        return Way(source, (source, target), self.rtt_s(source, target), gateway_s)

    def links_from(self, cluster: str) -> tuple[tuple[str, str], ...]:
        """Source and target of every link on which KVCache leaves a PrfaaS cluster."""
        return self._links_from.get(cluster, ())

    def longest_rtt_s(self, cluster: str) -> float:
        """Over the links on which KVCache leaves a cluster; 0.0 for one of a PD cluster."""
        return self._longest_rtts_s.get(cluster, 0.0)

    def rtt_s(self, source: str, target: str) -> float:
        """0.0 inside a cluster, and where nobody has said."""
        return self._rtts_s.get((source, target), 0.0)

    def gateway_rtt_s(self, cluster: str) -> float:
        """From the gateway there and back."""
        return self._gateway_rtts_s.get(cluster, 0.0)

    def apply(self, topology: Topology) -> None:
        """Take over another topology. An instance whose engine or node has moved is a new one under the old name: what
        was known of it is forgotten, what is in flight there is not."""
        joined: dict[str, set[str]] = {}
        for sender, _, target, _ in _pairs(topology) - _pairs(self.topology):
            joined.setdefault(sender, set()).add(target)
        self.topology = topology
        left = dict(self.instances)
        self.instances = {}
        for member in topology.instances:
            known = left.pop(member.name, None)
            if known is None:
                known = self._new(member)
            elif replace(known.member, duty=member.duty) != member:
                _forget_cache(known)
                known = self._new(member, num_inflight=known.num_inflight, num_landings=known.num_landings)
            known.member, known.is_draining = member, False
            known.cut_off_from |= joined.get(member.name, set())
            self.instances[member.name] = known
        for instance in left.values():
            instance.is_draining = True
        self.instances |= left
        self._sort()

    def _new(self, member: Member, *, num_inflight: int = 0, num_landings: int = 0) -> Instance:
        return Instance(
            member, num_inflight=num_inflight, num_landings=num_landings, max_record_blocks=self._max_record_blocks
        )

    def forget_drained(self) -> bool:
        """Let go of instances that have left and hold nothing of ours. Returns True if there were some."""
        if has_some := any(i.is_draining and i.is_idle for i in self.instances.values()):
            for instance in self.instances.values():
                if instance.is_draining and instance.is_idle:
                    _forget_cache(instance)
            self.instances = {n: i for n, i in self.instances.items() if not (i.is_draining and i.is_idle)}
            self._sort()
        return has_some

    def _sort(self) -> None:
        self.is_draining = any(i.is_draining for i in self.instances.values())
        self._gateway_rtts_s = {cluster.name: cluster.rtt_s for cluster in self.topology.clusters}
        self.decoders = tuple(i for i in self.instances.values() if i.duty.decodes)
        self.prefillers = tuple(i for i in self.instances.values() if not i.duty.decodes)
        decoders_of, prefillers_of = _by_cluster(self.decoders), _by_cluster(self.prefillers)
        self._standings = {
            name: Standing(prefillers_of.get(name, ()), decoders_of.get(name, ()))
            for name in dict.fromkeys(instance.cluster for instance in self.instances.values())
        }
        for number, instance in enumerate(self.instances.values()):
            instance.number = number
            instance.leaves(self._standings[instance.cluster].marks)
            instance.roots.holders = self.holders
            # What prefills for others is given work ahead of time instead: see `Dispatch`.
            instance.work.rtt_s = self.gateway_rtt_s(instance.cluster) if instance.duty.decodes else 0.0
        self._rtts_s = {(link.source, link.target): link.rtt_s or 0.0 for link in self.topology.links}
        self._ways_to, self._links_from = {}, {}
        self.pd_clusters = tuple(cluster.name for cluster in self.topology.clusters_of(Role.PD))
        for pd in self.topology.clusters_of(Role.PD):
            far = [c.name for c in self.topology.clusters_of(Role.PRFAAS) if (c.name, pd.name) in self._rtts_s]
            self._ways_to[pd.name] = tuple(self.way(c, pd.name) for c in (pd.name, *far) if c in prefillers_of)
            for source in far:
                self._links_from[source] = (*self._links_from.get(source, ()), (source, pd.name))
        self._longest_rtts_s = {
            source: max(self._rtts_s[pair] for pair in pairs) for source, pairs in self._links_from.items()
        }


def _forget_cache(instance: Instance) -> None:
    """Of one that is gone; what requests still say of it is kept by nobody."""
    instance.cache.observe_boot("")
    instance.roots.holders = None


def _by_cluster(instances: Iterable[Instance]) -> dict[str, list[Instance]]:
    found: dict[str, list[Instance]] = {}
    for instance in instances:
        found.setdefault(instance.cluster, []).append(instance)
    return found


def _pairs(topology: Topology) -> set[tuple[str, str, str, str]]:
    """Names and addresses of any two that are joined by lanes."""
    return {
        (sender.name, sender.kvnode_url, target.name, target.lanes)
        for sender in topology.senders
        for target in topology.sends_to(sender)
    }
