"""Links to the nodes that this one sends to. They come and go while the node runs.

Laws of this file:
- `current` is replaced and never changed, so that any thread may go through it.
- A link that leaves takes no new transfer. It is closed when the transfers that it has are over.
- Another address under a known name is another node: the old link leaves, and a new one comes.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping

from prfaas.transport.outbound import PeerLink

logger = logging.getLogger("prfaas.kvnode")

Address = tuple[str, int]


class Peers:
    """`make(name, address)` makes a link; this object starts and stops it."""

    def __init__(self, addresses: Mapping[str, Address], make: Callable[[str, Address], PeerLink]) -> None:
        self._make = make
        self._addresses = dict(addresses)
        self.current = {name: make(name, address) for name, address in self._addresses.items()}
        self._leaving: tuple[PeerLink, ...] = ()
        self._lock = threading.Lock()
        self._started = False

    @property
    def all(self) -> tuple[PeerLink, ...]:
        """Also those that leave."""
        return (*self._leaving, *self.current.values())

    def start(self) -> None:
        """Dial."""
        self._started = True
        for link in self.current.values():
            link.start()

    def stop(self) -> None:
        """Close every link and abort what is under way."""
        with self._lock:
            self._started = False
            for link in self.all:
                link.stop()

    def follow(self, addresses: Mapping[str, Address]) -> None:
        """From now on send to these, and to nobody else."""
        with self._lock:
            stayed = {name: link for name, link in self.current.items() if addresses.get(name) == self._addresses[name]}
            gone = tuple(link for name, link in self.current.items() if name not in stayed)
            new = {name: self._make(name, address) for name, address in addresses.items() if name not in stayed}
            self._addresses = dict(addresses)
            self._leaving += gone
            self.current = {name: (stayed | new)[name] for name in addresses}
            for link in new.values() if self._started else ():
                link.start()
        for link in gone:
            logger.info("node %s is no peer any more; transfers to it that go on: %d", link.peer, link.ledger.num_live)
        for name in new:
            logger.info("node %s is a peer now, at %s:%d", name, *addresses[name])

    def check(self, now_s: float) -> None:
        """Monitor's tick; closes what has left and carries nothing."""
        for link in self.all:
            link.check(now_s)
        idle = [link for link in self._leaving if not link.ledger.num_live]
        if not idle:
            return
        with self._lock:
            self._leaving = tuple(link for link in self._leaving if link not in idle)
        for link in idle:
            link.stop()

    def carrying(self, peer: str, transfer_id: str) -> PeerLink | None:
        """The link that carries a transfer to `peer`, or the one that would; None if there is none any more."""
        old = (link for link in self._leaving if link.ledger.find(transfer_id) is not None)
        return next(old, self.current.get(peer))
