"""Has every link looked at ten times a second. What is seen and what follows from it is `core.link.controller`'s."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Final

from prfaas.core.link.arrivals import TOLD_BELOW
from prfaas.core.link.estimate import LinkState
from prfaas.core.link.snapshot import LinkSnapshot
from prfaas.transport.outbound import PeerLink

logger = logging.getLogger("prfaas.lanes")

#: Ten samples in the second within which congestion must be known; docs/wire.md says what they cost.
SAMPLE_EVERY_S: Final = 0.1


class LinkMonitor:
    """`sample` is called by one thread, `states` by any."""

    def __init__(
        self,
        links: Mapping[str, PeerLink],
        now_s: Callable[[], float],
        on_verdict_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._links = links
        self._now_s = now_s
        #: Grows with every change of any link's verdict, and when much less arrives than it did.
        self.verdict_changes = 0
        self._on_verdict_change = on_verdict_change
        #: By peer, what was last told to arrive.
        self._told: dict[str, float] = {}
        self._started = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prfaas-link-sense", daemon=True)

    def start(self) -> None:
        """Sample until `stop`. A node that sends to nobody gets no thread."""
        self._started = True
        self.follow(self._links)

    def follow(self, links: Mapping[str, PeerLink]) -> None:
        """Look at these from now on. The map must not change."""
        self._links = links
        if self._started and links and self._thread.ident is None:
            self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()

    def snapshots(self) -> dict[str, LinkSnapshot]:
        """Of every link, by peer, as of the last look."""
        return {peer: link.snapshot() for peer, link in self._links.items()}

    def states(self) -> dict[str, LinkState]:
        """The latest state of every link, by peer."""
        return {peer: link.controller.state for peer, link in self._links.items()}

    def paced_bytes_per_s(self) -> dict[str, float | None]:
        """What all lanes to a peer may send together, by peer; None is no limit."""
        return {peer: link.controller.paced_bytes_per_s for peer, link in self._links.items()}

    def sample(self) -> None:
        """One look at every lane."""
        for peer, link in self._links.items():
            verdict = link.controller.state.verdict
            link.look(self._now_s())
            if self._has_fallen(peer, link.arrivals.bytes_per_s) or link.controller.state.verdict is not verdict:
                self.verdict_changes += 1
                self._on_verdict_change()

    def _has_fallen(self, peer: str, arrives: float | None) -> bool:
        told = self._told.get(peer)
        if arrives is None:
            self._told.pop(peer, None)
        elif told is None or arrives > told or arrives < TOLD_BELOW * told:
            self._told[peer] = arrives
        return arrives is not None and told is not None and arrives < TOLD_BELOW * told

    def _run(self) -> None:
        while not self._stopping.wait(SAMPLE_EVERY_S):
            try:
                self.sample()
            except Exception:
                logger.exception("sampling the links failed; it goes on")
