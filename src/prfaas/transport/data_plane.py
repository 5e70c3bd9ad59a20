"""What all lanes of a node share: the arena, the ledgers, one lock, the counters, and who is told of changes.

The lock guards ledgers and counters only; nobody sends, receives, sums or logs while holding it.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from prfaas.core.transfer.extents import Extent
from prfaas.core.transfer.ledgers import Ledgers
from prfaas.transport.arena import Arena
from prfaas.transport.limits import LaneLimits
from prfaas.transport.secure import LaneSecurity


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """Who this node is and what its peers must agree to. `fingerprint` is empty until an engine registers."""

    name: str
    boot_id: str
    hash_algorithm: str
    hash_seed: str


class DataPlane:
    """Shared state of a node's data plane.

    `on_change(transfer_id)` is called from lane threads, without the lock, after a landing or transfer changed state.
    `counters` keys are (metric, label); they only grow.
    """

    def __init__(
        self,
        identity: NodeIdentity,
        arena: Arena,
        limits: LaneLimits,
        security: LaneSecurity | None,
        on_change: Callable[[str], None],
    ) -> None:
        self.identity = identity
        #: None: lanes are plain, by the operator's explicit wish.
        self.security = security
        self.arena = arena
        self.limits = limits
        self.lock = threading.Lock()
        #: Notified when an inbound lane has ended, or has ended a chunk: its place may be free now.
        self.place_freed = threading.Condition(self.lock)
        self.ledgers = Ledgers(arena.num_bytes)
        self.counters: Counter[tuple[str, str]] = Counter()
        self.fingerprint = ""
        self.on_change = on_change
        self._next_lane = 0

    def now_s(self) -> float:
        """The node's monotonic clock, the only one that ledgers see."""
        return time.monotonic()

    def new_lane_number(self) -> int:
        """Unique within the node's life."""
        with self.lock:
            self._next_lane += 1
            return self._next_lane

    def memory(self, extent: Extent) -> memoryview:
        return self.arena.view[extent.start : extent.end]

    def count(self, metric: str, label: str = "", amount: int = 1) -> None:
        with self.lock:
            self.counters[metric, label] += amount

    def landed(self, handle: int) -> None:
        """A landing became whole: count it and tell whoever waits."""
        with self.lock:
            landing = self.ledgers.landings.by_handle(handle)
            if landing is None or landing.landed_s is None:
                return
            self.counters["transfers", "in:landed"] += 1
        self.on_change(landing.transfer_id)
