"""Between which nodes lanes run, and what a node is told to secure them. Pure."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from prfaas.core.link.lane_plan import num_lanes
from prfaas.core.topology import Instance, Topology
from prfaas.deployment.model import Deployment, Transfer
from prfaas.deployment.tls_paths import node_path
from prfaas.transport.credentials import CredentialFiles

#: Not ca.pem: a cluster may be called ca.
THROWAWAY_CA: Final = "ca.crt"


def peers_of(topology: Topology, instance: Instance) -> dict[str, str]:
    """Lanes' addresses of the nodes that an instance's node sends to, by name."""
    return {target.name: target.lanes for target in topology.sends_to(instance)}


def lanes_of(transfer: Transfer, topology: Topology, instance: Instance) -> int:
    """Lanes per peer of an instance's node: as asked for, or what the widest of its links wants."""
    if transfer.lanes != "auto":
        return transfer.lanes
    # Without a choice both are tried, and a trial needs no more lanes than BBR.
    congestion = "bbr" if transfer.congestion == "auto" else transfer.congestion
    links = topology.links_used_by(instance)
    wanted = (num_lanes(link.bytes_per_s, link.rtt_s, congestion=congestion) for link in links)
    return max(wanted, default=num_lanes(None, None, congestion=congestion))


def identities_of(deployment: Deployment, topology: Topology, instance: Instance) -> dict[str, str]:
    """What the certificates of all nodes must carry that an instance's node sends to or receives from, by name."""
    others = (*topology.sends_to(instance), *topology.receives_from(instance))
    return {other.name: deployment.identity_of(other.cluster) for other in others}


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


def security_options(
    deployment: Deployment, topology: Topology, instance: Instance, files: CredentialFiles | None
) -> list[str]:
    """Options of `prfaas kvnode` that say how its lanes are secured."""
    if files is None:
        return ["--plain"]
    options = ["--tls-ca", files.ca, "--tls-cert", files.cert, "--tls-key", files.key]
    own = {instance.name: deployment.identity_of(instance.cluster)}
    for name, identity in {**own, **identities_of(deployment, topology, instance)}.items():
        options += ["--identity", f"{name}={identity}"]
    return options
