"""One simulated instance: an engine and the KV node beside it, each with lives of its own. The ledger is shipped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from prfaas.core.model.layout import KVGroupKind
from prfaas.core.transfer.extents import ExtentAllocator
from prfaas.core.transfer.landings import ClaimKey, Landing, Landings
from prfaas.core.wire.node_api import OPEN_STATES

#: Room for about twenty middling images, so that some reservations are refused.
ARENA_BYTES: Final = 8 << 20
MAX_LANDINGS: Final = 40
#: More than are asked for again after they ended; few, because `check` looks at each.
MAX_FINAL_RECORDS: Final = 128
FINGERPRINT: Final = "layout"
KINDS: Final = (
    (KVGroupKind.FULL_ATTENTION,),
    (KVGroupKind.FULL_ATTENTION, KVGroupKind.LINEAR_STATE),
    (KVGroupKind.FULL_ATTENTION, KVGroupKind.SLIDING_WINDOW),
)

#: Called once with the landing when it is past receiving, with None if the node does not know it; False: the node died.
Watcher = Callable[[Landing | None, bool], None]


class Site:
    """`name` is of the instance that stands at this URL. What ends an engine's life ends its legs, what ends a node's
    life ends its landings; `engine_life` and `node_life` count them."""

    def __init__(self, name: str, cluster: str, number: int, block_tokens: int, kinds: tuple[KVGroupKind, ...]) -> None:
        self.name, self.cluster, self.url = name, cluster, f"http://{name}.{number}"
        self.block_tokens, self.kinds = block_tokens, kinds
        self.engine_up = self.node_up = True
        self.engine_life = self.node_life = 1
        #: The engine's life that has registered with the node; 0 if none has.
        self.registered_life = 1
        #: What shall happen to the work of an engine that dies, in the order in which it came.
        self.legs: dict[int, Callable[[], None]] = {}
        #: The same of a node, for what it sends.
        self.sends: dict[int, Callable[[], None]] = {}
        self.watchers: dict[str, Watcher] = {}
        #: Landings whose gateway could not tell this node that it drops them.
        self.orphans: dict[str, None] = {}
        self._num_legs = self._num_handles = 0
        self._new_ledger()

    def _new_ledger(self) -> None:
        self.arena = ExtentAllocator(ARENA_BYTES)
        self.ledger = Landings(self.arena, max_landings=MAX_LANDINGS, max_final_records=MAX_FINAL_RECORDS)

    @property
    def boot_id(self) -> str:
        """Of the engine that has registered here."""
        return f"{self.url}/{self.registered_life}"

    @property
    def has_engine(self) -> bool:
        return self.registered_life != 0

    # The engine

    def add_leg(self, on_death: Callable[[], None]) -> int:
        """Work that the engine has begun. Returns the leg's number, for `end_leg`."""
        self._num_legs += 1
        self.legs[self._num_legs] = on_death
        return self._num_legs

    def end_leg(self, number: int) -> None:
        self.legs.pop(number, None)

    def add_send(self, on_death: Callable[[], None]) -> int:
        self._num_legs += 1
        self.sends[self._num_legs] = on_death
        return self._num_legs

    def end_send(self, number: int) -> None:
        self.sends.pop(number, None)

    def kill_engine(self) -> None:
        """Its legs break; the node frees what it was loading."""
        self.engine_up = False
        legs, self.legs = self.legs, {}
        if self.node_up and self.registered_life == self.engine_life:
            self.ledger.engine_gone(self.boot_id)
            self.registered_life = 0
        for on_death in legs.values():
            on_death()
        self._tell_watchers()

    def start_engine(self) -> None:
        self.engine_up, self.engine_life = True, self.engine_life + 1

    def register(self) -> None:
        """The engine has found its node."""
        if self.engine_up and self.node_up:
            self.registered_life = self.engine_life

    # The node

    def kill_node(self) -> None:
        """Every landing is gone with it."""
        self.node_up, self.registered_life = False, 0
        self.node_life += 1
        self._new_ledger()
        watchers, self.watchers = self.watchers, {}
        sends, self.sends = self.sends, {}
        for on_death in sends.values():
            on_death()
        for watcher in watchers.values():
            watcher(None, False)

    def start_node(self) -> None:
        self.node_up = True

    def reserve(
        self, transfer_id: str, key: ClaimKey, num_bytes: int, skip: int, now_s: float, lease_s: float
    ) -> Landing:
        """Raises Refused."""
        self._num_handles += 1
        return self.ledger.reserve(
            transfer_id, token=transfer_id, claim_key=key, handle=self._num_handles, num_bytes=num_bytes,
            skip_tokens=skip, fingerprint=FINGERPRINT, now_s=now_s, lease_s=lease_s,
        )  # fmt: skip

    def fill(self, landing: Landing, sender: str, now_s: float) -> None:
        """Every byte of an image comes in."""
        size = landing.extent.size
        if self.ledger.begin_chunk(sender, 0, landing.handle, 0, size) is not None:
            self.ledger.end_chunk(sender, 0, landing.handle, 0, size, good=True, now_s=now_s)
        self._tell_watchers()

    def drop(self, transfer_id: str, reason: str) -> Landing | None:
        landing = self.ledger.drop(transfer_id, reason)
        self._tell_watchers()
        return landing

    def sender_gone(self, sender: str) -> None:
        self.ledger.sender_gone(sender, "link to the sender is lost")
        self._tell_watchers()

    def expire(self, now_s: float) -> list[Landing]:
        overdue = self.ledger.expire(now_s) if self.node_up else []
        if overdue:
            self._tell_watchers()
        return overdue

    def watch(self, transfer_id: str, watcher: Watcher) -> None:
        """Call `watcher` once, perhaps at once."""
        if not self.node_up:
            watcher(None, False)
        else:
            self.watchers[transfer_id] = watcher
            self._tell_watchers()

    def unwatch(self, transfer_id: str) -> None:
        self.watchers.pop(transfer_id, None)

    def check(self) -> None:
        self.ledger.check()
        self.arena.check()
        assert self.arena.num_live == len(self.ledger.extents()), "an extent is held by no landing"

    def _tell_watchers(self) -> None:
        for transfer_id in list(self.watchers):
            landing = self.ledger.find(transfer_id)
            if landing is None or landing.state not in OPEN_STATES:
                self.watchers.pop(transfer_id)(landing, True)
