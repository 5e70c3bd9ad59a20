"""What a scheduler knows and would do now, for people. It is read, and changes nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from prfaas.core.control.capacity import counts_now, decode_rps
from prfaas.core.control.dispatch import Dispatch
from prfaas.core.control.fleet import Fleet
from prfaas.core.control.options import cheapest
from prfaas.core.control.rebalance import Rebalancer
from prfaas.core.control.route import RouteKind
from prfaas.core.control.scheduler import Scheduler
from prfaas.core.portable_math import exp2
from prfaas.core.record import record
from prfaas.core.topology import Role

#: Lengths that are asked for to find a threshold: four to each power of two, from 16 to 1,048,576 tokens.
_ASKED: Final = tuple(round(exp2(step / 4)) for step in range(16, 81))


@record
class ClusterView:
    """`threshold_tokens`: prompts that are longer, and of which nothing is cached, would go there now; None if none
    would, and for a PD cluster. `prefill_factor`: times seen over times expected."""

    role: str
    num_instances: int
    num_working: int
    num_waiting: int
    waiting_s: float
    prefill_factor: float
    share: float
    threshold_tokens: int | None


@record
class LinkView:
    """`bytes_per_s` is what the scheduler reckons with, None without a limit; `queued_bytes` is still to cross."""

    source: str
    target: str
    bytes_per_s: float | None
    given_bytes_per_s: float | None
    queued_bytes: float


@record
class StageView:
    """`load` over the last minutes, see `stage_loads`; None where nobody knows how many places there are."""

    cluster: str
    duty: str
    num_instances: int
    load: float | None


@record
class SuggestionView:
    """`text` says in words what the other fields say."""

    cluster: str
    duty: str
    instead_of: str | None
    link_to: str | None
    gain_rps: float
    text: str


@record
class ConversionView:
    """`began_s_ago`, and how long it took, or has taken. `phase`: see `conversion`."""

    instance: str
    cluster: str
    from_duty: str
    to_duty: str
    phase: str
    began_s_ago: float
    took_s: float
    why: str
    detail: str


@record
class OutView:
    """An instance that gets no work, since it failed it or was too slow: `state` is out or on_trial."""

    instance: str
    state: str
    why: str
    num_times: int
    tried_in_s: float


@record
class SchedulerView:
    """`threshold_tokens` is the solved one (Eq. 7), the planned one until enough lengths have been seen, or the fixed
    one; `max_rps` is what could be prefilled of such requests as come, `decode_rps` what could be decoded of answers of
    `output_tokens`. Suggestions with the largest gain and conversions with the last come first. None: not known, or
    nothing moves."""

    moves: bool
    offload: bool
    threshold_tokens: int | None
    offload_fraction: float | None
    max_rps: float | None
    rate_rps: float | None
    num_lengths_seen: int
    max_ttft_s: float | None
    clusters: Mapping[str, ClusterView]
    links: Sequence[LinkView]
    output_tokens: float | None = None
    decode_rps: float | None = None
    stages: Sequence[StageView] = ()
    suggestions: Sequence[SuggestionView] = ()
    conversions: Sequence[ConversionView] = ()
    out: Sequence[OutView] = ()


def view(scheduler: Scheduler, now_s: float) -> SchedulerView:
    """Of `now_s`."""
    policy, dispatch = scheduler.policy, scheduler.dispatch
    if dispatch is None:
        return SchedulerView(
            False, policy.offload, policy.threshold_tokens, None, None, None, 0, None, {}, (),
            out=_out(scheduler, now_s),
        )  # fmt: skip
    estimates = dispatch.estimates
    split = estimates.split
    thresholds = thresholds_now(scheduler.fleet, dispatch, now_s)
    return SchedulerView(
        moves=True,
        offload=policy.offload,
        threshold_tokens=_whole(estimates.threshold_tokens()),
        offload_fraction=None if split is None else split.offload_fraction,
        max_rps=None if split is None else _finite(split.max_rps),
        rate_rps=estimates.lengths.rate_rps(now_s),
        num_lengths_seen=estimates.lengths.num_seen,
        max_ttft_s=policy.max_ttft_s,
        clusters={
            cluster.name: _cluster(scheduler.fleet, dispatch, cluster.name, cluster.role, thresholds.get(cluster.name))
            for cluster in scheduler.fleet.topology.clusters
        },
        links=tuple(
            LinkView(*pair, _finite(rate), _finite(estimates.links.given(pair)), dispatch.link_bytes.get(pair, 0.0))
            for pair, rate in estimates.links.shown(now_s).items()
            if scheduler.fleet.topology.cluster(pair[0]).role is Role.PRFAAS
        ),
        output_tokens=estimates.output_tokens,
        decode_rps=_finite(decode_rps(estimates, counts_now(scheduler.fleet))),
        stages=_stages(scheduler.rebalancer),
        suggestions=_suggestions(scheduler.rebalancer),
        conversions=_conversions(scheduler.rebalancer, now_s),
        out=_out(scheduler, now_s),
    )


def _out(scheduler: Scheduler, now_s: float) -> tuple[OutView, ...]:
    return tuple(
        OutView(name, str(record.use), record.why, record.num_times_out, max(0.0, record.until_s - now_s))
        for name, record in scheduler.health.out()
    )


def _stages(rebalancer: Rebalancer | None) -> tuple[StageView, ...]:
    stages = () if rebalancer is None else rebalancer.loads.all()
    return tuple(StageView(s.cluster, str(s.duty), s.num_instances, s.load) for s in stages)


def _suggestions(rebalancer: Rebalancer | None) -> tuple[SuggestionView, ...]:
    return tuple(
        SuggestionView(
            s.cluster, str(s.duty), None if s.from_duty is None else str(s.from_duty), s.link_to or None, s.gain_rps,
            str(s),
        )
        for s in (() if rebalancer is None else rebalancer.suggestions)
    )  # fmt: skip


def _conversions(rebalancer: Rebalancer | None, now_s: float) -> tuple[ConversionView, ...]:
    return tuple(
        ConversionView(
            c.instance, c.cluster, str(c.from_duty), str(c.to_duty), str(c.phase), now_s - c.began_s,
            (now_s if c.ended_s is None else c.ended_s) - c.began_s, c.why, c.detail,
        )
        for c in (() if rebalancer is None else reversed(rebalancer.conversions))
    )  # fmt: skip


def thresholds_now(fleet: Fleet, dispatch: Dispatch, now_s: float) -> dict[str, int | None]:
    """By PrfaaS cluster: the length from which on every longer prompt would go there or to another PrfaaS cluster, as
    queues and links are now; None if the longest would not."""
    found: dict[str, int | None] = {c.name: None for c in fleet.topology.clusters_of(Role.PRFAAS)}
    for num_tokens in reversed(_ASKED):
        options = dispatch.options_of(num_tokens, now_s)
        best = cheapest(options) if options else None
        if best is None or best.kind is not RouteKind.REMOTE:
            break
        found[best.prefill_cluster] = num_tokens
    return found


def _cluster(fleet: Fleet, dispatch: Dispatch, name: str, role: Role, threshold: int | None) -> ClusterView:
    members = fleet.topology.instances_of(name)
    queue = dispatch.queues.get(name)
    share = dispatch.estimates.share(name)
    working = {i.name for i in (*fleet.working_prefillers(name), *fleet.working_decoders(name))}
    return ClusterView(
        role=str(role),
        num_instances=len(members),
        num_working=len(working),
        num_waiting=0 if queue is None else len(queue),
        waiting_s=0.0 if queue is None else queue.waiting_s,
        prefill_factor=dispatch.estimates.factor(name),
        share=0.0 if share is None else share.share,
        threshold_tokens=threshold,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _whole(value: float) -> int | None:
    return round(value) if math.isfinite(value) else None
