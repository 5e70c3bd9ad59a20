"""The one table of metric names of every PrfaaS process. docs/metrics.md is generated from it.

Laws of this file:
- A name is written here once and nowhere else; labels take a bounded set of values, never an id, a URL or a tenant.
- Units are base units and last in the name. Counters end in `_total`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar, cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

M = TypeVar("M", Counter, Gauge, Histogram)
Kind = Literal["counter", "gauge", "histogram"]
Component = Literal["gateway", "kvnode", "wan", "emulate"]

#: vLLM's own buckets are too coarse for 1.7 to 9.7 s, where the paper's figures lie; these add the steps between.
TTFT_BUCKETS_S: Final = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 4, 5, 6, 7.5, 8, 10, 12, 15,
    20, 40, 80, 160, 640,
)  # fmt: skip
TRANSFER_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60)


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One row. `buckets` is for histograms only."""

    name: str
    kind: Kind
    component: Component
    unit: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


TABLE: Final[tuple[MetricSpec, ...]] = (
    MetricSpec("prfaas_requests_total", "counter", "gateway", "requests", "Requests ended.", ("route", "outcome")),
    MetricSpec(
        "prfaas_gateway_link_verdict", "gauge", "gateway", "0, 1, 2",
        "A link as its sending node judges it: 0 clear, 1 pressed, 2 congested.", ("source", "target"),
    ),
    MetricSpec(
        "prfaas_gateway_deployment_refused", "gauge", "gateway", "0 or 1",
        "1 while the deployment file is refused and what was read before stays in force.",
    ),
    MetricSpec(
        "prfaas_routing_threshold_tokens", "gauge", "gateway", "tokens",
        "Prompts with more uncached tokens would go to this PrfaaS cluster now; -1 if none would.", ("cluster",),
    ),
    MetricSpec(
        "prfaas_waiting_prompts", "gauge", "gateway", "prompts",
        "Prompts that wait until an instance of this cluster has room.", ("cluster",),
    ),
    MetricSpec(
        "prfaas_waiting_seconds", "gauge", "gateway", "seconds",
        "What the prompts that wait there are expected to take, on one instance.", ("cluster",),
    ),
    MetricSpec(
        "prfaas_prefill_time_factor", "gauge", "gateway", "ratio",
        "Prefill times seen lately in this cluster, over those of its profile.", ("cluster",),
    ),
    MetricSpec(
        "prfaas_stage_load", "gauge", "gateway", "ratio",
        "How full prefill or decode of a cluster has been over the last minutes; over 1 with what waits.",
        ("cluster", "duty"),
    ),
    MetricSpec(
        "prfaas_suggested_gain_requests_per_second", "gauge", "gateway", "requests/s",
        "What one more instance of this duty in this cluster would serve more. 0 while nothing binds.",
        ("cluster", "duty"),
    ),
    MetricSpec(
        "prfaas_conversions_total", "counter", "gateway", "conversions",
        "Instances that were to get another duty, by how that ended.", ("cluster", "duty", "outcome"),
    ),
    MetricSpec(
        "prfaas_ejections_total", "counter", "gateway", "ejections",
        "Times that an instance got no work for a while, since it failed it or was too slow.", ("instance",),
    ),
    MetricSpec(
        "prfaas_gateway_link_expected_bytes_per_second", "gauge", "gateway", "bytes/s",
        "What the scheduler expects this link to carry.", ("source", "target"),
    ),
    MetricSpec(
        "prfaas_gateway_tasks", "gauge", "gateway", "tasks",
        "Tasks of the event loop. Idle they are as many as after the start.",
    ),
    MetricSpec(
        "prfaas_gateway_entries", "gauge", "gateway", "entries",
        "What is kept of requests: reading, admitted, live, scheduled, answers, queued, timers, background and"
        " open_stories are of those that go on, and 0 when there are none; ended_stories are at most gateway.stories.",
        ("table",),
    ),
    MetricSpec("prfaas_inflight_requests", "gauge", "gateway", "requests", "Requests being served now."),
    MetricSpec(
        "prfaas_inflight_bytes", "gauge", "gateway", "bytes",
        "Bodies of requests that are being read or served; at most gateway.max_inflight_bytes.",
    ),
    MetricSpec("prfaas_client_connections", "gauge", "gateway", "connections", "Open ones of clients."),
    MetricSpec(
        "prfaas_client_connections_closed_total", "counter", "gateway", "connections",
        "That the gateway refused or cut off: all places were in use (full), or those of one address (address_full);"
        " a new one took the place of one that was idle (made_room); a head or a body came too slowly (head_timeout,"
        " body_too_slow), or a head was too large (head_too_large); its client took nothing of an answer"
        " (write_timeout).", ("reason",),
    ),
    MetricSpec(
        "prfaas_time_to_first_token_seconds", "histogram", "gateway", "seconds",
        "From the request's last byte to the first byte of the answer.", ("route",), TTFT_BUCKETS_S,
    ),
    MetricSpec(
        "prfaas_request_duration_seconds", "histogram", "gateway", "seconds",
        "From the request's last byte to the answer's last byte.", ("route",), TTFT_BUCKETS_S,
    ),
    MetricSpec(
        "prfaas_prompt_tokens_total", "counter", "gateway", "tokens",
        "Prompt tokens of routed requests that the gateway could count.", ("route",),
    ),
    MetricSpec(
        "prfaas_uncached_tokens_total", "counter", "gateway", "tokens",
        "Prompt tokens less the prefix that the decode engine was known to hold.", ("route",),
    ),
    MetricSpec(
        "prfaas_fallback_total", "counter", "gateway", "requests",
        "Offloaded requests that were computed locally after all.", ("reason",),
    ),
    MetricSpec(
        "prfaas_zero_byte_offloads_total", "counter", "gateway", "requests",
        "Offloaded requests for which no byte of KVCache moved, or none was loaded.",
    ),
    MetricSpec(
        "prfaas_unproven_offloads_total", "counter", "gateway", "requests",
        "Offloaded requests whose final record the KV node did not give.",
    ),
    MetricSpec(
        "prfaas_kv_bytes_moved_total", "counter", "gateway", "bytes", "KVCache bytes landed for offloaded requests."
    ),
    MetricSpec(
        "prfaas_kv_landed_seconds", "histogram", "gateway", "seconds",
        "From the reservation of a landing to landed.", (), TRANSFER_BUCKETS_S,
    ),
    MetricSpec(
        "prfaas_tokens_recomputed_total", "counter", "gateway", "tokens",
        "Prompt tokens of offloaded requests that the decode engine computed itself; 1 per request is the least.",
    ),
    MetricSpec(
        "prfaas_decode_retries_total", "counter", "gateway", "requests",
        "Requests sent to a decode engine a second time because the first broke before its first byte.",
    ),
    MetricSpec("prfaas_engine_up", "gauge", "gateway", "0 or 1", "Whether an engine answers /health.", ("instance",)),
    MetricSpec(
        "prfaas_node_ready", "gauge", "gateway", "0 or 1",
        "Whether an instance's KV node works and an engine has registered with it.", ("instance",),
    ),
    MetricSpec(
        "prfaas_engine_requests", "gauge", "gateway", "requests",
        "Requests that an engine has by its own count, of all its clients: running or waiting. NaN if it does not say.",
        ("instance", "state"),
    ),
    MetricSpec("prfaas_prefix_record_blocks", "gauge", "gateway", "blocks", "Blocks on record.", ("instance",)),
    MetricSpec(
        "prfaas_spans_exported_total", "counter", "gateway", "spans", "Spans that the collector has taken."
    ),
    MetricSpec(
        "prfaas_spans_dropped_total", "counter", "gateway", "spans",
        "Spans that were not sent: queue_full, export_failed (the collector is away or refuses), defect, closed.",
        ("reason",),
    ),
    MetricSpec(
        "prfaas_node_tasks", "gauge", "kvnode", "tasks",
        "Tasks of the event loop. Idle they are as many as after the start.",
    ),
    MetricSpec("prfaas_stagings", "gauge", "kvnode", "images", "Images that an engine fills or lanes send."),
    MetricSpec(
        "prfaas_node_records", "gauge", "kvnode", "records",
        "Landings (direction in) and transfers (out) that have ended and are remembered: at most 10,000 and 4,096.",
        ("direction",),
    ),
    MetricSpec("prfaas_lane_up", "gauge", "kvnode", "lanes", "Lanes up, per peer that this node sends to.", ("peer",)),
    MetricSpec(
        "prfaas_lane_bytes_total", "counter", "kvnode", "bytes", "KV payload bytes over lanes.", ("direction", "peer")
    ),
    MetricSpec(
        "prfaas_lane_bytes_resent_total", "counter", "kvnode", "bytes",
        "Bytes given to another lane after a loss.", ("peer",),
    ),
    MetricSpec(
        "prfaas_chunk_checksum_failures_total", "counter", "kvnode", "chunks", "Chunks that came damaged."
    ),
    MetricSpec(
        "prfaas_transfers_total", "counter", "kvnode", "transfers", "Transfers ended.", ("direction", "outcome")
    ),
    MetricSpec("prfaas_landings", "gauge", "kvnode", "landings", "Landings now, by state.", ("state",)),
    MetricSpec("prfaas_landings_expired_total", "counter", "kvnode", "landings", "Landings whose lease ran out."),
    MetricSpec(
        "prfaas_ledger_faults_total", "counter", "kvnode", "checks",
        "Checks of an idle node's ledgers that found one broken: a bug, and the log has the record.",
    ),
    MetricSpec("prfaas_arena_bytes", "gauge", "kvnode", "bytes", "Arena bytes, by state.", ("state",)),
    MetricSpec(
        "prfaas_frames_rejected_total", "counter", "kvnode", "frames", "Frames and peers refused.", ("reason",)
    ),
    MetricSpec(
        "prfaas_link_capacity_bytes_per_second", "gauge", "kvnode", "bytes per second",
        "What the link to a peer was last seen to carry when it was the limit; missing until it was.", ("peer",),
    ),
    MetricSpec(
        "prfaas_link_delivered_bytes_per_second", "gauge", "kvnode", "bytes per second",
        "Bytes that the peer acknowledged, over the last half second.", ("peer",),
    ),
    MetricSpec(
        "prfaas_link_utilization_ratio", "gauge", "kvnode", "0 to 1",
        "Delivered, of the capacity; missing until that is known.", ("peer",),
    ),
    MetricSpec(
        "prfaas_link_rtt_seconds", "gauge", "kvnode", "seconds", "Smoothed round trip, median of the lanes.", ("peer",)
    ),
    MetricSpec(
        "prfaas_link_min_rtt_seconds", "gauge", "kvnode", "seconds",
        "Shortest round trip of the last five minutes.", ("peer",),
    ),
    MetricSpec(
        "prfaas_link_retransmit_ratio", "gauge", "kvnode", "0 to 1",
        "Retransmitted of sent bytes, over the last half second.", ("peer",),
    ),
    MetricSpec(
        "prfaas_link_unsent_bytes", "gauge", "kvnode", "bytes", "Bytes in socket buffers that TCP has not sent yet.",
        ("peer",),
    ),
    MetricSpec(
        "prfaas_link_paced_bytes_per_second", "gauge", "kvnode", "bytes/s",
        "What all lanes to a peer may send together; 0 is no limit.", ("peer",),
    ),
    MetricSpec(
        "prfaas_lane_congestion_control", "gauge", "kvnode", "lanes",
        "Lanes up, by the congestion control that their connections use.", ("peer", "algorithm"),
    ),
    MetricSpec(
        "prfaas_certificate_expiry_seconds", "gauge", "kvnode", "seconds",
        "Unix time at which this node's certificate ends; missing where lanes are plain.",
    ),
    MetricSpec(
        "prfaas_link_queued_bytes", "gauge", "kvnode", "bytes",
        "Bytes of all transfers to a peer that it has not acknowledged yet, staged or still to be computed.", ("peer",),
    ),
    MetricSpec(
        "prfaas_node_deployment_refused", "gauge", "kvnode", "0 or 1",
        "1 while the deployment file is refused and what was read before stays in force.",
    ),
    MetricSpec("prfaas_link_transfers", "gauge", "kvnode", "transfers", "Transfers to a peer now.", ("peer",)),
    MetricSpec(
        "prfaas_link_verdict", "gauge", "kvnode", "0, 1, 2", "0 clear, 1 pressed, 2 congested.", ("peer",)
    ),
    MetricSpec(
        "prfaas_wan_carried_bytes_total", "counter", "wan", "bytes",
        "Bytes that have passed the bottleneck of an emulated link.", ("source", "target"),
    ),
    MetricSpec(
        "prfaas_wan_bandwidth_bytes_per_second", "gauge", "wan", "bytes/s",
        "What the link may carry now; 0 while it is cut, missing where there is no limit.", ("source", "target"),
    ),
    MetricSpec(
        "prfaas_wan_rtt_seconds", "gauge", "wan", "seconds", "Round trip that is emulated.", ("source", "target")
    ),
    MetricSpec(
        "prfaas_wan_queue_bytes", "gauge", "wan", "bytes", "Bytes that wait for the bottleneck.", ("source", "target")
    ),
    MetricSpec(
        "prfaas_wan_held_bytes", "gauge", "wan", "bytes",
        "Bytes taken from senders and not yet delivered: in the queue, on the way, or not taken by the receiver.",
        ("source", "target"),
    ),
    MetricSpec(
        "prfaas_wan_connections", "gauge", "wan", "connections", "Connections over the link.", ("source", "target")
    ),
    MetricSpec(
        "prfaas_wan_stalls_total", "counter", "wan", "stalls",
        "Times that a connection paused as TCP does after a loss.", ("source", "target"),
    ),
    MetricSpec(
        "prfaas_wan_flipped_bits_total", "counter", "wan", "bits",
        "Bits that were delivered as the other one, as `flips_per_mb` asked.", ("source", "target"),
    ),
    MetricSpec(
        "prfaas_wan_tasks", "gauge", "wan", "tasks", "Tasks of the event loop: two for each connection, and a few."
    ),
    MetricSpec(
        "prfaas_emulated_tasks", "gauge", "emulate", "tasks",
        "Tasks of the event loop, of all engines of the process together.",
    ),
    MetricSpec(
        "prfaas_emulated_landings_loaded_total", "counter", "emulate", "landings",
        "Landings that were loaded, every byte compared with what it must be.",
    ),
    MetricSpec(
        "prfaas_emulated_landings_not_loaded_total", "counter", "emulate", "landings",
        "Landings that could not be used; the engine computed the prompt.",
    ),
    MetricSpec("prfaas_emulated_images_shipped_total", "counter", "emulate", "images", "Whole images staged."),
    MetricSpec(
        "prfaas_emulated_wrong_parts_total", "counter", "emulate", "pages",
        "Pages and states that were loaded with other bytes than they must have.",
    ),
)  # fmt: skip


