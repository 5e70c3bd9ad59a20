"""What a deployment consists of: clusters, instances with their duties, and links. Everything else asks here.

Laws of this file:
- An instance is known by its name. Another URL under the same name is another instance.
- A PrfaaS cluster's instances prefill. A PD cluster has at least one instance that decodes.
- A link is one direction between a PrfaaS and a PD cluster, and each direction has at most one. Inside a cluster the
  cluster's own network is used, which is no link.
- KVCache moves from where a prompt was prefilled to an instance that decodes: see `sends_to`.
- In a convertible PD cluster any instance may come to prefill and any to decode, so that all have lanes to all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum


class Role(StrEnum):
    """`PRFAAS` prefills for others. `PD` decodes, and prefills what no PrfaaS cluster prefills."""

    PRFAAS = "prfaas"
    PD = "pd"


class Duty(StrEnum):
    """What an instance is there for. `BOTH` prefills the prompts that it decodes."""

    PREFILL = "prefill"
    DECODE = "decode"
    BOTH = "both"

    @property
    def decodes(self) -> bool:
        return self is not Duty.PREFILL

    @property
    def prefills(self) -> bool:
        return self is not Duty.DECODE


@dataclass(frozen=True, slots=True)
class Cluster:
    """One datacenter's share. `is_convertible`: its instances may be given other duties while they run. `rtt_s`: from
    the gateway there and back."""

    name: str
    role: Role
    is_convertible: bool = False
    rtt_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Instance:
    """One engine and the KV node beside it. `lanes` is the host:port where that node listens for other nodes; `kind` is
    the engine's."""

    name: str
    cluster: str
    duty: Duty
    engine_url: str
    kvnode_url: str
    lanes: str
    kind: str = "vllm"


@dataclass(frozen=True, slots=True)
class Link:
    """One direction between two clusters. None: nobody has said."""

    source: str
    target: str
    bytes_per_s: float | None = None
    rtt_s: float | None = None


