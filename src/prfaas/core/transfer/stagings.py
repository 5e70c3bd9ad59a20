"""Stagings: the sending node's space for images that its engine fills and its lanes send.

Laws of this file:
- A staging's extent is freed exactly once: when its engine has stopped writing *and* its transfer has ended. Before the
  first, the engine would write into somebody else's bytes; before the second, lanes would send them.
- An id is staged once at a time. It is free again when its staging is over.
- An engine that is gone writes no more; what it held is over when the transfers are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from prfaas.core.errors import Refused
from prfaas.core.transfer.extents import Extent, ExtentAllocator


@dataclass(eq=False)
class Staging:
    """One image on its way out. `engine` is the boot id of the engine that fills it."""

    transfer_id: str
    peer: str
    extent: Extent
    engine: str
    engine_writes: bool = True
    transfer_live: bool = True

    @property
    def is_over(self) -> bool:
        return not (self.engine_writes or self.transfer_live)

    def record(self) -> dict[str, object]:
        """For logs and assertions."""
        return {
            "transfer_id": self.transfer_id,
            "peer": self.peer,
            "engine": self.engine,
            "start": self.extent.start,
            "num_bytes": self.extent.size,
            "engine_writes": self.engine_writes,
            "transfer_live": self.transfer_live,
        }


class Stagings:
    """All stagings of one node. Every method is synchronous; the shell holds one lock around each call."""

    def __init__(self, arena: ExtentAllocator) -> None:
        self._arena = arena
        self._live: dict[str, Staging] = {}

    def open(self, transfer_id: str, peer: str, num_bytes: int, engine: str) -> Staging:
        """Reserve space that `engine` may write from now on. Raises Refused with `exists` or `arena_full`."""
        if transfer_id in self._live:
            raise Refused("exists", "this transfer is being staged already")
        extent = self._arena.allocate(num_bytes)
        if extent is None:
            free = self._arena.free_bytes
            raise Refused("arena_full", f"no room to stage {num_bytes} bytes; {free} are free")
        staging = self._live[transfer_id] = Staging(transfer_id, peer, extent, engine)
        return staging

    def find(self, transfer_id: str) -> Staging | None:
        return self._live.get(transfer_id)

    def of_engine(self, engine: str) -> list[Staging]:
        """What this engine has opened and is not over."""
        return [staging for staging in self._live.values() if staging.engine == engine]

    def live(self) -> Mapping[str, Staging]:
        """By transfer id."""
        return self._live

    def engine_stopped(self, staging: Staging) -> None:
        """Its engine writes it no more. No effect on a staging that is over."""
        staging.engine_writes = False
        self._free_if_over(staging)

    def transfer_ended(self, transfer_id: str) -> None:
        """No lane reads it any more."""
        staging = self._live.get(transfer_id)
        if staging is not None:
            staging.transfer_live = False
            self._free_if_over(staging)

    def withdraw(self, staging: Staging) -> None:
        """The link refused the transfer, and the engine was never told where to write."""
        staging.engine_writes = staging.transfer_live = False
        self._free_if_over(staging)

    def check(self) -> None:
        """Invariants; the message is the staging's record."""
        for transfer_id, staging in self._live.items():
            assert transfer_id == staging.transfer_id, staging.record()
            assert not staging.is_over, staging.record()
            assert staging.extent in self._arena.live(), staging.record()

    def _free_if_over(self, staging: Staging) -> None:
        if staging.is_over and self._live.get(staging.transfer_id) is staging:
            del self._live[staging.transfer_id]
            self._arena.free(staging.extent)