def spec(name: str) -> MetricSpec:
    """The row of `name`; KeyError for a name that is not in the table."""
    for row in TABLE:
        if row.name == name:
            return row
    raise KeyError(name)


class Metrics:
    """One component's metrics. A name of another component or kind is a KeyError at once, never a silent new metric."""

    def __init__(self, registry: CollectorRegistry, component: Component) -> None:
        self.registry = registry
        self._children: dict[tuple[Any, ...], Counter | Gauge | Histogram] = {}
        rows = [row for row in TABLE if row.component == component]
        self._counters = {r.name: Counter(r.name, r.help, r.labels, registry=registry) for r in _of(rows, "counter")}
        self._gauges = {r.name: Gauge(r.name, r.help, r.labels, registry=registry) for r in _of(rows, "gauge")}
        self._histograms = {
            r.name: Histogram(r.name, r.help, r.labels, buckets=r.buckets, registry=registry)
            for r in _of(rows, "histogram")
        }

    def counter(self, name: str, **labels: str) -> Counter:
        return self._child(self._counters[name], labels)

    def gauge(self, name: str, **labels: str) -> Gauge:
        return self._child(self._gauges[name], labels)

    def histogram(self, name: str, **labels: str) -> Histogram:
        return self._child(self._histograms[name], labels)

    def forget_gauge(self, name: str, **labels: str) -> None:
        """Show this child no more: what it was about is gone, and a last value would look like a present one."""
        metric = self._gauges[name]
        if self._children.pop((metric, *labels.items()), None) is not None:
            metric.remove(*(labels[label] for label in spec(name).labels))

    def _child(self, metric: M, labels: dict[str, str]) -> M:
        if not labels:
            return metric
        key = (metric, *labels.items())
        child = self._children.get(key)
        if child is None:
            # `labels` checks and sorts its arguments every time, which costs more than the counting.
            child = self._children[key] = metric.labels(**labels)
        return cast(M, child)


