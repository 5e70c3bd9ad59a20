"""The ledgers of one node that share its arena: who holds which bytes of it, and why. Pure.

Law of this file: every live extent of the arena has exactly one owner, a landing or a staging.
"""

from __future__ import annotations

from prfaas.core.transfer.extents import ExtentAllocator
from prfaas.core.transfer.landings import Landings
from prfaas.core.transfer.stagings import Stagings


class Ledgers:
    """`landings` is what comes in, `stagings` what goes out, `extents` the space of both."""

    def __init__(self, arena_bytes: int) -> None:
        self.extents = ExtentAllocator(arena_bytes)
        self.landings = Landings(self.extents)
        self.stagings = Stagings(self.extents)

    def check(self) -> None:
        """Invariants of all three and of their sum. The message of an AssertionError is the record of what is wrong."""
        self.extents.check()
        self.landings.check()
        self.stagings.check()
        owned = self.landings.extents() + [staging.extent for staging in self.stagings.live().values()]
        assert len(owned) == len(set(owned)), sorted(owned)
        assert set(owned) == self.extents.live(), sorted(self.extents.live() ^ set(owned))
