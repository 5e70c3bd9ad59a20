"""What one simulated run comes to."""

from __future__ import annotations

import math
from array import array
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Final, NamedTuple

from prfaas.core.control.conversion import Phase
from prfaas.core.topology import Duty
from prfaas.sim.engine import Gaps
from prfaas.sim.hindsight import Judged
from prfaas.sim.outcomes import FAILED, OK, UNAVAILABLE, Outcomes
from prfaas.sim.runs import Run
from prfaas.simulator.stability import stability

#: Requests that come first find an empty deployment; so large a share of them is not counted.
WARM_UP: Final = 0.1


@dataclass(frozen=True, slots=True)
class Results:
    """Of the requests that come after the warm-up. Times are of answered ones, in seconds; None without any. A rate is
    over the time from the warm-up's end to the last arrival."""

    policy: str
    seed: int
    planned_rps: float
    offered_rps: float
    num_requests: int
    num_completed: int
    num_refused: int
    num_failed: int
    num_fallbacks: int
    system_rps: float
    goodput_rps: float
    ttft_s_mean: float | None
    ttft_s_p50: float | None
    ttft_s_p90: float | None
    ttft_s_p95: float | None
    ttft_s_p99: float | None
    e2e_s_mean: float | None
    e2e_s_p50: float | None
    e2e_s_p95: float | None
    e2e_s_p99: float | None
    tpot_s_mean: float | None
    itl_s_p99: float | None
    cached_fraction: float
    offload_fraction: float
    egress_bytes_per_s_mean: float
    egress_bytes_per_s_max: float
    routing_threshold_tokens_final: int | None
    num_pd_prefill_final: int
    num_pd_decode_final: int
    num_conversions: int
    regret_s_mean: float | None
    best_chosen_fraction: float | None
    stability: str
    num_requests_enough: int | None
    simulated_s: float
    wall_s: float

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def results_of(
    run: Run,
    *,
    policy: str,
    seed: int,
    planned_rps: float,
    tpot_slo_s: float | None,
    wall_s: float,
    judged: Collection[Judged] = (),
) -> Results:
    """`run` has been run to its end. `planned_rps`: what the plan of this policy promises. `goodput_rps` counts answers
    that kept `tpot_slo_s`; without one, all. `judged`: what hindsight says of some requests."""
    regrets_s = [one.regret_s for one in judged]
    kept = run.outcomes
    ended, counted = kept.ended(), counted_of(run)
    answered = kept.that(counted, OK)
    from_s, to_s = kept.arrived_s[counted[0]], kept.arrived_s[counted[-1]]
    span_s = max(to_s - from_s, 1e-9)
    ttft_s, e2e_s = times_of(map(kept.ttft_s, answered)), times_of(map(kept.e2e_s, answered))
    num_good = sum(1 for place in kept.that(ended, OK)
                   if from_s < kept.ended_s[place] <= to_s and _is_kept(kept, place, tpot_slo_s))  # fmt: skip
    sent = [sample.sent_bytes for sample in run.samples if from_s <= sample.at_s <= to_s]
    members = run.simulation.scheduler.fleet.instances.values()
    num_refused, num_failed = len(kept.that(counted, UNAVAILABLE)), len(kept.that(counted, FAILED))
    verdict = stability(run, from_s, to_s, len(counted) / span_s, (num_refused + num_failed) / len(counted))
    return Results(
        policy=policy,
        seed=seed,
        planned_rps=planned_rps,
        offered_rps=len(counted) / span_s,
        num_requests=len(counted),
        num_completed=len(answered),
        num_refused=num_refused,
        num_failed=num_failed,
        num_fallbacks=sum(kept.fell_back[place] for place in counted),
        system_rps=run.throughput_rps(from_s, from_s + span_s),
        goodput_rps=num_good / span_s,
        ttft_s_mean=ttft_s.mean_s,
        ttft_s_p50=ttft_s.p50_s,
        ttft_s_p90=ttft_s.p90_s,
        ttft_s_p95=ttft_s.p95_s,
        ttft_s_p99=ttft_s.p99_s,
        e2e_s_mean=e2e_s.mean_s,
        e2e_s_p50=e2e_s.p50_s,
        e2e_s_p95=e2e_s.p95_s,
        e2e_s_p99=e2e_s.p99_s,
        tpot_s_mean=mean(tpot_s for place in answered if (tpot_s := kept.tpot_s(place)) is not None),
        itl_s_p99=_gaps(run).percentile_s(99),
        cached_fraction=_cached_fraction(kept, answered),
        offload_fraction=sum(kept.is_remote[place] for place in counted) / len(counted),
        egress_bytes_per_s_mean=(sent[-1] - sent[0]) / (len(sent) - 1) / run.sample_s if len(sent) > 1 else 0.0,
        egress_bytes_per_s_max=max((after - before for before, after in pairwise(sent)), default=0.0) / run.sample_s,
        routing_threshold_tokens_final=_threshold_tokens(run),
        num_pd_prefill_final=sum(1 for i in members if _is_pd(run, i.cluster) and i.duty is Duty.PREFILL),
        num_pd_decode_final=sum(1 for i in members if i.duty.decodes),
        num_conversions=sum(1 for c in run.simulation.conversions if c.phase is Phase.DONE),
        regret_s_mean=mean(regrets_s),
        best_chosen_fraction=sum(1 for s in regrets_s if s <= 0.0) / len(regrets_s) if regrets_s else None,
        stability=verdict.name,
        num_requests_enough=verdict.num_enough,
        simulated_s=max(kept.ended_s),
        wall_s=wall_s,
    )


