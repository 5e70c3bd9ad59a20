"""The instances of a deployment as events have told of them: health, load, and what their caches hold.

Laws of this file:
- An instance is down until it has been seen.
- One that leaves the topology takes no new work; it is forgotten when nothing of ours is there any more.
- Two that are to be joined by lanes since the topology changed are cut off until the sending node says otherwise.
- Only events change it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from prfaas.core.cache.engine_cache import NO_MATCH, EngineCache, PrefixMatch
from prfaas.core.cache.hashing import TokenChain
from prfaas.core.control.router import Candidate, RouteKind
from prfaas.core.topology import Duty, Topology
from prfaas.core.topology import Instance as Member

#: 32-byte names, about 150 bytes each with their table: 40 MB per engine at most; 140 million tokens at 544 a block.
MAX_RECORD_BLOCKS: Final = 262_144
#: A busy engine answers late; only several silences in a row mean that it is gone. Refusal means so at once.
MAX_SILENT_PROBES: Final = 3


@dataclass(eq=False, slots=True)
class Instance:
    """One engine and the KV node beside it. `num_inflight` requests of ours are there, and `num_landings` landings."""

    member: Member
    cache: EngineCache = field(default_factory=lambda: EngineCache(MAX_RECORD_BLOCKS))
    engine_healthy: bool = False
    node_ready: bool = False
    is_draining: bool = False
    block_tokens: int | None = None
    #: Other instances, to whose nodes the node here has no lane up.
    cut_off_from: frozenset[str] = frozenset()
    num_inflight: int = 0
    num_landings: int = 0
    num_silent_probes: int = 0
    _reported: int | None = None
    _inflight_at_report: int = 0

    @property
    def name(self) -> str:
        return self.member.name

    @property
    def cluster(self) -> str:
        return self.member.cluster

    @property
    def duty(self) -> Duty:
        return self.member.duty

    @property
    def is_idle(self) -> bool:
        return self.num_inflight == 0 and self.num_landings == 0

    @property
    def num_requests(self) -> int | None:
        """What the engine said it had, and what we have sent since; None if it has not said."""
        if self._reported is None:
            return None
        return max(self.num_inflight, self._reported + self.num_inflight - self._inflight_at_report)

    def engine_seen(self, healthy: bool, num_requests: int | None) -> None:
        self.engine_healthy, self.num_silent_probes = healthy, 0
        self._reported, self._inflight_at_report = num_requests, self.num_inflight

    def engine_silent(self, *, refused: bool) -> None:
        self.num_silent_probes += 1
        if refused or self.num_silent_probes >= MAX_SILENT_PROBES:
            self.engine_healthy = False
            self._reported = None

    def engine_registered(
        self, block_tokens: int | None, boot_id: str | None, kinds: Collection[str] | None = None
    ) -> bool:
        """What the node says of its engine. Returns True if the engine is another than before."""
        restarted = self.cache.observe_boot(boot_id)
        if block_tokens and block_tokens != self.block_tokens:
            # Chains of another block size name other tokens; keeping them would only waste room.
            self.block_tokens, restarted = block_tokens, True
        if kinds is not None:
            self.cache.observe_kinds(kinds)
        return restarted

    def match(self, chains: Mapping[int, TokenChain]) -> PrefixMatch:
        """What it is known to hold of a prompt, given the prompt's chains by block size."""
        chain = chains.get(self.block_tokens or 0)
        return NO_MATCH if chain is None else self.cache.match(chain)

    def candidate(self, chains: Mapping[int, TokenChain] | None = None) -> Candidate:
        """As the router sees it."""
        prefix = self.match(chains) if chains else NO_MATCH
        healthy = self.engine_healthy and not self.is_draining
        return Candidate(
            self.name, self.cluster, healthy, self.node_ready, self.num_inflight, prefix, self.cut_off_from, self.duty,
            self.num_requests,
        )  # fmt: skip


class Fleet:
    """All instances by name: those of the topology in file order, then those that have left and are not idle yet."""

    def __init__(self, topology: Topology) -> None:
        self.topology = Topology((), (), ())
        self.instances: dict[str, Instance] = {}
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
        return any(i.engine_healthy and not i.is_draining for i in self.decoders)

    @property
    def block_sizes(self) -> tuple[int, ...]:
        """Block sizes of the decode engines, in tokens."""
        return tuple(sorted({i.block_tokens for i in self.decoders if i.block_tokens}))

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

    def apply(self, topology: Topology) -> None:
        """Take over another topology. An instance whose engine or node has moved is a new one under the old name: what
        was known of it is forgotten, what is in flight there is not."""
        joined = _pairs(topology) - _pairs(self.topology)
        self.topology = topology
        left = dict(self.instances)
        self.instances = {}
        for member in topology.instances:
            known = left.pop(member.name, None)
            if known is None:
                known = Instance(member)
            elif replace(known.member, duty=member.duty) != member:
                known = Instance(member, num_inflight=known.num_inflight, num_landings=known.num_landings)
            known.member, known.is_draining = member, False
            known.cut_off_from |= {target for sender, _, target, _ in joined if sender == member.name}
            self.instances[member.name] = known
        for instance in left.values():
            instance.is_draining = True
        self.instances |= left
        self._sort()

    def forget_drained(self) -> None:
        """Let go of instances that have left and hold nothing of ours."""
        if any(i.is_draining and i.is_idle for i in self.instances.values()):
            self.instances = {n: i for n, i in self.instances.items() if not (i.is_draining and i.is_idle)}
            self._sort()

    def _sort(self) -> None:
        self.is_draining = any(i.is_draining for i in self.instances.values())
        self.decoders = tuple(i for i in self.instances.values() if i.duty.decodes)
        self.prefillers = tuple(i for i in self.instances.values() if not i.duty.decodes)


def _pairs(topology: Topology) -> set[tuple[str, str, str, str]]:
    """Names and addresses of any two that are joined by lanes."""
    return {
        (sender.name, sender.kvnode_url, target.name, target.lanes)
        for sender in topology.senders
        for target in topology.sends_to(sender)
    }
