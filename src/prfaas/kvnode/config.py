"""Settings of one KV node."""

from __future__ import annotations

from dataclasses import dataclass, field

from prfaas.transport.credentials import CredentialFiles


@dataclass(frozen=True, slots=True)
class KVNodeConfig:
    """What `prfaas kvnode` was told. `peers` maps a node's name to the (host, port) of its lanes.

    `tls` None means plain lanes. `identity` is what this node's own certificate must carry; `identities` maps the other
    nodes' names to what theirs must carry. From a deployment file it holds every node that this one sends to or
    receives from; by hand at least those that it sends to. `congestion` empty chooses by trial. A link
    begins with `num_lanes` lanes, and gets more, up to `max_lanes`, while their windows cannot fill it.
    """

    name: str
    http_host: str
    http_port: int
    lanes_host: str
    lanes_port: int
    socket_path: str
    arena_bytes: int = 1 << 28
    peers: dict[str, tuple[str, int]] = field(default_factory=dict)
    num_lanes: int = 4
    chunk_bytes: int = 16 << 20
    hash_algorithm: str = "sha256"
    hash_seed: str = "prfaas"
    tls: CredentialFiles | None = None
    identity: str = ""
    identities: dict[str, str] = field(default_factory=dict)
    congestion: str = ""
    pacing: bool = True
    max_lanes: int = 32
