"""Requests that come to a simulated deployment."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from prfaas.core.normal_distribution import quantile, share_below
from prfaas.core.planning.trace import TracedRequest
from prfaas.core.planning.workload import Empirical, TruncatedLogNormal, Workload
from prfaas.core.portable_math import exp, log, sine_of_turns
from prfaas.sim.draws import exponential

#: There is no quantile of zero.
_SMALLEST: Final = 1e-300


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request. Its prompt has `num_tokens`; those without names in `blocks` are nowhere cached. `blocks` name the
    prompt's full blocks, each with everything before it. The rest: see RequestArrived."""

    at_s: float
    num_tokens: int
    num_output_tokens: int
    priority: int = 0
    tenant: str = ""
    blocks: tuple[bytes, ...] = ()


#: Draws one uncached prompt length, in tokens.
DrawLength = Callable[[random.Random], int]


def lengths_of(workload: Workload) -> DrawLength:
    """Draws from a workload's distribution."""
    if isinstance(workload, TruncatedLogNormal):
        return _log_normal(workload)
    if isinstance(workload, Empirical):
        lengths = [max(1, round(length)) for length in workload.lengths_tokens]
        return lambda rng: lengths[rng.randrange(len(lengths))]
    raise TypeError(f"nothing is known of how to draw from {workload!r}")


def _log_normal(workload: TruncatedLogNormal) -> DrawLength:
    """By the inverse of the distribution function, in the tail where it is accurate: one uniform number each."""
    a, b = ((log(end) - workload.mu) / workload.sigma for end in (workload.min_tokens, workload.max_tokens))
    sign = -1.0 if a > 0 else 1.0
    low, high = sorted((share_below(sign * a), share_below(sign * b)))

    def draw(rng: random.Random) -> int:
        share = min(max(low + (high - low) * rng.random(), _SMALLEST), 1 - 1e-16)
        length = exp(workload.mu + workload.sigma * sign * quantile(share))
        return max(1, round(min(max(length, workload.min_tokens), workload.max_tokens)))

    return draw


def varying(
    rng: random.Random,
    rate_rps: Callable[[float], float],
    max_rate_rps: float,
    lengths: Callable[[float], DrawLength],
    output_tokens: Callable[[float], int],
) -> Iterator[Arrival]:
    """Without end; rate, lengths and outputs depend on the time. Poisson, by thinning: at no time more than
    `max_rate_rps`."""
    at_s = 0.0
    while True:
        at_s += exponential(rng, max_rate_rps)
        if rng.random() * max_rate_rps < rate_rps(at_s):
            yield Arrival(at_s, lengths(at_s)(rng), output_tokens(at_s))


def poisson(rng: random.Random, rate_rps: float, lengths: DrawLength, num_output_tokens: int) -> Iterator[Arrival]:
    """Without end, at `rate_rps` on average."""
    at_s = 0.0
    while True:
        at_s += exponential(rng, rate_rps)
        yield Arrival(at_s, lengths(rng), num_output_tokens)


def bursty(
    rng: random.Random,
    rate_rps: float,
    factor: float,
    burst_s: float,
    calm_s: float,
    lengths: DrawLength,
    num_output_tokens: int,
) -> Iterator[Arrival]:
    """Without end: a Markov-modulated Poisson process. In a burst, of `burst_s` on average, `factor` times as many come
    as in the calm of `calm_s` on average; over both, `rate_rps`."""
    calm_rps = rate_rps * (burst_s + calm_s) / (factor * burst_s + calm_s)
    at_s, is_burst = 0.0, rng.random() < burst_s / (burst_s + calm_s)
    ends_s = exponential(rng, 1.0 / (burst_s if is_burst else calm_s))
    while True:
        wait_s = exponential(rng, calm_rps * factor if is_burst else calm_rps)
        if at_s + wait_s >= ends_s:
            # Poisson forgets: what is left of this wait is drawn anew at the other rate.
            at_s, is_burst = ends_s, not is_burst
            ends_s += exponential(rng, 1.0 / (burst_s if is_burst else calm_s))
            continue
        at_s += wait_s
        yield Arrival(at_s, lengths(rng), num_output_tokens)


def daily(
    rng: random.Random, rate_rps: float, lowest: float, day_s: float, lengths: DrawLength, num_output_tokens: int
) -> Iterator[Arrival]:
    """Without end: Poisson whose rate follows a sine, from its mean upwards, `rate_rps` over a day of `day_s`, and at
    its lowest `lowest` times what it is at its highest."""
    swing = (1.0 - lowest) / (1.0 + lowest)

    def rate_at(at_s: float) -> float:
        return rate_rps * (1.0 + swing * sine_of_turns(at_s / day_s))

    return varying(rng, rate_at, rate_rps * (1.0 + swing), lambda at_s: lengths, lambda at_s: num_output_tokens)


def traced(requests: Sequence[TracedRequest], *, is_whole: bool) -> Iterator[Arrival]:
    """Those of a trace, in its order, from its first on. `is_whole`: with all of their prompts and the names of their
    blocks, of which caches hold some; else with what a cache that never forgets would leave."""
    first_s = requests[0].arrival_s
    for r in requests:
        num_tokens = r.input_tokens if is_whole else r.uncached_tokens
        blocks = tuple(f"{hash_id:x}".encode() for hash_id in r.hash_ids) if is_whole else ()
        yield Arrival(r.arrival_s - first_s, num_tokens, max(1, r.output_tokens), blocks=blocks)
