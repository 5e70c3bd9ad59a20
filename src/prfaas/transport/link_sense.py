"""Looks at every outbound lane ten times a second and keeps one `LinkState` per peer."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Final

from prfaas.core.control.link_estimate import LinkEstimator, LinkState
from prfaas.core.control.link_verdict import LinkVerdict
from prfaas.transport.outbound import PeerLink
from prfaas.transport.tcp_info import lane_sample

logger = logging.getLogger("prfaas.lanes")

#: Ten samples in the second within which congestion must be known; docs/wire.md says what they cost.
SAMPLE_EVERY_S: Final = 0.1


class LinkSense:
    """`sample` is called by one thread, `states` by any."""

    def __init__(self, links: Mapping[str, PeerLink], now_s: Callable[[], float]) -> None:
        self._links = links
        self._now_s = now_s
        self._estimators = {peer: LinkEstimator() for peer in links}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prfaas-link-sense", daemon=True)

    def start(self) -> None:
        """Sample until `stop`. A node that sends to nobody gets no thread."""
        if self._links:
            self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()

    def states(self) -> dict[str, LinkState]:
        """The latest state of every link, by peer."""
        return {peer: estimator.state for peer, estimator in self._estimators.items()}

    def sample(self) -> None:
        """One look at every lane."""
        for peer, link in self._links.items():
            sockets = link.live_sockets()
            estimator = self._estimators[peer]
            if not sockets and _at_rest(estimator.state):
                continue
            taken = {connection: lane_sample(sock) for connection, sock in sockets.items()}
            known = {connection: sample for connection, sample in taken.items() if sample is not None}
            estimator.observe(known, self._now_s())

    def _run(self) -> None:
        while not self._stopping.wait(SAMPLE_EVERY_S):
            try:
                self.sample()
            except Exception:
                logger.exception("sampling the links failed; it goes on")


def _at_rest(state: LinkState) -> bool:
    return state.verdict is LinkVerdict.CLEAR and state.rtt_s is None and not state.delivered_bytes_per_s
