"""GORGO's three sites (arXiv 2602.11688, third version), repeated in the simulator.

`python -m benchmarks.simulator.gorgo --seeds 3`. One proxy, three replicas with round trips of 37, 279 and 456 ms, and
half an hour of requests that have the published statistics (`gorgo_load`). Six ways to choose a replica.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple
from zlib import crc32

from benchmarks.scheduler.in_parallel import run_all
from benchmarks.simulator.gorgo_load import (
    APR5,
    APR6,
    APR7,
    BLOCK_TOKENS,
    OUTPUT_TOKENS,
    PUBLISHED,
    Window,
    asked,
    statistics_of,
)
from prfaas.core.control.route import Option, Prompt
from prfaas.core.control.router import RoutePolicy
from prfaas.core.model.curve import polynomial
from prfaas.core.model.decode import DecodePoint, StepTimes
from prfaas.core.model.layout import KVGroupKind
from prfaas.core.model.serving_model import ClusterModel, ServingModel
from prfaas.core.topology import Cluster, Duty, Instance, Role, Topology
from prfaas.sim.caches import CacheProfile
from prfaas.sim.deployment import SimulatedDeployment
from prfaas.sim.engine import EngineProfile
from prfaas.sim.runs import Run, to_end
from prfaas.sim.simulation import Life, Simulation
from prfaas.simulator.results import percentile
from prfaas.testing.saturation import FOR_EVER

#: Published: means over the tuning window.
RTTS_S: Final = {"ashburn": 0.037, "frankfurt": 0.279, "seoul": 0.456}
NEAREST: Final = "ashburn"
MAX_BATCH: Final = 64
#: The proxy asks the engines for their metrics so often.
SCRAPE_S: Final = 30.0

# Assumed. Of the published times to the first token of Apr 6 the medians are those of prompts that are mostly cached,
# and the 95th percentiles those of long ones that are not; 0.12 s for any prompt and 15,000 uncached tokens a second
# fit both. The published time between tokens is 9 ms at little load; reading all weights takes two L40S 20 ms.
FIXED_S: Final = 0.12
TOKENS_PER_S: Final = 15_000
STEPS: Final = StepTimes([DecodePoint(1, 0.0085), DecodePoint(MAX_BATCH, 0.028)])

# Estimated. Qwen3.5-35B-A3B: 10 of 40 layers with 2 KV heads of 256 values in two bytes, K and V. Of 96 GB SGLang takes
# 0.8, less 35 GB of weights; of what is left it gives about a half to KVCache, the rest to states of linear layers.
BYTES_PER_TOKEN: Final = 10 * 2 * 2 * 256 * 2
CACHED_TOKENS: Final = int((0.8 * 96e9 - 35e9) / 1.9 / BYTES_PER_TOKEN)
KINDS: Final = frozenset({KVGroupKind.FULL_ATTENTION, KVGroupKind.LINEAR_STATE})

#: From one request to one replica.
Pick = Callable[[Sequence[Option], Prompt, "Proxy"], Option]


class Replica(NamedTuple):
    """What runs there: requests that have not ended, tokens of their prompts, those that hold KVCache."""

    num_requests: int
    num_tokens: int
    num_used_tokens: int


class Proxy:
    """What the authors' proxy knows of its replicas: its own requests at once, and their engines' metrics of late."""

    def __init__(self) -> None:
        self.simulation: Simulation | None = None
        self._scraped: dict[str, Replica] = {}
        self._scraped_s = -SCRAPE_S

    def now(self, name: str) -> Replica:
        """By the proxy's own books."""
        assert self.simulation is not None, "it has been given its simulation"
        num_requests = num_tokens = num_used = 0
        for life in self.simulation.lives.values():
            if life.decode == name:
                num_requests += 1
                num_tokens += life.arrival.num_tokens
                num_used += life.arrival.num_tokens if life.began_s is not None else 0
        return Replica(num_requests, num_tokens, num_used)

    def scraped(self, name: str) -> Replica:
        """As the engines said last."""
        assert self.simulation is not None, "it has been given its simulation"
        now_s = self.simulation.kernel.now_s
        if now_s - self._scraped_s >= SCRAPE_S:
            self._scraped_s = now_s
            self._scraped = {replica: self.now(replica) for replica in self.simulation.engines}
        return self._scraped[name]


