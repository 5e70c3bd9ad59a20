"""Looks at every outbound lane ten times a second, keeps one `LinkState` per peer, and paces the lanes by it."""

from __future__ import annotations

import logging
import math
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Final

from prfaas.core.link.estimate import LinkEstimator, LinkState
from prfaas.core.link.pacing import Pacer
from prfaas.core.link.verdict import LinkVerdict
from prfaas.transport.outbound import PeerLink
from prfaas.transport.sockets import pace
from prfaas.transport.tcp_info import lane_sample

logger = logging.getLogger("prfaas.lanes")

#: Ten samples in the second within which congestion must be known; docs/wire.md says what they cost.
SAMPLE_EVERY_S: Final = 0.1


class LinkPacing:
    """The rate of one link, and which connection has been told what."""

    def __init__(self) -> None:
        self.pacer = Pacer()
        self._told: dict[int, float] = {}

    def apply(self, state: LinkState, sockets: Mapping[int, socket.socket]) -> None:
        """Ask the pacer and tell every lane its equal share; one that was never limited is not told that it is not."""
        rate = self.pacer.update(state, state.at_s)
        told = {}
        for connection, sock in sockets.items():
            before = self._told.get(connection, math.inf)
            share = math.inf if rate is None else rate / len(sockets)
            told[connection] = share
            if share != before:
                pace(sock, None if rate is None else share)
        self._told = told


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
        self._estimators = {peer: LinkEstimator() for peer in links}
        self._pacing = {peer: LinkPacing() for peer, link in links.items() if link.plane.limits.pacing}
        #: Grows with every change of any link's verdict.
        self.verdict_changes = 0
        self._on_verdict_change = on_verdict_change
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prfaas-link-sense", daemon=True)

    def start(self) -> None:
        """Sample until `stop`. A node that sends to nobody gets no thread."""
        if self._links:
            self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()

    def states(self) -> dict[str, LinkState]:
        """The latest state of every link, by peer."""
        return {peer: estimator.state for peer, estimator in self._estimators.items()}

    def paced_bytes_per_s(self) -> dict[str, float | None]:
        """What all lanes to a peer may send together, by peer; None is no limit."""
        return {peer: pacing.pacer.bytes_per_s for peer, pacing in self._pacing.items()}

    def sample(self) -> None:
        """One look at every lane."""
        for peer, link in self._links.items():
            sockets = link.live_sockets()
            estimator = self._estimators[peer]
            if not sockets and _at_rest(estimator.state):
                continue
            taken = {connection: lane_sample(sock) for connection, sock in sockets.items()}
            known = {connection: sample for connection, sample in taken.items() if sample is not None}
            before = estimator.state
            pacing = self._pacing.get(peer)
            state = estimator.observe(known, self._now_s(), None if pacing is None else pacing.pacer.bytes_per_s)
            link.learn(state, known, state.at_s - before.at_s)
            if state.verdict is not before.verdict:
                self.verdict_changes += 1
                self._on_verdict_change()
            if pacing is not None:
                pacing.apply(state, sockets)
                if link.widen(pacing.pacer.unused_s):
                    pacing.pacer.unused_s = 0.0

    def _run(self) -> None:
        while not self._stopping.wait(SAMPLE_EVERY_S):
            try:
                self.sample()
            except Exception:
                logger.exception("sampling the links failed; it goes on")


def _at_rest(state: LinkState) -> bool:
    return state.verdict is LinkVerdict.CLEAR and state.rtt_s is None and not state.delivered_bytes_per_s
