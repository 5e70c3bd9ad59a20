"""NVIDIA's study "Prefill as a Service Across Slurm Clusters" (ai-dynamo/dynamo#11236), repeated in the simulator.

`python -m benchmarks.simulator.two_sites`. Four clients in a closed loop, one H100 PCIe that prefills, one H100 NVL
that decodes, and what carries KVCache from one to the other. Three ways in which transfers may share it, each with the
rate that gives the published time to first token; then what else the same two GPUs would do.
"""

from __future__ import annotations

import math
import random
import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from prfaas.core.control.router import RoutePolicy
from prfaas.core.model.curve import Curve, polynomial
from prfaas.core.model.decode import DecodePoint, StepTimes
from prfaas.core.model.serving_model import ClusterModel, ServingModel
from prfaas.core.topology import Cluster, Duty, Instance, Link, Role, Topology, complete_links
from prfaas.sim.deployment import SimulatedDeployment
from prfaas.sim.engine import EngineProfile
from prfaas.sim.kernel import Kernel
from prfaas.sim.link import SharedLink, Transfer
from prfaas.sim.runs import ClosedLoop
from prfaas.sim.simulation import Life
from prfaas.testing.saturation import FOR_EVER

# Published: article, results.json and requests.csv of the pull request.
PROMPT_TOKENS: Final = 4_108
OUTPUT_TOKENS: Final = 256
#: Three repetitions of 64, here in one go.
NUM_REQUESTS: Final = 192
NUM_CLIENTS: Final = 4
#: Decode steps: of the one request that was alone to its end, and with four.
STEPS: Final = StepTimes([DecodePoint(1, 0.02706), DecodePoint(4, 0.02886)])
#: Of the three repetitions' medians, the middle one.
PUBLISHED_TTFT_S: Final = 14.02

# Qwen3-32B: 64 layers, 8 KV heads of 128 values in two bytes, K and V; 64 query heads.
BYTES_PER_TOKEN: Final = 64 * 2 * 8 * 128 * 2
#: Two per weight and token, and attention over half of the square.
PREFILL_FLOP: Final = 2 * 32.8e9 * PROMPT_TOKENS + 2 * PROMPT_TOKENS**2 * 64 * 64 * 128

# Assumed: half of what the data sheets promise for dense BF16.
H100_PCIE_S: Final = PREFILL_FLOP / (0.5 * 756.5e12)
H100_NVL_S: Final = PREFILL_FLOP / (0.5 * 835.5e12)

GBPS: Final = 125e6
#: Never full here.
MAX_BATCH: Final = 64
#: Ethernet of which all is used.
OTHERS_GBPS: Final = (10.0, 25.0)
PAIR: Final = ("prefill-site", "decode-site")


class InTurn(SharedLink):
    """One transfer after the other, in the order in which they came, and none before its prefill has ended."""

    def __init__(self, kernel: Kernel, bytes_per_s: float) -> None:
        super().__init__(kernel, bytes_per_s)
        self._waiting: deque[Transfer] = deque()

    def send(self, num_bytes: float, starts_s: float, ends_s: float, on_sent: Callable[[], object]) -> Transfer:
        assert ends_s <= self._kernel.now_s, "what is not final yet cannot take its turn"
        transfer = Transfer(num_bytes, starts_s, ends_s, on_sent)
        self._waiting.append(transfer)
        if len(self._waiting) == 1:
            self._begin()
        return transfer

    def _begin(self) -> None:
        now_s = self._kernel.now_s
        super().send(self._waiting[0].num_bytes, now_s, now_s, self._over)

    def _over(self) -> None:
        done = self._waiting.popleft()
        if self._waiting:
            self._begin()
        done.on_sent()


