"""The network's figures for Prometheus, read at the moment of the scrape."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from prfaas.observe.metrics import spec
from prfaas.wan.network import Link, Network

#: By metric; None is left out of the scrape.
_FIGURES: Final[dict[str, Callable[[Link], float | None]]] = {
    "prfaas_wan_carried_bytes_total": lambda link: link.line.carried_bytes,
    "prfaas_wan_bandwidth_bytes_per_second": lambda link: 0 if link.settings.cut else link.settings.bandwidth,
    "prfaas_wan_rtt_seconds": lambda link: link.settings.rtt,
    "prfaas_wan_queue_bytes": lambda link: link.line.queue_bytes,
    "prfaas_wan_held_bytes": lambda link: link.line.held_bytes,
    "prfaas_wan_connections": lambda link: len(link.connections),
    "prfaas_wan_stalls_total": lambda link: link.line.num_stalls,
    "prfaas_wan_flipped_bits_total": lambda link: link.line.num_flips,
}


class WanMetrics(Collector):
    """`render` is what GET /metrics answers."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, network: Network) -> None:
        self._network = network
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def render(self) -> bytes:
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Called by the registry for every scrape."""
        for name, figure in _FIGURES.items():
            row = spec(name)
            family = CounterMetricFamily if row.kind == "counter" else GaugeMetricFamily
            metric = family(row.name, row.help, labels=row.labels)
            for (source, target), link in self._network.links.items():
                value = figure(link)
                if value is not None:
                    metric.add_metric([source, target], value)
            yield metric
        row = spec("prfaas_wan_tasks")
        yield GaugeMetricFamily(row.name, row.help, value=_num_tasks())


def _num_tasks() -> int:
    """0 where no event loop runs."""
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        return 0
