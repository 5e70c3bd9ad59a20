"""A node's figures for Prometheus, read from its ledgers at the moment of the scrape: nothing is counted twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from prfaas.core.link.estimate import LinkState
from prfaas.kvnode.node import KVNode
from prfaas.observe.metrics import spec

#: Figures of a link by metric; one that is not known is left out of the scrape.
_LINK_GAUGES: Final[dict[str, Callable[[LinkState], float | None]]] = {
    "prfaas_link_capacity_bytes_per_second": lambda state: state.capacity_bytes_per_s,
    "prfaas_link_delivered_bytes_per_second": lambda state: state.delivered_bytes_per_s,
    "prfaas_link_utilization_ratio": lambda state: state.utilization,
    "prfaas_link_rtt_seconds": lambda state: state.rtt_s,
    "prfaas_link_min_rtt_seconds": lambda state: state.min_rtt_s,
    "prfaas_link_retransmit_ratio": lambda state: state.retransmit_ratio,
    "prfaas_link_unsent_bytes": lambda state: state.unsent_bytes,
    "prfaas_link_verdict": lambda state: state.verdict,
}


class NodeMetrics(Collector):
    """Collects from one node. `render` is what GET /metrics answers."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, node: KVNode) -> None:
        self._node = node
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def render(self) -> bytes:
        """Prometheus text."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Called by the registry for every scrape."""
        ledgers = self._node.ledgers
        with ledgers.lock:
            counters = dict(ledgers.counters)
            landings = ledgers.landings.count_by_state()
            free, capacity = ledgers.extents.free_bytes, ledgers.extents.capacity

        def counted(metric: str) -> dict[str, float]:
            return {label: float(value) for (name, label), value in counters.items() if name == metric}

        moved = CounterMetricFamily("prfaas_lane_bytes", "KV payload bytes over lanes.", labels=["direction", "peer"])
        for direction, name in (("out", "bytes_sent"), ("in", "bytes_received")):
            for peer, value in counted(name).items():
                moved.add_metric([direction, peer], value)
        yield moved
        yield _family(
            "prfaas_lane_bytes_resent", "Bytes given to another lane after a loss.", "peer", counted("bytes_resent")
        )
        yield _family("prfaas_frames_rejected", "Frames and peers refused.", "reason", counted("frames_rejected"))
        transfers = CounterMetricFamily("prfaas_transfers", "Transfers ended.", labels=["direction", "outcome"])
        for label, value in counted("transfers").items():
            transfers.add_metric(label.split(":"), value)
        yield transfers
        failures = counted("checksum_failures").get("", 0.0)
        yield CounterMetricFamily("prfaas_chunk_checksum_failures", "Chunks that came damaged.", value=failures)
        expired = counted("landings_expired").get("", 0.0)
        yield CounterMetricFamily("prfaas_landings_expired", "Landings whose lease ran out.", value=expired)
        up = {name: float(link.lanes_up) for name, link in self._node.links.items()}
        yield _gauge("prfaas_lane_up", "Lanes up, per peer that this node sends to.", "peer", up)
        live = {state.value: float(count) for state, count in landings.items()}
        yield _gauge("prfaas_landings", "Landings now, by state.", "state", live)
        bytes_by_state = {"free": float(free), "used": float(capacity - free)}
        yield _gauge("prfaas_arena_bytes", "Arena bytes, by state.", "state", bytes_by_state)
        states = self._node.link_monitor.states()
        for metric, read in _LINK_GAUGES.items():
            figures = {peer: read(state) for peer, state in states.items()}
            known = {peer: float(figure) for peer, figure in figures.items() if figure is not None}
            yield _gauge(metric, spec(metric).help, "peer", known)
        yield from self._lanes()

    def _lanes(self) -> Iterator[Metric]:
        node = self._node
        paced = {peer: rate or 0.0 for peer, rate in node.link_monitor.paced_bytes_per_s().items()}
        name = "prfaas_link_paced_bytes_per_second"
        yield _gauge(name, spec(name).help, "peer", paced)
        name = "prfaas_lane_congestion_control"
        lanes = GaugeMetricFamily(name, spec(name).help, labels=["peer", "algorithm"])
        for peer, link in node.links.items():
            for algorithm, count in Counter(lane.congestion for lane in link.lanes if lane.is_up).items():
                lanes.add_metric([peer, algorithm or "unknown"], count)
        yield lanes
        if node.security is not None:
            name = "prfaas_certificate_expiry_seconds"
            yield GaugeMetricFamily(name, spec(name).help, value=node.security.credentials.not_after_s)


def _family(name: str, text: str, label: str, values: dict[str, float]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _gauge(name: str, text: str, label: str, values: dict[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
