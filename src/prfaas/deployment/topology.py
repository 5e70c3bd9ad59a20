"""The topology that a deployment file describes. Only what tells lines of the file walks its clusters, endpoints
and links otherwise: `contradictions`, and the scenario of a plan."""

from __future__ import annotations

from prfaas.core.topology import Cluster, Instance, Link, Role, Topology, complete_links
from prfaas.deployment.model import Deployment


def topology_of(deployment: Deployment) -> Topology:
    """Clusters that have no endpoints, in a file that is only planned, have no instances."""
    clusters = tuple(
        Cluster(name, Role(cluster.role), cluster.convertible, cluster.rtt)
        for name, cluster in deployment.clusters.items()
    )
    given = (Link(link.from_, link.to, link.bandwidth, link.rtt) for link in deployment.links)
    return Topology(clusters, _instances(deployment), complete_links(clusters, given))


def _instances(deployment: Deployment) -> tuple[Instance, ...]:
    return tuple(
        Instance(
            name=endpoint.instance_name(name, index),
            cluster=name,
            duty=duty,
            engine_url=endpoint.engine,
            kvnode_url=endpoint.kvnode,
            lanes=endpoint.lanes,
            kind=endpoint.kind,
        )
        for name, cluster in deployment.clusters.items()
        for index, (endpoint, duty) in enumerate(zip(cluster.endpoints, cluster.duties, strict=True))
    )
