"""Gauges of what the scheduler knows: set when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator

from prfaas.core.control.view import SchedulerView
from prfaas.observe.metrics import Metrics

Child = tuple[str, tuple[tuple[str, str], ...]]


class SchedulerMetrics:
    """Shows one view after the other; what a view does not have any more is forgotten."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._shown: set[Child] = set()

    def show(self, seen: SchedulerView) -> None:
        """Nothing, while the threshold is fixed."""
        figures = dict(_figures(seen))
        for (name, labels), value in figures.items():
            self._metrics.gauge(name, **dict(labels)).set(value)
        for name, labels in self._shown - figures.keys():
            self._metrics.forget_gauge(name, **dict(labels))
        self._shown = set(figures)


def _figures(seen: SchedulerView) -> Iterator[tuple[Child, float]]:
    for name, cluster in seen.clusters.items():
        labels = (("cluster", name),)
        if cluster.role == "prfaas":
            threshold = -1 if cluster.threshold_tokens is None else cluster.threshold_tokens
            yield ("prfaas_routing_threshold_tokens", labels), threshold
        yield ("prfaas_waiting_prompts", labels), cluster.num_waiting
        yield ("prfaas_waiting_seconds", labels), cluster.waiting_s
        yield ("prfaas_prefill_time_factor", labels), cluster.prefill_factor
    for stage in seen.stages:
        of_stage = (("cluster", stage.cluster), ("duty", stage.duty))
        if stage.load is not None:
            yield ("prfaas_stage_load", of_stage), stage.load
        # Zero and not absent: an autoscaler must tell "nothing is lacking" from "nobody says".
        more = [s for s in seen.suggestions if (s.cluster, s.duty) == (stage.cluster, stage.duty)]
        gains_rps = [s.gain_rps for s in more if s.instead_of is None and s.link_to is None]
        yield ("prfaas_suggested_gain_requests_per_second", of_stage), max(gains_rps, default=0.0)
    for link in seen.links:
        if link.bytes_per_s is not None:
            ends = (("source", link.source), ("target", link.target))
            yield ("prfaas_gateway_link_expected_bytes_per_second", ends), link.bytes_per_s
