"""What a node knows of its link to one peer at one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from prfaas.core.link.estimate import LinkState


@dataclass(frozen=True, slots=True)
class LinkSnapshot:
    """`queued_bytes`: of all transfers to the peer, what is not acknowledged yet, staged or still to be computed. A new
    transfer shares the link with these, and with what is on its way of transfers that are over, which counts too;
    `state.unsent_bytes` is only what sockets hold of them. `arrives_bytes_per_s`: what the peer acknowledges while
    bytes are late; None: they are not. Then `left_bytes` has what is missing of each transfer."""

    state: LinkState
    lanes_up: int
    queued_bytes: int
    num_transfers: int
    arrives_bytes_per_s: float | None = None
    left_bytes: Mapping[str, int] = field(default_factory=dict)
