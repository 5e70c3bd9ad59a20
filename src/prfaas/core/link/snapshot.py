"""What a node knows of its link to one peer at one moment."""

from __future__ import annotations

from dataclasses import dataclass

from prfaas.core.link.estimate import LinkState


@dataclass(frozen=True, slots=True)
class LinkSnapshot:
    """`queued_bytes`: of all transfers to the peer, what is not acknowledged yet, staged or still to be computed. A new
    transfer shares the link with these; `state.unsent_bytes` is only what sockets hold of them."""

    state: LinkState
    lanes_up: int
    queued_bytes: int
    num_transfers: int
