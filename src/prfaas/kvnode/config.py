"""Settings of one KV node."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class KVNodeConfig:
    """What `prfaas kvnode` was told. `peers` maps a node's name to the (host, port) of its lanes."""

    name: str
    http_host: str
    http_port: int
    lanes_host: str
    lanes_port: int
    socket_path: str
    arena_bytes: int = 1 << 28
    peers: dict[str, tuple[str, int]] = field(default_factory=dict)
    num_lanes: int = 4
    chunk_bytes: int = 1 << 20
    hash_algorithm: str = "sha256"
    hash_seed: str = "prfaas"
