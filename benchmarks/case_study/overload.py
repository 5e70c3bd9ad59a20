"""`python -m benchmarks.case_study.overload`: the emulated case study, offered three times what it can serve.

First what it can serve is measured: for a while it is offered a little more than that. Then comes the overload, then
nothing until every request has ended, then single requests. With `policy.max_ttft` a request whose answer would begin
too late is refused at once. Prints what was answered within the SLO per second beside the measured capacity, how long
refusals took, and what was left behind. Ends with status 1 if a goal was missed.

Seconds of the profiles are printed for what engines compute, and seconds here for refusals: those are the gateway's own
work, which `time_scale` does not shrink.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import uvloop

from prfaas.bench.e2e.plan import Planned
from prfaas.bench.e2e.sent import OK, UNAVAILABLE, Sent
from prfaas.core.planning.solve import solve
from prfaas.demo.case_study import MODEL, case_study_document
from prfaas.scenario.build import build_scenario
from prfaas.simulator.results import mean, percentile
from prfaas.testing.deployed import http
from prfaas.testing.emulated_site import EmulatedSite
from prfaas.testing.sending import Phase, planned_in, send

#: Poisson arrivals at the rate itself would leave instances idle at times.
SATURATED: Final = 1.1
OVERLOADED: Final = 3.0
#: A full batch takes exactly `slo.tpot` for a step, so a client that measures it needs some room.
TPOT_ROOM: Final = 1.1
LEAST_GOODPUT: Final = 0.95
MOST_REFUSAL_S: Final = 0.05
#: A client that sends later than this was kept from its processor, and so was the gateway beside it.
MOST_LATE_S: Final = 0.1
NUM_AFTER: Final = 10
#: Alone, a prompt of this length is prefilled in about half a second of the profiles.
AFTER_TOKENS: Final = 1_000
AFTER_OUTPUT_TOKENS: Final = 8
EMPTY_WITHIN_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Terms:
    """Times here, not of the profiles. What ends within a window counts for it."""

    time_scale: float
    max_ttft_s: float
    tpot_s: float
    windows: tuple[tuple[float, float], tuple[float, float]]

    def is_good(self, one: Sent) -> bool:
        """Whether an answered request kept the SLO."""
        return one.ttft_s <= self.max_ttft_s and (one.tpot_s or 0.0) <= self.tpot_s


@dataclass(frozen=True, slots=True)
class Window:
    """Rates are of the profiles' time."""

    offered_rps: float
    answered_rps: float
    good_rps: float
    prompt_tokens_per_s: float
    prompt_tokens_mean: float
    ttft_s: tuple[float, float, float]
    refused_share: float


def window_of(sent: Sequence[Sent], terms: Terms, from_s: float, to_s: float) -> Window:
    """Of those that ended within it; `offered_rps` and `refused_share` of those that came within it."""
    came = [one for one in sent if from_s < one.arrival_s <= to_s]
    ended = [one for one in sent if one.is_ok and one.end_s is not None and from_s < one.end_s <= to_s]
    span_s = (to_s - from_s) / terms.time_scale
    times_s = sorted(one.ttft_s / terms.time_scale for one in ended)
    tokens = [one.input_tokens for one in ended]
    return Window(
        len(came) / span_s, len(ended) / span_s, sum(map(terms.is_good, ended)) / span_s, sum(tokens) / span_s,
        mean(tokens) or 0.0, (_at(times_s, 50), _at(times_s, 90), _at(times_s, 99)),
        sum(one.outcome == UNAVAILABLE for one in came) / max(1, len(came)),
    )  # fmt: skip


def _at(ordered: Sequence[float], percent: float) -> float:
    found = percentile(ordered, percent)
    return math.nan if found is None else found


class Verdict:
    """Collects what was claimed, and whether it held."""

    def __init__(self) -> None:
        self.all_hold = True

    def tell(self, holds: bool, text: str) -> None:
        self.all_hold &= holds
        print(f"{'ok  ' if holds else 'MISS'} {text}", flush=True)


def tell_windows(sent: Sequence[Sent], terms: Terms, verdict: Verdict) -> None:
    """Capacity and goodput."""
    found = [window_of(sent, terms, *window) for window in terms.windows]
    print("\n| offered/s | answered/s | within SLO/s | prompt tokens/s | mean prompt | TTFT p50, p90, p99 | refused |")
    print("|---:|---:|---:|---:|---:|---|---:|")
    for one in found:
        times = ", ".join(f"{value:.1f}" for value in one.ttft_s)
        print(
            f"| {one.offered_rps:.2f} | {one.answered_rps:.2f} | {one.good_rps:.2f} | {one.prompt_tokens_per_s:,.0f} |"
            f" {one.prompt_tokens_mean:,.0f} | {times} s | {one.refused_share:.0%} |"
        )
    capacity, overloaded = found
    share = overloaded.good_rps / capacity.answered_rps if capacity.answered_rps else 0.0
    print()
    verdict.tell(share >= LEAST_GOODPUT, f"within the SLO: {share:.1%} of the measured capacity")


