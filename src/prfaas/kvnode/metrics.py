"""A node's figures for Prometheus, read from its ledgers at the moment of the scrape: nothing is counted twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from prfaas.core.link.snapshot import LinkSnapshot
from prfaas.kvnode.node import KVNode
from prfaas.observe.metrics import spec

#: Figures of a link by metric; one that is not known is left out of the scrape.
_LINK_GAUGES: Final[dict[str, Callable[[LinkSnapshot], float | None]]] = {
    "prfaas_link_capacity_bytes_per_second": lambda report: report.state.capacity_bytes_per_s,
    "prfaas_link_delivered_bytes_per_second": lambda report: report.state.delivered_bytes_per_s,
    "prfaas_link_utilization_ratio": lambda report: report.state.utilization,
    "prfaas_link_rtt_seconds": lambda report: report.state.rtt_s,
    "prfaas_link_min_rtt_seconds": lambda report: report.state.min_rtt_s,
    "prfaas_link_retransmit_ratio": lambda report: report.state.retransmit_ratio,
    "prfaas_link_unsent_bytes": lambda report: report.state.unsent_bytes,
    "prfaas_link_queued_bytes": lambda report: report.queued_bytes,
    "prfaas_link_transfers": lambda report: report.num_transfers,
    "prfaas_link_verdict": lambda report: report.state.verdict,
}
#: Figures without labels, by metric: what the data plane counts them as.
_UNLABELLED: Final = {
    "prfaas_chunk_checksum_failures_total": "checksum_failures",
    "prfaas_landings_expired_total": "landings_expired",
    "prfaas_ledger_faults_total": "ledger_faults",
}


class NodeMetrics(Collector):
    """Collects from one node. `render` is what GET /metrics answers."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, node: KVNode) -> None:
        self._node = node
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def render(self) -> bytes:
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Called by the registry for every scrape."""
        plane = self._node.plane
        with plane.lock:
            counters = dict(plane.counters)
            landings = plane.ledgers.landings.count_by_state()
            num_final, num_stagings = plane.ledgers.landings.num_final, len(plane.ledgers.stagings.live())
            free, capacity = plane.ledgers.extents.free_bytes, plane.ledgers.extents.capacity

        def counted(metric: str) -> dict[str, float]:
            return {label: float(value) for (name, label), value in counters.items() if name == metric}

        yield _family(
            "prfaas_lane_bytes_total",
            [
                ((direction, peer), value)
                for direction, name in (("out", "bytes_sent"), ("in", "bytes_received"))
                for peer, value in counted(name).items()
            ],
        )
        yield _by_label("prfaas_lane_bytes_resent_total", counted("bytes_resent"))
        yield _by_label("prfaas_frames_rejected_total", counted("frames_rejected"))
        ended = counted("transfers").items()
        yield _family("prfaas_transfers_total", [(label.split(":"), value) for label, value in ended])
        for metric, name in _UNLABELLED.items():
            yield _family(metric, [((), counted(name).get("", 0.0))])
        yield _family("prfaas_node_deployment_refused", [((), float(self._node.is_file_refused))])
        yield _by_label("prfaas_lane_up", {name: float(link.lanes_up) for name, link in self._node.links.items()})
        yield _by_label("prfaas_landings", {state.value: float(count) for state, count in landings.items()})
        yield _family("prfaas_stagings", [((), float(num_stagings))])
        yield _by_label("prfaas_node_records", {"in": float(num_final), "out": float(len(self._node.sent))})
        yield _family("prfaas_node_tasks", [((), float(_num_tasks()))])
        yield _by_label("prfaas_arena_bytes", {"free": float(free), "used": float(capacity - free)})
        reports = self._node.link_monitor.snapshots()
        for metric, read in _LINK_GAUGES.items():
            figures = {peer: read(report) for peer, report in reports.items()}
            known = {peer: float(figure) for peer, figure in figures.items() if figure is not None}
            yield _by_label(metric, known)
        yield from self._lanes()

    def _lanes(self) -> Iterator[Metric]:
        node = self._node
        paced = {peer: rate or 0.0 for peer, rate in node.link_monitor.paced_bytes_per_s().items()}
        yield _by_label("prfaas_link_paced_bytes_per_second", paced)
        lanes = [
            ((peer, algorithm or "unknown"), float(count))
            for peer, link in node.links.items()
            for algorithm, count in Counter(lane.congestion for lane in link.lanes if lane.is_up).items()
        ]
        yield _family("prfaas_lane_congestion_control", lanes)
        if node.security is not None:
            yield _family("prfaas_certificate_expiry_seconds", [((), node.security.credentials.not_after_s)])


def _num_tasks() -> int:
    """0 where no event loop runs."""
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        return 0


def _by_label(name: str, values: dict[str, float]) -> Metric:
    return _family(name, [((label,), value) for label, value in values.items()])


def _family(name: str, samples: Iterable[tuple[Sequence[str], float]]) -> Metric:
    """A metric of the table: each sample has a value for every label of its row."""
    row = spec(name)
    kind = CounterMetricFamily if row.kind == "counter" else GaugeMetricFamily
    family = kind(row.name, row.help, labels=row.labels)
    for labels, value in samples:
        assert len(labels) == len(row.labels), (name, labels)
        family.add_metric(labels, value)
    return family
