"""From the options of `prfaas kvnode` to the settings of a node."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from prfaas.cli.arguments import BadArgument, host_port, identities, node_name, peers, size, socket_path, tls_files
from prfaas.deployment.load import read_deployment
from prfaas.deployment.topology import topology_of
from prfaas.deployment.watch import file_stamp
from prfaas.kvnode.config import KVNodeConfig
from prfaas.kvnode.configure import NodeFlags, config_by_hand, read_config
from prfaas.kvnode.server import ConfigFile


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeOptions:
    """As they were written. None: not given."""

    name: str
    socket: str
    file: Path | None
    http: str | None
    lanes: str | None
    arena: str | None
    peers: list[str] | None
    num_lanes: int | None
    max_lanes: int | None
    chunk: str | None
    congestion: str | None
    pacing: bool | None
    hash_algorithm: str | None
    hash_seed: str | None
    tls: tuple[str | None, str | None, str | None]
    plain: bool
    identities: list[str] | None


def node_settings(options: NodeOptions) -> tuple[KVNodeConfig, ConfigFile | None]:
    """A node's settings, and the file that they follow, if there is one. Raises BadArgument or DeploymentError."""
    name, socket = node_name("--name", options.name), socket_path("--socket", options.socket)
    flags = _flags(options)
    if options.file is None:
        return config_by_hand(name, socket, flags), None
    read = partial(read_config, name=name, socket_path=socket, flags=flags)
    stamp = file_stamp(options.file)
    config = read(options.file)
    if config is None:
        raise BadArgument(_unknown_name(options.file, name))
    return config, ConfigFile(options.file, stamp, read)


def _unknown_name(path: Path, name: str) -> str:
    names = ", ".join(instance.name for instance in topology_of(read_deployment(path)[0]).instances)
    if not names:
        return f"--name: {path} has no instance {name}, and no other; add clusters.*.endpoints"
    return f"--name: {path} has no instance {name}; it has {names}"


def _flags(options: NodeOptions) -> NodeFlags:
    has_file = options.file is not None
    for option, text in (("--http", options.http), ("--lanes", options.lanes)):
        if text is None and not has_file:
            raise BadArgument(f"{option}: missing; give it, or a deployment file that has the node")
    # With a file it is the file that says how lanes are secured, unless an option does.
    asks = options.plain or not has_file or any(path is not None for path in options.tls)
    return NodeFlags(
        http=None if options.http is None else host_port("--http", options.http),
        lanes=None if options.lanes is None else host_port("--lanes", options.lanes),
        arena_bytes=None if options.arena is None else size("--arena", options.arena, 1 << 16),
        peers=peers(options.peers or []),
        num_lanes=options.num_lanes,
        max_lanes=options.max_lanes,
        chunk_bytes=None if options.chunk is None else size("--chunk", options.chunk, 4096, 1 << 26),
        congestion=options.congestion,
        pacing=options.pacing,
        hash_algorithm=options.hash_algorithm,
        hash_seed=options.hash_seed,
        tls=tls_files(*options.tls, plain=options.plain) if asks else None,
        plain=options.plain,
        identities=identities(options.identities or [], plain=options.plain),
    )
