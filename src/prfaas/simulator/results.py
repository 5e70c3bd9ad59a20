"""What one simulated run comes to."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Final

from prfaas.core.control.conversion import Phase
from prfaas.core.control.route import RouteKind
from prfaas.core.topology import Duty
from prfaas.sim.engine import Gaps
from prfaas.sim.hindsight import Judged
from prfaas.sim.runs import Run
from prfaas.sim.simulation import Life

#: Requests that come first find an empty deployment; so large a share of them is not counted.
WARM_UP: Final = 0.1
#: Requests that stay behind, as a share of those that come: more is a queue that grows, much more is one that explodes.
GROWS: Final = 0.02
EXPLODES: Final = 0.1
#: A deployment fills up for as long as a request stays in it; a run must be so many times as long to say more.
MIN_STAYS: Final = 8
#: Standard deviations: the number of requests inside goes up and down by its root without any queue that grows.
_SURE: Final = 3.0


@dataclass(frozen=True, slots=True)
class Results:
    """Of the requests that come after the warm-up. Times are of answered ones, in seconds; None without any. A rate is
    over the time from the warm-up's end to the last arrival."""

    policy: str
    seed: int
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
    simulated_s: float
    wall_s: float

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def results_of(
    run: Run, *, policy: str, seed: int, tpot_slo_s: float | None, wall_s: float, judged: Collection[Judged] = ()
) -> Results:
    """`run` has been run to its end. `goodput_rps` counts answers that kept `tpot_slo_s`; without one, all. `judged`:
    what hindsight says of some requests."""
    regrets_s = [one.regret_s for one in judged]
    ended = sorted(run.ended, key=lambda life: life.number)
    counted = ended[int(len(ended) * WARM_UP) :]
    answered = [life for life in counted if life.outcome == "ok"]
    from_s, to_s = counted[0].arrival.at_s, counted[-1].arrival.at_s
    span_s = max(to_s - from_s, 1e-9)
    good = [life for life in ended if _kept(life, tpot_slo_s)]
    ttft_s = sorted((life.began_s or 0.0) - life.arrival.at_s for life in answered)
    e2e_s = sorted((life.ended_s or 0.0) - life.arrival.at_s for life in answered)
    tpot_s = [tpot for life in answered if (tpot := tpot_of(life)) is not None]
    sent = [sample.sent_bytes for sample in run.samples if from_s <= sample.at_s <= to_s]
    members = run.simulation.scheduler.fleet.instances.values()
    return Results(
        policy=policy,
        seed=seed,
        offered_rps=len(counted) / span_s,
        num_requests=len(counted),
        num_completed=len(answered),
        num_refused=sum(1 for life in counted if life.outcome == "unavailable"),
        num_failed=sum(1 for life in counted if life.outcome not in ("ok", "unavailable")),
        num_fallbacks=sum(1 for life in counted if life.fallback),
        system_rps=run.throughput_rps(from_s, from_s + span_s),
        goodput_rps=sum(1 for life in good if from_s < (life.ended_s or 0.0) <= to_s) / span_s,
        ttft_s_mean=_mean(ttft_s),
        ttft_s_p50=percentile(ttft_s, 50),
        ttft_s_p90=percentile(ttft_s, 90),
        ttft_s_p95=percentile(ttft_s, 95),
        ttft_s_p99=percentile(ttft_s, 99),
        e2e_s_mean=_mean(e2e_s),
        e2e_s_p50=percentile(e2e_s, 50),
        e2e_s_p95=percentile(e2e_s, 95),
        e2e_s_p99=percentile(e2e_s, 99),
        tpot_s_mean=_mean(tpot_s),
        itl_s_p99=_gaps(run).percentile_s(99),
        cached_fraction=_cached_fraction(answered),
        offload_fraction=sum(1 for life in counted if life.route == RouteKind.REMOTE) / len(counted),
        egress_bytes_per_s_mean=(sent[-1] - sent[0]) / (len(sent) - 1) / run.sample_s if len(sent) > 1 else 0.0,
        egress_bytes_per_s_max=max((after - before for before, after in pairwise(sent)), default=0.0) / run.sample_s,
        routing_threshold_tokens_final=_threshold_tokens(run),
        num_pd_prefill_final=sum(1 for i in members if _is_pd(run, i.cluster) and i.duty is Duty.PREFILL),
        num_pd_decode_final=sum(1 for i in members if i.duty.decodes),
        num_conversions=sum(1 for c in run.simulation.conversions if c.phase is Phase.DONE),
        regret_s_mean=_mean(regrets_s),
        best_chosen_fraction=sum(1 for s in regrets_s if s <= 0.0) / len(regrets_s) if regrets_s else None,
        stability=stability(run, from_s, to_s, len(counted) / span_s),
        simulated_s=max(life.ended_s or 0.0 for life in ended),
        wall_s=wall_s,
    )