def build(registry: CollectorRegistry, component: Component) -> Metrics:
    """Register every metric of `component` with `registry`. Called once per process."""
    return Metrics(registry, component)


def markdown() -> str:
    """docs/metrics.md."""
    parts = ["# Metrics", "", _INTRODUCTION]
    for component, title in (
        ("gateway", "Gateway"),
        ("kvnode", "KV node"),
        ("wan", "Emulated network"),
        ("emulate", "Emulated engine"),
    ):
        parts += ["", f"## {title}", "", "| name | kind | labels | unit | meaning |", "|---|---|---|---|---|"]
        parts += [_row(row) for row in TABLE if row.component == component]
    parts += ["", "## Buckets", ""]
    parts += [f"- `{r.name}`: {', '.join(f'{b:g}' for b in r.buckets)}" for r in TABLE if r.buckets]
    return "\n".join(parts) + "\n"


_INTRODUCTION: Final = (
    "Every process serves Prometheus text at `GET /metrics`. This page is generated from `prfaas.observe.metrics`\n"
    "(`python -m prfaas.observe.metrics > docs/metrics.md`); a test keeps it current."
)


def _row(row: MetricSpec) -> str:
    labels = ", ".join(f"`{label}`" for label in row.labels)
    return f"| `{row.name}` | {row.kind} | {labels} | {row.unit} | {row.help} |"


def _of(rows: list[MetricSpec], kind: Kind) -> list[MetricSpec]:
    return [row for row in rows if row.kind == kind]


if __name__ == "__main__":
    print(markdown(), end="")
