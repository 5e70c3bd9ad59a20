"""The instances that a deployment names, and how they are now."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Literal

from prfaas.core import topology as topology_module
from prfaas.core.cache.engine_cache import NO_MATCH, EngineCache, PrefixMatch
from prfaas.core.cache.hashing import TokenChain
from prfaas.core.control.router import Candidate
from prfaas.core.model.layout import KVGroupKind
from prfaas.core.wire.node_api import NodeHealth
from prfaas.deployment.model import Deployment
from prfaas.deployment.topology import topology_of
from prfaas.engines.dialect import Dialect, EngineLoad
from prfaas.engines.kinds import DEFAULT_KIND, dialect_of

#: 32-byte names, about 150 bytes each with their table: 40 MB per engine at most; 140 million tokens at 544 a block.
MAX_RECORD_BLOCKS: Final = 262_144
#: A busy engine answers /health late; only several silences in a row mean that it is gone. Refusal means so at once.
MAX_SILENT_PROBES: Final = 3

Role = Literal["prfaas", "pd"]


@dataclass(eq=False, slots=True)
class Instance:
    """One engine and the KV node beside it."""

    name: str
    cluster: str
    role: Role
    engine_url: str
    kvnode_url: str
    record: EngineCache
    engine_healthy: bool = False
    node_ready: bool = False
    block_tokens: int | None = None
    num_inflight: int = 0
    num_silent_probes: int = 0
    dialect: Dialect = field(default_factory=lambda: dialect_of(DEFAULT_KIND))
    load: EngineLoad | None = None
    #: Other instances, to whose nodes the node here has no lane up.
    cut_off_from: frozenset[str] = frozenset()

    def engine_answered(self, healthy: bool) -> None:
        """A probe got an answer."""
        self.engine_healthy, self.num_silent_probes = healthy, 0

    def engine_silent(self, *, refused: bool) -> None:
        """A probe got none. `refused`: nobody listens there."""
        self.num_silent_probes += 1
        if refused or self.num_silent_probes >= MAX_SILENT_PROBES:
            self.engine_healthy = False

    def node_answered(self, health: NodeHealth) -> None:
        """The KV node's /health; it is ready once an engine has registered a layout."""
        self.node_ready = bool(health.engines)
        self.cut_off_from = frozenset(name for name, peer in health.peers.items() if not peer.lanes_up)
        if health.engines:
            engine = health.engines[-1]
            self.observe_engine(engine.block_tokens, engine.engine_boot_id, engine.kv_group_kinds)

    def observe_engine(self, block_tokens: int, boot_id: str, kinds: Collection[KVGroupKind]) -> bool:
        """What a node says of its engine and its KV groups. Returns True if the engine is another than before."""
        restarted = self.record.observe_boot(boot_id)
        self.record.observe_kinds(kinds)
        if block_tokens > 0 and block_tokens != self.block_tokens:
            # Chains of another block size name other tokens; keeping them would only waste room.
            self.block_tokens, restarted = block_tokens, True
        return restarted

    def candidate(self, prefix: PrefixMatch = NO_MATCH) -> Candidate:
        """This instance as the router sees it."""
        return Candidate(
            self.name, self.cluster, self.engine_healthy, self.node_ready, self.num_inflight, prefix, self.cut_off_from
        )

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Counts one request in flight."""
        self.num_inflight += 1
        try:
            yield
        finally:
            self.num_inflight -= 1


@dataclass(slots=True)
class Fleet:
    """All instances, in file order."""

    decoders: tuple[Instance, ...]
    prefillers: tuple[Instance, ...]
    by_name: dict[str, Instance] = field(init=False)

    def __post_init__(self) -> None:
        self.by_name = {instance.name: instance for instance in self.all}

    @property
    def all(self) -> tuple[Instance, ...]:
        """Decoders first."""
        return (*self.decoders, *self.prefillers)

    def load_seen(self, name: str, load: EngineLoad | None) -> None:
        """What an engine says that it has to do; None if it does not say."""
        self.by_name[name].load = load

    @property
    def healthy(self) -> bool:
        """Whether any request can be served."""
        return any(instance.engine_healthy for instance in self.decoders)


def match_prefix(instance: Instance, chains: dict[int, TokenChain]) -> PrefixMatch:
    """What `instance` is known to hold of a prompt, given the prompt's chains by block size."""
    chain = chains.get(instance.block_tokens or 0)
    return NO_MATCH if chain is None else instance.record.match(chain)


def build_fleet(deployment: Deployment) -> Fleet:
    """Instances of a deployment; all count as down until they have been probed."""

    topology = topology_of(deployment)

    def instances(members: Iterable[topology_module.Instance], role: Role) -> tuple[Instance, ...]:
        return tuple(
            Instance(
                member.name,
                member.cluster,
                role,
                member.engine_url,
                member.kvnode_url,
                EngineCache(MAX_RECORD_BLOCKS),
                dialect=dialect_of(member.kind),
            )
            for member in members
        )

    remote = {cluster.name for cluster in topology.clusters_of(topology_module.Role.PRFAAS)}
    prefillers = (member for member in topology.senders if member.cluster in remote)
    return Fleet(instances(topology.decoders, "pd"), instances(prefillers, "prfaas"))