def _gaps(run: Run) -> Gaps:
    """Of the whole run."""
    all_gaps = Gaps()
    for engine in run.simulation.engines.values():
        all_gaps.take(engine.gaps)
    return all_gaps


def _cached_fraction(answered: Sequence[Life]) -> float:
    """Of the prompts' tokens, those that nobody had to compute."""
    num_tokens = sum(life.arrival.num_tokens for life in answered)
    num_computed = sum(life.num_computed_tokens for life in answered)
    return 1.0 - num_computed / num_tokens if num_tokens else 0.0


def _threshold_tokens(run: Run) -> int | None:
    """The solved one where it moves; None where nothing leaves, or where another rule chooses."""
    policy, dispatch = run.simulation.scheduler.policy, run.simulation.scheduler.dispatch
    if not policy.offload or policy.choose is not None:
        return None
    solved = policy.threshold_tokens if dispatch is None else dispatch.estimates.threshold_tokens()
    return round(solved) if math.isfinite(solved) else None


def stability(run: Run, from_s: float, to_s: float, offered_rps: float) -> str:
    """`stable`, `backlogged` or `overloaded`: by how fast the number of requests inside grows from the second quarter
    to the last one. `too_short`: the run cannot say, since requests stay for so long even without a queue."""
    stays_s = sorted((life.ended_s or 0.0) - life.arrival.at_s for life in run.ended if life.outcome == "ok")
    stay_s = percentile(stays_s, 1)
    inside = [sample.num_inside for sample in run.samples if from_s <= sample.at_s <= to_s]
    quarter = len(inside) // 4
    if not quarter or stay_s is None or to_s - from_s < MIN_STAYS * stay_s:
        return "too_short"
    early, late = (sum(some) / quarter for some in (inside[quarter : 2 * quarter], inside[-quarter:]))
    come_between = offered_rps * 2 * quarter * run.sample_s
    share = (late - early) / come_between
    noise = _SURE * math.sqrt(max(1.0, early))
    if late - early > noise and share > GROWS:
        return "overloaded" if share > EXPLODES else "backlogged"
    return "stable" if GROWS * come_between > noise else "too_short"


def percentile(ordered: Sequence[float], percent: float) -> float | None:
    """The smallest value that `percent` of all do not exceed. `ordered` rises."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)] if ordered else None


def tpot_of(life: Life) -> float | None:
    """Seconds for each token after the first; None for an answer of one token, or for none."""
    if life.began_s is None or life.ended_s is None or life.arrival.num_output_tokens < 2:
        return None
    return (life.ended_s - life.began_s) / (life.arrival.num_output_tokens - 1)


def _kept(life: Life, tpot_slo_s: float | None) -> bool:
    if life.outcome != "ok":
        return False
    tpot_s = tpot_of(life)
    # A clock of floats: a step of 25 ms a thousand times is not 25 s to the last digit.
    return tpot_slo_s is None or tpot_s is None or tpot_s <= tpot_slo_s * (1 + 1e-9)


def _is_pd(run: Run, cluster: str) -> bool:
    return run.simulation.deployment.topology.cluster(cluster).role == "pd"


def _mean(values: Iterable[float]) -> float | None:
    listed = list(values)
    return math.fsum(listed) / len(listed) if listed else None
