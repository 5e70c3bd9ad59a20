"""What is planned: clusters, links between them, a workload, and how bytes and seconds depend on length.

Units: seconds, bytes, bytes per second, requests per second (rps), tokens. An *instance* is one engine replica.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

from prfaas.core.errors import PrfaasError
from prfaas.core.model.curve import Curve
from prfaas.core.model.decode import DecodePoint
from prfaas.core.planning.workload import Band, Workload


class PlanningError(PrfaasError):
    """Nothing sensible can be planned from what was given; the text says which part and what to change."""


class PolicyKind(StrEnum):
    """Which configurations the search may choose from.

    `prfaas`: any threshold. `fixed`: the threshold given. `homogeneous`: no offload. `naive`: every prefill in a PrfaaS
    cluster, every PD instance decodes.
    """

    PRFAAS = "prfaas"
    FIXED = "fixed"
    HOMOGENEOUS = "homogeneous"
    NAIVE = "naive"


class ServiceTime(StrEnum):
    """What stands for a band's prefill time and KV bytes: the curve at the band's mean length (Eq. 3 and 4), or its
    expectation over the band. Where a curve bends upwards the first promises more throughput than there is."""

    AT_MEAN = "at-mean"
    EXPECTED = "expected"


@dataclass(frozen=True, slots=True)
class PrfaasCluster:
    """A prefill-only cluster. `prefill_s`: seconds that one instance needs for a prompt of l uncached tokens."""

    name: str
    num_instances: int
    gpus_per_instance: int
    prefill_s: Curve
    price_per_gpu_hour: float | None = None


@dataclass(frozen=True, slots=True)
class PdCluster:
    """A cluster that decodes, and prefills what stays. `decode_rps`: requests per second that one decoding instance
    finishes, BS_max / (T_decode · L_out); `decode` is the batch and the step that it comes from, `decode_steps` all
    that were measured: for who simulates it. `num_prefill` fixes the split; None lets the search choose."""

    name: str
    num_instances: int
    gpus_per_instance: int
    prefill_s: Curve
    decode_rps: float
    num_prefill: int | None = None
    price_per_gpu_hour: float | None = None
    decode: DecodePoint | None = None
    decode_steps: tuple[DecodePoint, ...] = ()


@dataclass(frozen=True, slots=True)
class WanLink:
    """Ethernet from a PrfaaS cluster to a PD cluster."""

    source: str
    target: str
    bytes_per_s: float
    price_per_byte: float = 0.0


@dataclass(frozen=True)
class Scenario:
    """Everything that a plan depends on. Any request may be decoded in any PD cluster."""

    workload: Workload
    mean_output_tokens: float
    kv_bytes: Curve
    prfaas: tuple[PrfaasCluster, ...]
    pd: tuple[PdCluster, ...]
    links: tuple[WanLink, ...]
    policy: PolicyKind = PolicyKind.PRFAAS
    threshold_tokens: float | None = None
    service_time: ServiceTime = ServiceTime.AT_MEAN
    currency: str = "USD"
    arrival_rps: float | None = None
    notes: tuple[str, ...] = field(default=())
    #: Those of them that say why figures may be wrong.
    cautions: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if not self.pd:
            raise PlanningError("a plan needs at least one PD cluster: nothing else decodes")
        if (self.policy is PolicyKind.FIXED) != (self.threshold_tokens is not None):
            raise PlanningError("policy fixed needs a threshold, and no other policy takes one")
        if self.policy in (PolicyKind.NAIVE, PolicyKind.FIXED) and not self.links:
            raise PlanningError(
                f"policy {self.policy} offloads, so it needs a PrfaaS cluster and a link to a PD cluster"
            )

    @cached_property
    def prfaas_by_name(self) -> dict[str, PrfaasCluster]:
        """Usable PrfaaS clusters: those with a link. The policy homogeneous uses none."""
        if self.policy is PolicyKind.HOMOGENEOUS:
            return {}
        linked = {link.source for link in self.links}
        return {cluster.name: cluster for cluster in self.prfaas if cluster.name in linked}

    @cached_property
    def tiers(self) -> tuple[tuple[PrfaasCluster, ...], ...]:
        """Usable PrfaaS clusters with the same prefill curve, together; they serve one band of lengths."""
        found: dict[Curve, list[PrfaasCluster]] = {}
        for cluster in self.prfaas_by_name.values():
            found.setdefault(cluster.prefill_s, []).append(cluster)
        return tuple(tuple(clusters) for clusters in found.values())

    @cached_property
    def pd_by_name(self) -> dict[str, PdCluster]:
        return {cluster.name: cluster for cluster in self.pd}

    @cached_property
    def links_by_source(self) -> dict[str, list[WanLink]]:
        """Those that start at each PrfaaS cluster."""
        found: dict[str, list[WanLink]] = {}
        for link in self.links:
            found.setdefault(link.source, []).append(link)
        return found

    def service(self, curve: Curve, band: Band) -> float:
        """T_prefill or S_kv of the requests in a band, by the convention chosen; 0 for an empty band."""
        if not band.fraction:
            return 0.0
        if self.service_time is ServiceTime.AT_MEAN:
            return curve.at(band.mean_tokens)
        return self.workload.expected(curve, band.low_tokens, band.high_tokens) / band.fraction
