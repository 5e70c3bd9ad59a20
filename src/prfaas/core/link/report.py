"""What a node tells about its link to one peer."""

from __future__ import annotations

from dataclasses import dataclass

from prfaas.core.link.estimate import LinkState


@dataclass(frozen=True, slots=True)
class LinkReport:
    """`queued_bytes`: of all transfers to the peer, what is not acknowledged yet, staged or still to be computed. A new
    transfer shares the link with these; `state.unsent_bytes` is only what sockets hold of them."""

    state: LinkState
    lanes_up: int
    queued_bytes: int
    num_transfers: int

    def record(self, now_s: float) -> dict[str, object]:
        """The JSON of docs/protocols.md."""
        return {
            "lanes_up": self.lanes_up,
            "queued_bytes": self.queued_bytes,
            "num_transfers": self.num_transfers,
            **self.state.record(now_s),
        }