# How replicas are chosen, as the paper and its published code say


def gorgo(w_rtt: float, w_queue: float) -> Pick:
    """Milliseconds of round trip, tokens to prefill, and tokens of prompts that have not ended."""

    def pick(options: Sequence[Option], prompt: Prompt, proxy: Proxy) -> Option:
        def cost(option: Option) -> float:
            queued = proxy.now(option.decode).num_tokens
            return w_rtt * option.rtt_s * 1e3 + option.num_uncached_tokens + w_queue * queued

        return min(options, key=cost)

    return pick


def affinity(options: Sequence[Option], prompt: Prompt, proxy: Proxy) -> Option:
    """By a hash of how the user's prompts begin."""
    return options[crc32(prompt.tenant.encode()) % len(options)]


def least_load(options: Sequence[Option], prompt: Prompt, proxy: Proxy) -> Option:
    """Running requests and the tokens that they hold, as last scraped, and tokens sent since then or before."""

    def load(option: Option) -> float:
        said = proxy.scraped(option.decode)
        return said.num_requests + said.num_used_tokens + proxy.now(option.decode).num_tokens

    return min(options, key=load)


def least_request(options: Sequence[Option], prompt: Prompt, proxy: Proxy) -> Option:
    """Requests under way: by the own books or as last scraped, whichever are more."""
    return min(
        options,
        key=lambda option: max(proxy.now(option.decode).num_requests, proxy.scraped(option.decode).num_requests),
    )


def prefix_cache(options: Sequence[Option], prompt: Prompt, proxy: Proxy) -> Option:
    """AIBrix: where most is cached, and of equals the fewest requests; `least_request` if nothing is, or where one
    replica was said to have over eight requests more than another."""
    running = {option: proxy.scraped(option.decode).num_requests for option in options}
    least_uncached = min(option.num_uncached_tokens for option in options)
    is_uneven = max(running.values()) - min(running.values()) > 8
    if is_uneven or least_uncached >= prompt.num_tokens:
        return least_request(options, prompt, proxy)
    return min((o for o in options if o.num_uncached_tokens == least_uncached), key=lambda option: running[option])


def blind(options: Sequence[Option], prompt: Prompt, proxy: Proxy) -> Option:
    """As we do, without the round trips."""
    return min(options, key=lambda option: option.cost_s - option.rtt_s)


#: The paper's five, in its order.
THEIRS: Final[dict[str, Pick]] = {
    "GORGO": gorgo(0.276, 0.5),
    "session affinity": affinity,
    "least-load": least_load,
    "least-request": least_request,
    "prefix-cache": prefix_cache,
}
#: With the weight of the round trip that the tuner had found then.
TRAP: Final = "GORGO, w_queue = 0"
OURS: Final = "`prfaas`"
BLIND: Final = "`prfaas` without `rtt`"
#: None: the shipped rule.
PICKS: Final[dict[str, Pick | None]] = {**THEIRS, TRAP: gorgo(0.23, 0.0), OURS: None, BLIND: blind}
COMPARED: Final = (*THEIRS, OURS, BLIND)


# One run


@dataclass(frozen=True)
class Cell:
    """One policy under one load."""

    policy: str
    window: Window
    seed: int
    time_scale: float
    #: Prefill takes that much less time.
    speed: float = 1.0


class Seen(NamedTuple):
    """What clients see. `shares` of the requests, by replica, the nearest first. `computed`: tokens prefilled, over all
    of the prompts."""

    ttft_p50_s: float
    ttft_p95_s: float
    ttft_p99_s: float
    e2e_p95_s: float
    itl_s: float
    shares: tuple[float, ...]
    computed: float