def tell_refusals(sent: Sequence[Sent], own_s: Sequence[float], verdict: Verdict) -> None:
    """How long clients waited for 429, and how long the gateway had the whole request."""
    refused = [one for one in sent if one.outcome == UNAVAILABLE]
    waits_s = sorted(one.over_s - one.sent_s for one in refused)
    for name, values_s in (("clients waited", waits_s), ("the gateway took", sorted(own_s))):
        shown = ", ".join(f"{_at(values_s, percent) * 1e3:.1f}" for percent in (50, 90, 99, 100))
        print(f"     {len(values_s)} refusals, {name}: p50, p90, p99, longest {shown} ms")
    verdict.tell(_at(waits_s, 99) <= MOST_REFUSAL_S, f"99% of refusals within {MOST_REFUSAL_S * 1e3:g} ms of sending")
    verdict.tell(all(one.status == 429 for one in refused), "every refusal is a 429")
    verdict.tell(all(one.retry_after_s is not None for one in refused), "every refusal has Retry-After")
    others = [f"{one.failure}: {one.detail}" for one in sent if one.outcome not in (OK, UNAVAILABLE)]
    verdict.tell(not others, f"of {len(sent)} requests {len(others)} were neither answered nor refused {others[:3]}")


def own_times_s(gateway: str, refused: Iterable[Sent]) -> list[float]:
    """From a request's last byte to its refusal, as its story says. The gateway remembers the last few thousand."""
    found = []
    for one in refused:
        story, _ = http(f"{gateway}/prfaas/requests/{one.request_id}")
        if story["total_s"] is not None:
            found.append(story["total_s"])
    return found


def tell_afterwards(site: EmulatedSite, terms: Terms, verdict: Verdict) -> None:
    """Whether anything is left, and how quick single requests are now."""
    began_s = time.monotonic()
    while (held := site.held()) and time.monotonic() - began_s < EMPTY_WITHIN_S:
        time.sleep(0.2)
    verdict.tell(not held, f"nothing is held {time.monotonic() - began_s:.1f} s after the last answer {held or ''}")
    waiting = {name: cluster["num_waiting"] for name, cluster in site.scheduler()["clusters"].items()}
    verdict.tell(not any(waiting.values()), f"prompts that wait: {waiting}")
    after = [Planned(n + 1, 2.0 * n * terms.time_scale, AFTER_TOKENS, AFTER_OUTPUT_TOKENS) for n in range(NUM_AFTER)]
    sent = _sent(site, after)
    times_s = sorted(one.ttft_s / terms.time_scale for one in sent if one.is_ok)
    slowest_s = times_s[-1] if times_s else math.inf
    text = f"{len(times_s)} of {NUM_AFTER} requests afterwards answered, first token after {slowest_s:.2f} s at most"
    verdict.tell(len(times_s) == NUM_AFTER and slowest_s < 2.0, text)


def _sent(site: EmulatedSite, requests: Sequence[Planned]) -> list[Sent]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(send(site.gateway, MODEL, requests, int.from_bytes(os.urandom(4), "little")))


def measure(site: EmulatedSite, options: argparse.Namespace) -> bool:
    """Whether every goal was reached."""
    planned_rps = solve(build_scenario(site.file)).system_rps
    saturated_s, overloaded_s, ramp_s = options.saturated, options.overloaded, options.ramp
    phases = [Phase(SATURATED * planned_rps, saturated_s), Phase(options.load * planned_rps, overloaded_s)]
    ends_s = saturated_s + overloaded_s
    tpot_s = TPOT_ROOM * 0.025 * options.time_scale
    terms = Terms(
        options.time_scale, options.max_ttft * options.time_scale, tpot_s,
        ((ramp_s, saturated_s), (saturated_s + ramp_s, ends_s)),
    )  # fmt: skip
    print(
        f"plan: {planned_rps:.2f} requests/s; offered {SATURATED:g} times that for {saturated_s:g} s here, then"
        f" {options.load:g} times for {overloaded_s:g} s; the first {ramp_s:g} s of each do not count"
    )
    print(f"SLO: first token within {options.max_ttft:g} s, {1e3 * 0.025 * TPOT_ROOM:g} ms a token", flush=True)
    sent = _sent(site, planned_in(site.file, phases, options.seed))
    late_s = max(one.late_s for one in sent)
    print(f"{len(sent)} sent, at most {late_s * 1e3:.0f} ms late; load average {os.getloadavg()[0]:.1f}")
    if late_s > MOST_LATE_S:
        print("     This machine was too busy to send in time: what follows says more of it than of the system.")
    verdict = Verdict()
    tell_windows(sent, terms, verdict)
    refused = [one for one in sent if one.outcome == UNAVAILABLE]
    tell_refusals(sent, own_times_s(site.gateway, refused[-4_000:]), verdict)
    tell_afterwards(site, terms, verdict)
    wrong = site.num_wrong()
    verdict.tell(not wrong, f"wrong parts of KVCache: {wrong:g}")
    return verdict.all_hold


def main(run: Callable[[EmulatedSite, argparse.Namespace], bool] = measure) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time-scale", type=float, default=0.5)
    parser.add_argument("--load", type=float, default=OVERLOADED, help="offered, of the plan's rate")
    parser.add_argument("--max-ttft", type=float, default=8.0, help="policy.max_ttft, seconds of the profiles")
    parser.add_argument("--saturated", type=float, default=120.0, help="seconds here at the capacity")
    parser.add_argument("--overloaded", type=float, default=120.0, help="seconds here of overload")
    parser.add_argument("--ramp", type=float, default=40.0, help="seconds here at the begin of both that do not count")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    policy = {"kind": "prfaas", "max_ttft": f"{options.max_ttft:g}s"}
    with EmulatedSite(case_study_document(policy=policy, time_scale=options.time_scale)) as site:
        return 0 if run(site, options) else 1


if __name__ == "__main__":
    sys.exit(main())
