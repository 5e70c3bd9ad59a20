"""The topology that a deployment file describes. Only what tells lines of the file walks its clusters, endpoints
and links otherwise: `contradictions`, and the scenario of a plan."""

from __future__ import annotations

from dataclasses import replace

from prfaas.core.topology import Cluster, Instance, Link, Role, Topology, complete_links
from prfaas.deployment.model import Deployment, Emulation


def topology_of(deployment: Deployment) -> Topology:
    """As it is served: links and round trips of an emulated deployment are in its scale. Clusters that have no
    endpoints, in a file that is only planned, have no instances."""
    scale = deployment.emulation or Emulation()
    clusters = tuple(
        Cluster(name, Role(cluster.role), cluster.convertible, cluster.rtt * scale.time_scale)
        for name, cluster in deployment.clusters.items()
    )
    given = (_scaled(Link(link.from_, link.to, link.bandwidth, link.rtt), scale) for link in deployment.links)
    return Topology(clusters, _instances(deployment), complete_links(clusters, given))


def _scaled(link: Link, scale: Emulation) -> Link:
    bytes_per_s, rtt_s = link.bytes_per_s, link.rtt_s
    return replace(
        link,
        bytes_per_s=None if bytes_per_s is None else bytes_per_s * scale.bytes_scale / scale.time_scale,
        rtt_s=None if rtt_s is None else rtt_s * scale.time_scale,
    )


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