def deployment(pick: Pick | None, proxy: Proxy, speed: float = 1.0) -> SimulatedDeployment:
    """Three replicas, each a cluster of its own."""
    clusters = tuple(Cluster(name, Role.PD, rtt_s=rtt_s) for name, rtt_s in RTTS_S.items())
    prefill_s = polynomial(FIXED_S / speed, 1 / (TOKENS_PER_S * speed))
    instances = tuple(
        Instance(name, name, Duty.BOTH, f"sim://{name}/engine", f"sim://{name}/node", f"sim://{name}", "simulated")
        for name in RTTS_S
    )
    kv_bytes = polynomial(0.0, BYTES_PER_TOKEN)
    step_s = STEPS.at(MAX_BATCH)
    model = ServingModel({name: ClusterModel(prefill_s, MAX_BATCH, step_s) for name in RTTS_S}, kv_bytes, OUTPUT_TOKENS)
    choose = None if pick is None else lambda options, prompt: pick(options, prompt, proxy)
    return SimulatedDeployment(
        Topology(clusters, instances, ()),
        {name: EngineProfile(prefill_s, MAX_BATCH, step_s, steps=STEPS) for name in RTTS_S},
        kv_bytes,
        RoutePolicy(offload=False, threshold_tokens=0, model=model, choose=choose),
        FOR_EVER,
        caches=CacheProfile(BLOCK_TOKENS, dict.fromkeys(RTTS_S, CACHED_TOKENS // BLOCK_TOKENS), KINDS),
    )


def answered(cell: Cell) -> list[Life]:
    """All requests of a window."""
    proxy = Proxy()
    run = Run(deployment(PICKS[cell.policy], proxy, cell.speed))
    proxy.simulation = run.simulation
    requests = asked(cell.window, cell.seed, cell.time_scale)
    run.simulation.follow(iter([one.arrival for one in requests]))
    return to_end(run).ended


def seen(cell: Cell) -> Seen:
    """Of all its requests, the first ones too, as the authors count."""
    lives = answered(cell)
    assert {life.outcome for life in lives} == {"ok"}
    ttfts_s = sorted((life.began_s or 0.0) - life.arrival.at_s for life in lives)
    e2es_s = sorted((life.ended_s or 0.0) - life.arrival.at_s for life in lives)
    itls_s = [((life.ended_s or 0.0) - (life.began_s or 0.0)) / (OUTPUT_TOKENS - 1) for life in lives]
    ttft_p50_s, ttft_p95_s, ttft_p99_s = (percentile(ttfts_s, percent) or 0.0 for percent in (50, 95, 99))
    return Seen(
        ttft_p50_s,
        ttft_p95_s,
        ttft_p99_s,
        percentile(e2es_s, 95) or 0.0,
        statistics.median(itls_s),
        tuple(sum(life.decode == name for life in lives) / len(lives) for name in RTTS_S),
        sum(life.num_computed_tokens for life in lives) / sum(life.arrival.num_tokens for life in lives),
    )


class Times(NamedTuple):
    """Published of a policy: milliseconds to the first token, and seconds to the last."""

    ttft_p50_ms: int
    ttft_p95_ms: int
    ttft_p99_ms: int
    e2e_p95_s: float


#: Of the held-out windows, and of the one that they tuned in, in which GORGO still learned.
THEIR_TIMES: Final[dict[Window, dict[str, Times]]] = {
    APR6: {
        "GORGO": Times(491, 1_584, 2_222, 3.28),
        "session affinity": Times(627, 1_875, 3_056, 4.75),
        "least-load": Times(616, 1_818, 2_885, 4.06),
        "least-request": Times(634, 1_852, 2_484, 3.99),
        "prefix-cache": Times(574, 1_798, 2_750, 4.95),
    },
    APR7: {
        "GORGO": Times(398, 1_417, 2_061, 3.36),
        "session affinity": Times(457, 1_522, 2_402, 3.92),
        "least-load": Times(495, 1_669, 2_368, 4.07),
        "least-request": Times(527, 1_759, 2_578, 4.44),
        "prefix-cache": Times(533, 1_861, 2_872, 12.00),
    },
    APR5: {
        "GORGO": Times(673, 2_514, 4_473, 8.91),
        "session affinity": Times(712, 2_428, 5_190, 18.27),
        "least-load": Times(763, 2_447, 4_349, 13.69),
        "least-request": Times(968, 3_970, 7_012, 16.62),
        "prefix-cache": Times(1_477, 6_784, 9_613, 22.63),
    },
}
#: On Apr 2 they found the trap, in 3,071 requests in half an hour. Of that window nothing else is published.
APR2: Final = replace(APR6, name="Apr 2", num_requests=3_071, num_users=242, time_scale=1.0)
TRAP_TIMES: Final = {
    "session affinity": Times(268, 1_715, 2_947, 3.88),
    "least-load": Times(278, 1_669, 2_665, 3.89),
    "least-request": Times(274, 1_285, 1_902, 2.61),
    "prefix-cache": Times(288, 1_468, 2_374, 3.59),
    TRAP: Times(180, 1_072, 1_810, 12.49),
}
#: Time scales and speeds: as published; with other replicas; at little load.
TRAPPED: Final = ((1.0, 1.0), (1.0, 2.0), (3.0, 1.0))
#: Milliseconds to the first token and seconds to the last, 95th percentiles, of Apr 7.
SWEEP: Final = {
    3.0: {"GORGO": (1_378, 3.25), "session affinity": (1_556, 4.04), "least-request": (1_805, 4.92)},
    2.0: {"GORGO": (1_822, 5.65), "session affinity": (1_707, 15.50), "least-request": (4_361, 16.85)},
    1.5: {},
    1.0: {"GORGO": (8_260, 15.76), "session affinity": (1_835, 17.94), "least-request": (6_138, 18.62)},
}


def mean_of(found: Sequence[Seen]) -> Seen:
    """Over seeds."""

    def mean(of: Callable[[Seen], float]) -> float:
        return statistics.fmean(of(one) for one in found)

    return Seen(
        mean(lambda s: s.ttft_p50_s),
        mean(lambda s: s.ttft_p95_s),
        mean(lambda s: s.ttft_p99_s),
        mean(lambda s: s.e2e_p95_s),
        mean(lambda s: s.itl_s),
        tuple(statistics.fmean(shares) for shares in zip(*(one.shares for one in found), strict=True)),
        mean(lambda s: s.computed),
    )


# Tables


def cells(seeds: int) -> list[Cell]:
    """All runs."""
    numbers = range(1, seeds + 1)
    found = [Cell(p, w, n, w.time_scale) for w in THEIR_TIMES for p in COMPARED for n in numbers]
    found += [Cell(p, APR7, n, scale) for scale in SWEEP for p in COMPARED for n in numbers]
    found += [Cell(p, APR2, n, scale, speed) for scale, speed in TRAPPED for p in PICKS for n in numbers]
    return list(dict.fromkeys(found))


def row(name: str, s: Seen, published: Times | None) -> str:
    """Published figures in brackets."""
    said: tuple[str, ...] = ("", "", "", "")
    if published is not None:
        said = (*(f" ({ms:,})" for ms in published[:3]), f" ({published.e2e_p95_s:.2f})")
    shares = " / ".join(f"{share:.0%}" for share in s.shares)
    return (
        f"| {name} | {s.ttft_p50_s * 1e3:,.0f}{said[0]} | {s.ttft_p95_s * 1e3:,.0f}{said[1]} | "
        f"{s.ttft_p99_s * 1e3:,.0f}{said[2]} | {s.e2e_p95_s:.2f}{said[3]} | {s.itl_s * 1e3:.1f} | {shares} | "
        f"{s.computed:.0%} |"
    )


HEAD: Final = (
    "| | TTFT p50, ms | p95 | p99 | E2E p95, s | ITL, ms | near / middle / far | computed |\n"
    "|---|---|---|---|---|---|---|---|"
)


def order(times: dict[str, float]) -> str:
    """The least first."""
    return ", ".join(sorted(times, key=lambda name: times[name]))


def orders(found: dict[str, Seen], published: dict[str, Times]) -> list[str]:
    """Of their five policies, by each percentile: theirs, ours, and pairs that are in the same order."""
    lines = ["| | published | here | pairs alike |", "|---|---|---|---|"]
    for index, what in enumerate(("TTFT p50", "TTFT p95", "TTFT p99", "E2E p95")):
        theirs = {name: float(published[name][index]) for name in THEIRS}
        here = {
            name: (s.ttft_p50_s, s.ttft_p95_s, s.ttft_p99_s, s.e2e_p95_s)[index]
            for name, s in found.items()
            if name in THEIRS
        }
        pairs = [(a, b) for a in THEIRS for b in THEIRS if theirs[a] < theirs[b]]
        alike = sum(here[a] < here[b] for a, b in pairs)
        lines.append(f"| {what} | {order(theirs)} | {order(here)} | {alike} of {len(pairs)} |")
    return lines


def windows() -> None:
    """What the generated requests are like."""
    print(
        "| | requests | per user | multi-turn | median tokens | mean | p95 | reuse |\n|---|---|---|---|---|---|---|---|"
    )
    for window, published in PUBLISHED.items():
        for name, s in (("published", published), ("here", statistics_of(asked(window, 1)))):
            print(f"| {window.name}, {name} | {s.num_requests:,} | {s.requests_per_user:.1f} | {s.multi_turn:.1%} | "
                  f"{s.median_tokens:,.0f} | {s.mean_tokens:,.0f} | {s.p95_tokens:,.0f} | {s.reuse:.1%} |")  # fmt: skip


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    numbers = range(1, options.seeds + 1)
    done = run_all(seen, cells(options.seeds), options.processes)

    def mean(policy: str, window: Window, scale: float, speed: float = 1.0) -> Seen:
        return mean_of([done[Cell(policy, window, n, scale, speed)] for n in numbers])

    print(f"KVCache: {BYTES_PER_TOKEN:,} bytes a token, {CACHED_TOKENS:,} tokens a replica.\n")
    windows()
    for window, published in THEIR_TIMES.items():
        found = {policy: mean(policy, window, window.time_scale) for policy in COMPARED}
        print(f"\n{window.name}, time_scale {window.time_scale:g}\n\n{HEAD}")
        print("\n".join(row(policy, s, published.get(policy)) for policy, s in found.items()))
        print("\n" + "\n".join(orders(found, published)))
    print("\n| time_scale | " + " | ".join(COMPARED) + " |\n|---" + "|---" * len(COMPARED) + "|")
    for scale, told in SWEEP.items():
        line = f"| {scale:g} "
        for policy in COMPARED:
            s = mean(policy, APR7, scale)
            said = f" ({told[policy][0]:,} / {told[policy][1]:.2f})" if policy in told else ""
            line += f"| {s.ttft_p95_s * 1e3:,.0f} / {s.e2e_p95_s:.2f}{said} "
        print(line + "|")
    for scale, speed in TRAPPED:
        print(f"\nApr 2, time_scale {scale:g}, replicas {speed:g} times as fast\n\n{HEAD}")
        for policy in PICKS:
            published = TRAP_TIMES.get(policy) if scale == APR2.time_scale else None
            print(row(policy, mean(policy, APR2, scale, speed), published))


if __name__ == "__main__":
    main()
