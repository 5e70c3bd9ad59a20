"""A KV node's settings: from the deployment file, from the command line, or from both. Pure, but for `read_config`.

Law of this file: a setting's default stands in `deployment.model`. Neither the command line nor a node has another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel

from prfaas.core.link.lane_plan import MAX_LANES, num_lanes
from prfaas.core.topology import Instance, Link, Topology
from prfaas.deployment.fronts import Address, dialled_lanes, parse_address
from prfaas.deployment.identity import default_identity
from prfaas.deployment.load import DeploymentError, read_deployment
from prfaas.deployment.model import Deployment, Transfer
from prfaas.deployment.tls_paths import node_path
from prfaas.deployment.topology import topology_of
from prfaas.kvnode.config import KVNodeConfig
from prfaas.transport.credentials import CredentialFiles
from prfaas.transport.limits import LaneLimits

Section = TypeVar("Section", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class NodeFlags:
    """What the command line says. None, or nothing in a map: as the file has it, or else the default."""

    http: Address | None = None
    lanes: Address | None = None
    arena_bytes: int | None = None
    peers: Mapping[str, Address] = field(default_factory=dict)
    num_lanes: int | None = None
    max_lanes: int | None = None
    chunk_bytes: int | None = None
    congestion: str | None = None
    pacing: bool | None = None
    hash_algorithm: str | None = None
    hash_seed: str | None = None
    tls: CredentialFiles | None = None
    plain: bool = False
    identities: Mapping[str, str] = field(default_factory=dict)


def read_config(path: Path, name: str, socket_path: str, flags: NodeFlags) -> KVNodeConfig | None:
    """Settings of node `name` of a file; None if no instance of the file has that name. Raises DeploymentError."""
    deployment, _ = read_deployment(path)
    return config_of(deployment, path.resolve(), name, socket_path, flags)


def config_of(deployment: Deployment, path: Path, name: str, socket_path: str, flags: NodeFlags) -> KVNodeConfig | None:
    """Of a file that was read from `path`, which is absolute. Raises DeploymentError if nothing says how its lanes are
    secured."""
    topology = topology_of(deployment)
    instance = next((instance for instance in topology.instances if instance.name == name), None)
    if instance is None:
        return None
    control = urlsplit(instance.kvnode_url)
    assert control.port is not None, "the file was checked"
    flags = replace(
        flags,
        http=flags.http or (str(control.hostname), control.port),
        lanes=flags.lanes or parse_address(instance.lanes),
        peers=flags.peers
        or {target.name: dialled_lanes(deployment, instance, target) for target in topology.sends_to(instance)},
        tls=None if flags.plain else flags.tls or credential_files(deployment, path, instance),
        identities={**_identities(deployment, topology, instance), **flags.identities},
    )
    if flags.tls is None and not flags.plain and deployment.transfer.encryption != "none":
        raise DeploymentError(
            f"{path}: transfer.tls: missing; name the files of the nodes there, or give --tls-ca, --tls-cert and"
            " --tls-key, or --plain if the network between the nodes is private"
        )
    return _config(name, socket_path, flags, deployment.transfer, topology.links_used_by(instance))


def config_by_hand(name: str, socket_path: str, flags: NodeFlags) -> KVNodeConfig:
    """Of a node that no file describes: `flags` has its addresses. Peers must carry their clusters' names, unless
    `identities` says what."""
    known = {node: default_identity(node) for node in (name, *flags.peers)} | dict(flags.identities)
    config = _config(name, socket_path, replace(flags, identities=known), Transfer(), ())
    return config if config.identities else replace(config, identities=None)


def lane_limits(transfer: Transfer, links: Iterable[Link]) -> LaneLimits:
    """Of a node that sends over `links`. With `lanes: auto` it begins with as many lanes per peer as the widest wants;
    a number is kept."""
    congestion = "" if transfer.congestion == "auto" else transfer.congestion
    # Without a choice both are tried, and a trial needs no more lanes than BBR.
    wanted = [num_lanes(link.bytes_per_s, link.rtt_s, congestion=congestion or "bbr") for link in links]
    first = max(wanted, default=num_lanes(None, None, congestion=congestion or "bbr"))
    lanes, most = (first, max(first, MAX_LANES)) if transfer.lanes == "auto" else (transfer.lanes, transfer.lanes)
    return LaneLimits(
        num_lanes=lanes,
        max_lanes=most,
        chunk_bytes=transfer.chunk,
        congestion=congestion,
        pacing=transfer.pacing,
    )


def credential_files(deployment: Deployment, path: Path, instance: Instance) -> CredentialFiles | None:
    """Files that the deployment names for a node; None if it names none. `path` is the file's, absolute."""
    tls = deployment.transfer.tls
    if tls is None:
        return None
    paths = (node_path(text, path, instance.cluster, instance.name) for text in (tls.ca, tls.cert, tls.key))
    return CredentialFiles(*map(str, paths))


def _identities(deployment: Deployment, topology: Topology, instance: Instance) -> dict[str, str]:
    """What the certificates must carry: this node's own, and those of nodes at the other end of its lanes."""
    ends = (instance, *topology.sends_to(instance), *topology.receives_from(instance))
    return {end.name: deployment.identity_of(end.cluster) for end in ends}


def _config(name: str, socket_path: str, flags: NodeFlags, transfer: Transfer, links: Iterable[Link]) -> KVNodeConfig:
    assert flags.http is not None, "a node has addresses"
    assert flags.lanes is not None, "a node has addresses"
    transfer = _overridden(
        transfer,
        arena=flags.arena_bytes,
        chunk=flags.chunk_bytes,
        congestion=flags.congestion,
        pacing=flags.pacing,
        hash=_overridden(transfer.hash, algorithm=flags.hash_algorithm, seed=flags.hash_seed),
    )
    limits = lane_limits(transfer, links)
    lanes = limits.num_lanes if flags.num_lanes is None else flags.num_lanes
    most = limits.max_lanes if flags.max_lanes is None else flags.max_lanes
    identities = dict(flags.identities)
    return KVNodeConfig(
        name,
        *flags.http,
        *flags.lanes,
        socket_path,
        transfer.arena,
        dict(flags.peers),
        replace(limits, num_lanes=lanes, max_lanes=max(lanes, most)),
        transfer.hash,
        flags.tls,
        identities.pop(name, ""),
        identities,
    )


def _overridden(section: Section, **given: object) -> Section:
    return section.model_copy(update={name: value for name, value in given.items() if value is not None})
