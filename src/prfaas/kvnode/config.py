"""Settings of one KV node."""

from __future__ import annotations

from dataclasses import dataclass, field

from prfaas.deployment.model import BlockHash
from prfaas.transport.credentials import CredentialFiles
from prfaas.transport.limits import LaneLimits


@dataclass(frozen=True, slots=True)
class KVNodeConfig:
    """What `prfaas kvnode` was told. `peers` maps a node's name to the (host, port) of its lanes.

    `tls` None means plain lanes. `identity` is what this node's own certificate must carry; `identities` maps the other
    nodes' names to what theirs must carry, and a node that is not in it is refused. None: by name, see
    `default_identity`. `limits` has the lanes per peer at first, and the most that there may be.
    """

    name: str
    http_host: str
    http_port: int
    lanes_host: str
    lanes_port: int
    socket_path: str
    arena_bytes: int
    peers: dict[str, tuple[str, int]] = field(default_factory=dict)
    limits: LaneLimits = field(default_factory=LaneLimits)
    hash: BlockHash = field(default_factory=BlockHash)
    tls: CredentialFiles | None = None
    identity: str = ""
    identities: dict[str, str] | None = None
