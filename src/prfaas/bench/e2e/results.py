"""What a run comes to. Pure. Names are those of `prfaas simulate --json` wherever they mean the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from prfaas.bench.e2e.sent import CANCELLED, ERROR, REMOTE, UNAVAILABLE, UNKNOWN, Sent
from prfaas.sim.engine import Gaps
from prfaas.simulator.results import WARM_UP, mean, percentile, times_of
from prfaas.simulator.stability import stability_of

#: A request that was sent so much later than meant was sent late.
LATE_S: Final = 0.010
#: How often the number of requests inside is looked at, to see whether it grows.
_NUM_SAMPLES: Final = 200
#: A clock of floats.
_SLACK: Final = 1 + 1e-9


@dataclass(frozen=True, slots=True)
class Slo:
    """What a good answer keeps; None: everything."""

    ttft_s: float | None = None
    tpot_s: float | None = None

    def is_kept(self, sent: Sent) -> bool:
        """Of an answered one."""
        tpot_s = sent.tpot_s
        is_soon = self.ttft_s is None or sent.ttft_s <= self.ttft_s * _SLACK
        return is_soon and (self.tpot_s is None or tpot_s is None or tpot_s <= self.tpot_s * _SLACK)


@dataclass(frozen=True, slots=True)
class Cost:
    """What the client itself took: processor time of the whole run, and how long it lasted."""

    cpu_s: float
    wall_s: float


@dataclass(frozen=True, slots=True)
class RouteResults:
    """Of the counted requests of one route."""

    num_requests: int
    num_completed: int
    ttft_s_mean: float | None
    ttft_s_p50: float | None
    ttft_s_p90: float | None
    ttft_s_p99: float | None
    e2e_s_mean: float | None
    e2e_s_p50: float | None
    e2e_s_p99: float | None
    tpot_s_mean: float | None


@dataclass(frozen=True, slots=True)
class E2eResults:
    """Of the requests after the warm-up, but for `itl_s_…`, `send_late_s_…`, `num_sent_late` and what the client
    took, which are of the whole run. None where nothing can be said."""

    seed: int
    prompt_seed: int
    offered_rps: float | None
    num_warm_up: int
    num_requests: int
    num_completed: int
    num_refused: int
    num_failed: int
    failures: dict[str, int]
    num_unfinished: int
    num_fallbacks: int | None
    num_other_length: int
    system_rps: float | None
    goodput_rps: float | None
    slo_fraction: float | None
    input_tokens_per_s: float | None
    output_tokens_per_s: float | None
    ttft_s_mean: float | None
    ttft_s_p50: float | None
    ttft_s_p90: float | None
    ttft_s_p95: float | None
    ttft_s_p99: float | None
    e2e_s_mean: float | None
    e2e_s_p50: float | None
    e2e_s_p90: float | None
    e2e_s_p95: float | None
    e2e_s_p99: float | None
    tpot_s_mean: float | None
    tpot_s_p50: float | None
    tpot_s_p99: float | None
    itl_s_p50: float | None
    itl_s_p99: float | None
    offload_fraction: float | None
    routes: dict[str, RouteResults]
    stability: str
    tokens_counted_by: dict[str, int]
    send_late_s_p99: float | None
    send_late_s_max: float | None
    num_sent_late: int
    was_interrupted: bool
    num_events: int
    client_cpu_s: float
    client_cpu_s_per_request: float | None
    client_cpu_s_per_event: float | None
    wall_s: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def counted(sent: Sequence[Sent], num_warm_up: int | None) -> list[Sent]:
    """Those after the warm-up, by their times: without a number, after the first tenth, as in a simulated run."""
    ordered = sorted(sent, key=lambda one: (one.arrival_s, one.number))
    return ordered[int(len(ordered) * WARM_UP) if num_warm_up is None else num_warm_up :]


def results_of(
    sent: Sequence[Sent], *, gaps: Gaps, slo: Slo, num_warm_up: int | None, cost: Cost, seed: int, prompt_seed: int,
    was_interrupted: bool = False,
) -> E2eResults:  # fmt: skip
    """`sent`: all that were begun. Rates are over the time from the first counted request to the last one, and count
    what was answered in that time, as in a simulated run."""
    some = counted(sent, num_warm_up)
    answered = [one for one in some if one.is_ok]
    from_s, to_s = (some[0].arrival_s, some[-1].arrival_s) if some else (0.0, 0.0)
    span_s = to_s - from_s
    within = [one for one in sent if one.is_ok and one.end_s is not None and from_s < one.end_s <= to_s]
    ttft_s, e2e_s = times_of(one.ttft_s for one in answered), times_of(one.e2e_s for one in answered)
    tpot_s = times_of(value for one in answered if (value := one.tpot_s) is not None)
    ended_as = Counter(one.outcome for one in some)
    late_s = sorted(one.late_s for one in sent if one.late_s == one.late_s)
    num_events = sum(one.num_events for one in sent)
    known = [one for one in some if one.route != UNKNOWN]

    def rate(number: float) -> float | None:
        return number / span_s if span_s > 0 else None

    return E2eResults(
        seed=seed, prompt_seed=prompt_seed, was_interrupted=was_interrupted,
        offered_rps=rate(len(some)),
        num_warm_up=len(sent) - len(some),
        num_requests=len(some), num_completed=len(answered), num_refused=ended_as[UNAVAILABLE],
        num_failed=ended_as[ERROR], num_unfinished=ended_as[CANCELLED],
        failures=dict(Counter(str(one.failure) for one in some if one.outcome == ERROR).most_common()),
        num_fallbacks=sum((one.reason or "").startswith("fallback:") for one in known) if known else None,
        num_other_length=sum(one.output_tokens != one.max_tokens for one in answered),
        system_rps=rate(len(within)),
        goodput_rps=rate(sum(map(slo.is_kept, within))),
        slo_fraction=sum(map(slo.is_kept, answered)) / len(some) if some else None,
        input_tokens_per_s=rate(sum(one.prompt_tokens or one.input_tokens for one in within)),
        output_tokens_per_s=rate(sum(one.output_tokens for one in within)),
        ttft_s_mean=ttft_s.mean_s, ttft_s_p50=ttft_s.p50_s, ttft_s_p90=ttft_s.p90_s, ttft_s_p95=ttft_s.p95_s,
        ttft_s_p99=ttft_s.p99_s,
        e2e_s_mean=e2e_s.mean_s, e2e_s_p50=e2e_s.p50_s, e2e_s_p90=e2e_s.p90_s, e2e_s_p95=e2e_s.p95_s,
        e2e_s_p99=e2e_s.p99_s,
        tpot_s_mean=tpot_s.mean_s, tpot_s_p50=tpot_s.p50_s, tpot_s_p99=tpot_s.p99_s,
        itl_s_p50=gaps.percentile_s(50), itl_s_p99=gaps.percentile_s(99),
        offload_fraction=sum(one.route == REMOTE for one in some) / len(some) if known else None,
        routes=_by_route(some),
        stability=_stability(some, answered, span_s),
        tokens_counted_by=dict(Counter(one.counted_by for one in answered).most_common()),
        send_late_s_p99=percentile(late_s, 99), send_late_s_max=late_s[-1] if late_s else None,
        num_sent_late=sum(late > LATE_S for late in late_s),
        num_events=num_events,
        client_cpu_s=cost.cpu_s,
        client_cpu_s_per_request=cost.cpu_s / len(sent) if sent else None,
        client_cpu_s_per_event=cost.cpu_s / num_events if num_events else None,
        wall_s=cost.wall_s,
    )  # fmt: skip


def _by_route(some: Sequence[Sent]) -> dict[str, RouteResults]:
    routes: dict[str, list[Sent]] = {}
    for one in some:
        routes.setdefault(one.route, []).append(one)
    return {name: _of_route(routes[name]) for name in sorted(routes)}


def _of_route(some: Sequence[Sent]) -> RouteResults:
    answered = [one for one in some if one.is_ok]
    ttft_s, e2e_s = times_of(one.ttft_s for one in answered), times_of(one.e2e_s for one in answered)
    tpot_s_mean = mean(value for one in answered if (value := one.tpot_s) is not None)
    return RouteResults(
        len(some), len(answered), ttft_s.mean_s, ttft_s.p50_s, ttft_s.p90_s, ttft_s.p99_s, e2e_s.mean_s, e2e_s.p50_s,
        e2e_s.p99_s, tpot_s_mean,
    )  # fmt: skip


def inside(some: Sequence[Sent], times_s: Sequence[float]) -> list[int]:
    """How many had come and had not ended, at each of some rising times. One without an end never did."""
    changes = sorted(
        [(one.arrival_s, 1) for one in some] + [(one.over_s, -1) for one in some if one.over_s == one.over_s]
    )
    found, number, place = [], 0, 0
    for at_s in times_s:
        while place < len(changes) and changes[place][0] <= at_s:
            number += changes[place][1]
            place += 1
        found.append(number)
    return found


def _stability(some: Sequence[Sent], answered: Sequence[Sent], span_s: float) -> str:
    stay_s = percentile(sorted(one.e2e_s for one in answered), 1)
    if span_s <= 0:
        return "too_short"
    sample_s = span_s / _NUM_SAMPLES
    times_s = [some[0].arrival_s + n * sample_s for n in range(_NUM_SAMPLES + 1)]
    return stability_of(inside(some, times_s), sample_s, stay_s, span_s, len(some) / span_s)