def _gaps(run: Run) -> Gaps:
    """Of the whole run."""
    all_gaps = Gaps()
    for engine in run.simulation.engines.values():
        all_gaps.take(engine.gaps)
    return all_gaps


def counted_of(run: Run) -> Sequence[int]:
    """Places of the requests that come after the warm-up."""
    ended = run.outcomes.ended()
    return ended[int(len(ended) * WARM_UP) :]


class Times(NamedTuple):
    """Of some requests; None of none."""

    mean_s: float | None
    p50_s: float | None
    p90_s: float | None
    p95_s: float | None
    p99_s: float | None


def times_of(times_s: Iterable[float]) -> Times:
    """Of times in any order."""
    ordered = sorted(times_s)
    p50_s, p90_s, p95_s, p99_s = (percentile(ordered, percent) for percent in (50, 90, 95, 99))
    return Times(mean(ordered), p50_s, p90_s, p95_s, p99_s)


def _cached_fraction(kept: Outcomes, answered: Sequence[int]) -> float:
    """Of the prompts' tokens, those that nobody had to compute."""
    num_tokens = sum(kept.input_tokens[place] for place in answered)
    num_computed = sum(kept.computed_tokens[place] for place in answered)
    return 1.0 - num_computed / num_tokens if num_tokens else 0.0


def _threshold_tokens(run: Run) -> int | None:
    """The solved one where it moves; None where nothing leaves, or where another rule chooses."""
    policy, dispatch = run.simulation.scheduler.policy, run.simulation.scheduler.dispatch
    if not policy.offload or policy.choose is not None:
        return None
    solved = policy.threshold_tokens if dispatch is None else dispatch.estimates.threshold_tokens()
    return round(solved) if math.isfinite(solved) else None


def percentile(ordered: Sequence[float], percent: float) -> float | None:
    """The smallest value that `percent` of all do not exceed. `ordered` rises."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)] if ordered else None


def _is_kept(kept: Outcomes, place: int, tpot_slo_s: float | None) -> bool:
    tpot_s = kept.tpot_s(place)
    # A clock of floats: a step of 25 ms a thousand times is not 25 s to the last digit.
    return tpot_slo_s is None or tpot_s is None or tpot_s <= tpot_slo_s * (1 + 1e-9)


def _is_pd(run: Run, cluster: str) -> bool:
    return run.simulation.deployment.topology.cluster(cluster).role == "pd"


def mean(values: Iterable[float]) -> float | None:
    """None of none."""
    listed = array("d", values)
    return math.fsum(listed) / len(listed) if listed else None