class Together(SharedLink):
    """Fair, but nobody is told that a transfer is over before all that overlap are."""

    def __init__(self, kernel: Kernel, bytes_per_s: float) -> None:
        super().__init__(kernel, bytes_per_s)
        self._crossed: list[Callable[[], object]] = []

    def send(self, num_bytes: float, starts_s: float, ends_s: float, on_sent: Callable[[], object]) -> Transfer:
        return super().send(num_bytes, starts_s, ends_s, lambda: self._one_over(on_sent))

    def _one_over(self, on_sent: Callable[[], object]) -> None:
        self._crossed.append(on_sent)
        if self.num_transfers == 0:
            crossed, self._crossed = self._crossed, []
            for tell in crossed:
                tell()


#: How a link treats transfers that overlap.
SHARINGS: Final[dict[str, type[SharedLink]]] = {"in turn": InTurn, "fairly": SharedLink, "together": Together}


@dataclass(frozen=True)
class Setting:
    """Of one row. `routes`: "remote", "local", or "prfaas", which is the shipped policy."""

    gbps: float
    sharing: str = "fairly"
    is_layer_wise: bool = True
    routes: str = "remote"


class Seen(NamedTuple):
    """What clients see of one setting. `in_step`: the share of requests whose first token comes within 10 ms of three
    others. `lone_ttft_s`: of a client without company. `remote`: the share that the other site prefilled."""

    ttft_s: float
    request_s: float
    itl_ms: float
    rps: float
    in_step: float
    lone_ttft_s: float
    remote: float


def deployment(setting: Setting) -> SimulatedDeployment:
    """Two sites of one GPU each."""
    source, target = PAIR
    clusters = (Cluster(source, Role.PRFAAS), Cluster(target, Role.PD))
    duties = {source: Duty.PREFILL, target: Duty.BOTH}
    instances = tuple(
        Instance(name, name, duty, f"sim://{name}/engine", f"sim://{name}/node", f"sim://{name}", "simulated")
        for name, duty in duties.items()
    )
    links = complete_links(clusters, [Link(source, target, setting.gbps * GBPS)])
    prefill_s = {source: per_token(H100_PCIE_S / PROMPT_TOKENS), target: per_token(H100_NVL_S / PROMPT_TOKENS)}
    kv_bytes = per_token(BYTES_PER_TOKEN)
    model = ServingModel(
        {source: ClusterModel(prefill_s[source]), target: ClusterModel(prefill_s[target], MAX_BATCH, STEPS.at(4))},
        kv_bytes,
        OUTPUT_TOKENS,
    )
    policy = RoutePolicy(
        offload=setting.routes != "local",
        threshold_tokens=0,
        model=model if setting.routes == "prfaas" else None,
    )
    profiles = {name: EngineProfile(curve, MAX_BATCH, STEPS.at(4), steps=STEPS) for name, curve in prefill_s.items()}
    topology = Topology(clusters, instances, links)
    return SimulatedDeployment(topology, profiles, kv_bytes, policy, FOR_EVER, setting.is_layer_wise)


def per_token(slope: float) -> Curve:
    """So much for each token. All prompts here are equally long."""
    return polynomial(0.0, slope)


def answered(setting: Setting, num_clients: int, num_requests: int) -> list[Life]:
    """The first that end of a closed loop whose clients all begin at once."""
    loop = ClosedLoop(
        deployment(setting), random.Random(1), lambda rng: PROMPT_TOKENS,
        num_clients=num_clients, num_output_tokens=OUTPUT_TOKENS, checks=True,
    )  # fmt: skip
    # Nothing has been sent yet: what is asked of the simulation begins with its first event.
    kernel = loop.simulation.kernel
    loop.simulation.links[PAIR] = SHARINGS[setting.sharing](kernel, setting.gbps * GBPS)
    while len(loop.ended) < num_requests:
        kernel.step()
    return loop.ended[:num_requests]


