"""Between which nodes lanes run, and what a node is told to secure them. Pure."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from prfaas.core.transfer.lane_plan import num_lanes
from prfaas.deployment.model import Deployment, Transfer, node_name
from prfaas.deployment.tls_paths import node_path
from prfaas.transport.credentials import CredentialFiles

#: Not ca.pem: a cluster may be called ca.
THROWAWAY_CA: Final = "ca.crt"


def targets_of(deployment: Deployment, cluster_name: str) -> set[str]:
    """Clusters that a cluster sends to: every one that a link leads to; without links, all PD."""
    if deployment.clusters[cluster_name].role != "prfaas":
        return set()
    if not deployment.links:
        return set(deployment.clusters_of_role("pd"))
    return {link.to for link in deployment.links if link.from_ == cluster_name}


def peers_of(deployment: Deployment, cluster_name: str) -> dict[str, str]:
    """Lanes' addresses of the nodes that a cluster's nodes send to, by name."""
    targets = targets_of(deployment, cluster_name)
    return {
        node_name(target, index): endpoint.lanes
        for target, cluster in deployment.clusters.items()
        if target in targets
        for index, endpoint in enumerate(cluster.endpoints)
    }


def lanes_of(deployment: Deployment, cluster_name: str) -> int:
    """Lanes per peer of a cluster's nodes: as asked for, or what the widest of its links wants."""
    transfer = deployment.transfer
    if transfer.lanes != "auto":
        return transfer.lanes
    # Without a choice both are tried, and a trial needs no more lanes than BBR.
    congestion = "bbr" if transfer.congestion == "auto" else transfer.congestion
    links = [link for link in deployment.links if link.from_ == cluster_name]
    wanted = (num_lanes(link.bandwidth, link.rtt, congestion=congestion) for link in links)
    return max(wanted, default=num_lanes(None, None, congestion=congestion))


def identities_of(deployment: Deployment, cluster_name: str) -> dict[str, str]:
    """What the certificates of all nodes must carry that a cluster's nodes send to or receive from, by name."""
    targets = targets_of(deployment, cluster_name)
    return {
        node_name(other, index): deployment.identity_of(other)
        for other, cluster in deployment.clusters.items()
        if other in targets or cluster_name in targets_of(deployment, other)
        for index in range(len(cluster.endpoints))
    }


def is_throwaway(transfer: Transfer) -> bool:
    """Are lanes encrypted with certificates that nobody has made yet?"""
    return transfer.encryption == "tls" and transfer.tls is None


def tls_files(deployment: Deployment, file: Path, cluster: str, node: str, throwaway: Path) -> CredentialFiles | None:
    """A node's files, in the folder `throwaway` if the deployment names none; None for plain lanes. `file` is the
    deployment file, absolute."""
    tls = deployment.transfer.tls
    if tls is not None:
        ca, cert, key = (str(node_path(text, file, cluster, node)) for text in (tls.ca, tls.cert, tls.key))
        return CredentialFiles(ca, cert, key)
    if is_throwaway(deployment.transfer):
        return CredentialFiles(
            str(throwaway / THROWAWAY_CA), str(throwaway / f"{cluster}.pem"), str(throwaway / f"{cluster}.key")
        )
    return None


def security_options(deployment: Deployment, cluster: str, node: str, files: CredentialFiles | None) -> list[str]:
    """Options of `prfaas kvnode` that say how its lanes are secured."""
    if files is None:
        return ["--plain"]
    options = ["--tls-ca", files.ca, "--tls-cert", files.cert, "--tls-key", files.key]
    for name, identity in {node: deployment.identity_of(cluster), **identities_of(deployment, cluster)}.items():
        options += ["--identity", f"{name}={identity}"]
    return options
