"""A node's figures for Prometheus, read from its ledgers at the moment of the scrape: nothing is counted twice."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from prfaas.kvnode.node import KVNode


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
        exchange = self._node.exchange
        with exchange.lock:
            counters = dict(exchange.counters)
            landings = exchange.landings.count_by_state()
            free, capacity = exchange.extents.free_bytes, exchange.extents.capacity

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