@dataclass(frozen=True, slots=True)
class Topology:
    """Clusters and instances are in the file's order, which breaks ties. `links` has every direction that exists: see
    `complete_links`."""

    clusters: tuple[Cluster, ...]
    instances: tuple[Instance, ...]
    links: tuple[Link, ...]

    def __post_init__(self) -> None:
        self.check()

    @property
    def decoders(self) -> tuple[Instance, ...]:
        """Instances that may answer a request: those of PD clusters that decode."""
        return tuple(instance for instance in self.instances if instance.duty.decodes)

    @property
    def convertible(self) -> frozenset[str]:
        """Names of convertible clusters."""
        return frozenset(cluster.name for cluster in self.clusters if cluster.is_convertible)

    @property
    def senders(self) -> tuple[Instance, ...]:
        """Instances that send KVCache to others, or may come to."""
        convertible = self.convertible
        return tuple(
            instance
            for instance in self.instances
            if instance.duty is Duty.PREFILL or (instance.duty is Duty.DECODE and instance.cluster in convertible)
        )

    def cluster(self, name: str) -> Cluster:
        """Raises KeyError."""
        return {cluster.name: cluster for cluster in self.clusters}[name]

    def instance(self, name: str) -> Instance:
        """Raises KeyError."""
        return {instance.name: instance for instance in self.instances}[name]

    def clusters_of(self, role: Role) -> tuple[Cluster, ...]:
        return tuple(cluster for cluster in self.clusters if cluster.role is role)

    def instances_of(self, cluster: str) -> tuple[Instance, ...]:
        return tuple(instance for instance in self.instances if instance.cluster == cluster)

    def link_between(self, source: str, target: str) -> Link | None:
        """None inside a cluster, and where no link leads."""
        return next((link for link in self.links if (link.source, link.target) == (source, target)), None)

    def prefillers_for(self, decode_cluster: str) -> tuple[Instance, ...]:
        """Instances that can prefill a prompt and send its KVCache to `decode_cluster`: the cluster's own (`cluster` is
        the same), and those of PrfaaS clusters that a link leads from."""
        reach = {decode_cluster, *(link.source for link in self.links if link.target == decode_cluster)}
        return tuple(
            instance for instance in self.instances if instance.duty is Duty.PREFILL and instance.cluster in reach
        )

    def sends_to(self, instance: Instance) -> tuple[Instance, ...]:
        """Instances to which the node of `instance` needs lanes. A PrfaaS instance sends to every instance that decodes
        in a linked PD cluster; one of a PD cluster with duty prefill to those of its own cluster."""
        convertible = self.convertible
        if instance.duty is Duty.BOTH or (instance.duty is Duty.DECODE and instance.cluster not in convertible):
            return ()
        reached = {instance.cluster, *(link.target for link in self.links if link.source == instance.cluster)}
        return tuple(
            other
            for other in self.instances
            if other.cluster in reached
            and (other.duty.decodes or other.cluster in convertible)
            and other.name != instance.name
        )

    def receives_from(self, instance: Instance) -> tuple[Instance, ...]:
        """Instances whose nodes need lanes to the one of `instance`."""
        if not instance.duty.decodes and instance.cluster not in self.convertible:
            return ()
        reach = {instance.cluster, *(link.source for link in self.links if link.target == instance.cluster)}
        return tuple(sender for sender in self.senders if sender.cluster in reach and sender.name != instance.name)

    def links_used_by(self, instance: Instance) -> tuple[Link, ...]:
        """Links that KVCache of `instance` crosses on its way to where it is decoded."""
        if instance.duty is not Duty.PREFILL:
            return ()
        targets = {cluster.name for cluster in self.clusters_of(Role.PD)}
        return tuple(link for link in self.links if link.source == instance.cluster and link.target in targets)

    def with_duty(self, name: str, duty: Duty) -> Topology:
        """Where one instance has another duty. Raises KeyError if there is none, AssertionError if a law forbids it."""
        before = self.instance(name)
        after = replace(before, duty=duty)
        return replace(self, instances=tuple(after if other is before else other for other in self.instances))

    def check(self) -> None:
        """The laws of this file."""
        roles = {cluster.name: cluster.role for cluster in self.clusters}
        assert len(roles) == len(self.clusters), "two clusters have one name"
        assert len({instance.name for instance in self.instances}) == len(self.instances), "two instances have one name"
        for instance in self.instances:
            assert instance.cluster in roles, f"{instance.name}: no cluster {instance.cluster}"
            if roles[instance.cluster] is Role.PRFAAS:
                assert instance.duty is Duty.PREFILL, f"{instance.name}: {instance.duty} in a PrfaaS cluster"
        for cluster in self.clusters:
            assert cluster.role is Role.PD or not cluster.is_convertible, f"{cluster.name} can only prefill"
        for name, role in roles.items():
            members = self.instances_of(name)
            if role is Role.PD and members:
                assert any(member.duty.decodes for member in members), f"{name}: nothing decodes"
        directions = {(link.source, link.target) for link in self.links}
        assert len(directions) == len(self.links), "one direction has two links"
        for source, target in directions:
            assert {roles[source], roles[target]} == {Role.PRFAAS, Role.PD}, f"a link from {source} to {target}"


@dataclass(frozen=True, slots=True)
class TopologyChange:
    """From one topology to the next. `converted` are those that have another duty and are the same process else, as
    they are now. An instance whose URL changed is in `removed` and in `added`."""

    removed: tuple[Instance, ...]
    added: tuple[Instance, ...]
    converted: tuple[Instance, ...]

    def __bool__(self) -> bool:
        return bool(self.removed or self.added or self.converted)


def topology_change(before: Topology, after: Topology) -> TopologyChange:
    """Which instances came, went, or got another duty."""
    old = {instance.name: instance for instance in before.instances}
    new = {instance.name: instance for instance in after.instances}
    stayed = {name for name in old.keys() & new.keys() if replace(old[name], duty=new[name].duty) == new[name]}
    return TopologyChange(
        removed=tuple(instance for instance in before.instances if instance.name not in stayed),
        added=tuple(instance for instance in after.instances if instance.name not in stayed),
        converted=tuple(
            instance for instance in after.instances if instance.name in stayed and instance != old[instance.name]
        ),
    )


def complete_links(clusters: Iterable[Cluster], links: Iterable[Link]) -> tuple[Link, ...]:
    """Every direction that exists, given those that somebody wrote down. Without any, every PrfaaS cluster is linked to
    every PD cluster. A network carries both directions: one that is not written has the other's round-trip time and an
    unknown bandwidth."""
    clusters = tuple(clusters)
    given = tuple(links) or tuple(
        Link(source.name, target.name)
        for source in clusters
        if source.role is Role.PRFAAS
        for target in clusters
        if target.role is Role.PD
    )
    known = {(link.source, link.target) for link in given}
    back = (Link(link.target, link.source, rtt_s=link.rtt_s) for link in given)
    return (*given, *(link for link in back if (link.source, link.target) not in known))
