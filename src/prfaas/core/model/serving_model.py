"""What is known of a deployment's speed before anything was measured: the same figures that it was planned with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from prfaas.core.model.curve import Curve
from prfaas.core.record import record


@record
class ClusterModel:
    """One instance of a cluster: `prefill_s` of a prompt of l uncached tokens; at most `max_batch` answers at a time,
    one token of each every `step_s`. None for a cluster that does not decode."""

    prefill_s: Curve
    max_batch: int | None = None
    step_s: float | None = None


@record
class ServingModel:
    """`clusters` by name. `kv_bytes`: what crosses of a prompt of l uncached tokens. `output_tokens`: of an answer, on
    average. `tpot_s`: the slowest that its tokens may follow one another, None if nobody minds."""

    clusters: Mapping[str, ClusterModel]
    kv_bytes: Curve
    output_tokens: float
    tpot_s: float | None = None

    def scaled(self, time_scale: float, bytes_scale: float) -> ServingModel:
        """Of a deployment in which everything takes `time_scale` of its time, and KVCache `bytes_scale` of its size."""
        clusters = {
            name: replace(
                cluster,
                prefill_s=cluster.prefill_s.scaled(time_scale),
                step_s=None if cluster.step_s is None else cluster.step_s * time_scale,
            )
            for name, cluster in self.clusters.items()
        }
        tpot_s = None if self.tpot_s is None else self.tpot_s * time_scale
        return replace(self, clusters=clusters, kv_bytes=self.kv_bytes.scaled(bytes_scale), tpot_s=tpot_s)