def seen(setting: Setting) -> Seen:
    """As the study: so many requests from the start."""
    lives = answered(setting, NUM_CLIENTS, NUM_REQUESTS)
    assert {life.outcome for life in lives} == {"ok"}
    began_s = sorted(life.began_s or 0.0 for life in lives)
    ttfts_s = [ttft_s(life) for life in lives]
    requests_s = [(life.ended_s or 0.0) - life.arrival.at_s for life in lives]
    itls_s = [(whole - first) / (OUTPUT_TOKENS - 1) for whole, first in zip(requests_s, ttfts_s, strict=True)]
    return Seen(
        statistics.median(ttfts_s),
        statistics.median(requests_s),
        statistics.median(itls_s) * 1e3,
        len(lives) / max(life.ended_s or 0.0 for life in lives),
        sum(is_in_step(at_s, began_s) for at_s in began_s) / len(began_s),
        ttft_s(answered(setting, 1, 1)[0]),
        sum(life.route == "remote" for life in lives) / len(lives),
    )


def ttft_s(life: Life) -> float:
    """Of one that was answered."""
    return (life.began_s or 0.0) - life.arrival.at_s


def is_in_step(at_s: float, began_s: list[float]) -> bool:
    """Whether as many begin then as there are clients."""
    return sum(abs(at_s - other_s) <= 0.01 for other_s in began_s) >= NUM_CLIENTS


def fitted_gbps(sharing: str) -> float:
    """The rate with which the median time to first token is the published one, KVCache leaving after prefill. If
    transfers share fairly, the median jumps a little from one rate to the next, and is met within 3%."""
    low, high = 0.5, 10.0
    for _ in range(14):
        middle = math.sqrt(low * high)
        lives = answered(Setting(middle, sharing, is_layer_wise=False), NUM_CLIENTS, NUM_REQUESTS)
        is_slow = statistics.median(map(ttft_s, lives)) > PUBLISHED_TTFT_S
        low, high = (middle, high) if is_slow else (low, middle)
    return math.sqrt(low * high)


def row(name: str, setting: Setting) -> str:
    """Of a table."""
    s = seen(setting)
    return (
        f"| {name} | {setting.gbps:.2f} | {s.ttft_s:.2f} | {s.request_s:.2f} | {s.itl_ms:.2f} | {s.rps:.3f} | "
        f"{s.in_step:.0%} | {s.lone_ttft_s:.2f} | {s.remote:.0%} |"
    )


def main() -> None:
    """Two tables: what explains the study, and what else these two GPUs would do."""
    num_bytes = BYTES_PER_TOKEN * PROMPT_TOKENS
    print(f"Prefill of {PROMPT_TOKENS:,} tokens: {PREFILL_FLOP:.3g} FLOP, {H100_PCIE_S:.2f} s on the H100 PCIe, "
          f"{H100_NVL_S:.2f} s on the H100 NVL. KVCache: {num_bytes / 1e9:.3f} GB.")  # fmt: skip
    fitted = {sharing: fitted_gbps(sharing) for sharing in SHARINGS}
    gbps = fitted["together"]
    print(f"Together: {H100_PCIE_S:.2f} s + {NUM_CLIENTS} x {num_bytes / (gbps * GBPS):.2f} s on the link + "
          f"{STEPS.at(NUM_CLIENTS):.2f} s for a step.")  # fmt: skip
    head = "| | Gbit/s | TTFT p50, s | request p50, s | ITL p50, ms | requests/s | in step | alone: TTFT, s | remote |"
    print(f"\n{head}\n|---|---|---|---|---|---|---|---|---|")
    for sharing, rate in fitted.items():
        print(row(f"after prefill, {sharing}", Setting(rate, sharing, is_layer_wise=False)), flush=True)
    print(f"\n{head}\n|---|---|---|---|---|---|---|---|---|")
    print(row("layer by layer, together", Setting(gbps, "together")))
    print(row("after prefill, in turn", Setting(gbps, "in turn", is_layer_wise=False)))
    for rate in (gbps, *OTHERS_GBPS):
        print(row("after prefill, fairly", Setting(rate, is_layer_wise=False)))
        print(row("layer by layer, fairly", Setting(rate)), flush=True)
    print(row("nothing leaves", Setting(gbps, routes="local")))
    for rate in (gbps, *OTHERS_GBPS):
        print(row("policy `prfaas`", Setting(rate, routes="prfaas")), flush=True)


if __name__ == "__main__":
    main()
