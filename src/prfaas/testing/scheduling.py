"""The case study under loads and troubles: what docs/benchmarks/scheduler.md measures and tests repeat in short."""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from prfaas.core.control.router import RoutePolicy
from prfaas.core.planning.scenario import Scenario
from prfaas.core.planning.solution import Solution
from prfaas.core.planning.solve import solve
from prfaas.core.planning.workload import TruncatedLogNormal
from prfaas.core.portable_math import sine_of_turns
from prfaas.core.topology import Duty
from prfaas.scenario.build import build_scenario
from prfaas.sim.arrivals import Arrival, DrawLength, lengths_of, varying
from prfaas.sim.conditions import Condition, EnginesDie, EnginesReturn, LinkBecomes
from prfaas.sim.deployment import SimulatedDeployment, planned_deployment
from prfaas.sim.policies import POLICIES
from prfaas.sim.runs import Run, open_loop

CASE_STUDY: Final = Path(__file__).parents[3] / "examples" / "case-study" / "prfaas.yaml"
PAIR: Final = ("prfaas-west", "pd-east")
WEST: Final = tuple(f"prfaas-west-{index}" for index in range(4))
GBPS: Final = 1e9 / 8
TPOT_S: Final = 0.025
OUTPUT_TOKENS: Final = 1024
#: Thresholds that stand still: around the planned one and far from it. Hindsight picks one of them.
STATIC: Final = (9_000, 12_000, 14_000, 16_000, 17_500, 19_400, 21_000, 23_000, 26_000)

#: `prfaas` is ours; a number is a threshold that stands still; else how others choose.
Choice = int | str


@functools.cache
def planned(name: str = "prfaas") -> tuple[Scenario, Solution]:
    """The case study's file of this policy, and its plan."""
    scenario = build_scenario(CASE_STUDY.with_name(f"{name}.yaml"))
    return scenario, solve(scenario)


def deployment(choice: Choice = "prfaas", *, seed: int = 0, max_ttft_s: float | None = None) -> SimulatedDeployment:
    """With the clusters as `prfaas` has them, unless the choice is a file of the case study."""
    if choice in ("homogeneous", "naive"):
        return planned_deployment(*planned(str(choice)), tpot_slo_s=TPOT_S)
    made = planned_deployment(*planned(), tpot_slo_s=TPOT_S, max_ttft_s=max_ttft_s)
    if isinstance(choice, int):
        return replace(made, policy=RoutePolicy(True, choice))
    if choice == "prfaas":
        return made
    return replace(made, policy=replace(made.policy, choose=POLICIES[choice](seed), binds_late=False))


@dataclass(frozen=True)
class Outcome:
    """Seconds to the first token, and to the last one. `goodput`: the share of all requests answered with every token
    in time."""

    ttft_s_mean: float
    ttft_s_p50: float
    ttft_s_p90: float
    ttft_s_p99: float
    e2e_s_mean: float
    e2e_s_p99: float
    goodput: float
    num_refused: int
    num_failed: int
    offload_fraction: float


def outcome_of(run: Run) -> Outcome:
    """Of all its requests."""
    answered = [life for life in run.ended if life.outcome == "ok"]
    ttfts_s = sorted((life.began_s or 0.0) - life.arrival.at_s for life in answered)
    e2es_s = sorted((life.ended_s or 0.0) - life.arrival.at_s for life in answered)
    good = sum(
        1
        for life in answered
        if (life.ended_s or 0.0) - (life.began_s or 0.0) <= TPOT_S * life.arrival.num_output_tokens
    )
    refused = sum(1 for life in run.ended if life.outcome == "unavailable")
    num = len(run.ended)

    def at(values: Sequence[float], percent: int) -> float:
        return values[min(len(values) - 1, len(values) * percent // 100)]

    return Outcome(
        math.fsum(ttfts_s) / len(ttfts_s), at(ttfts_s, 50), at(ttfts_s, 90), at(ttfts_s, 99),
        math.fsum(e2es_s) / len(e2es_s), at(e2es_s, 99),
        good / num, refused, num - len(answered) - refused,
        sum(1 for life in run.ended if life.route == "remote") / num,
    )  # fmt: skip


def _always(at_s: float) -> DrawLength:
    return lengths_of(planned()[0].workload)


def _log_normal(mu: float) -> DrawLength:
    return lengths_of(TruncatedLogNormal(mu, 1.0, 128, 131_072))


#: The case study's, and with a mean of 0.46 and 1.5 times as much.
_USUAL: Final = _log_normal(9.90)
_SHORTER: Final = _log_normal(9.0)
_LONGER: Final = _log_normal(10.4)


def _as_cached(hit_share: float) -> DrawLength:
    """What is left of the case study's prompts if so much of each is cached."""
    return lambda rng: max(1, round(_USUAL(rng) * (1 - hit_share)))


@dataclass(frozen=True)
class Split:
    """So many instances of the PD cluster prefill, to begin with if it `is_convertible`; None: as planned."""

    num_prefill: int | None = None
    is_convertible: bool = False

    def of(self, made: SimulatedDeployment) -> SimulatedDeployment:
        """That deployment with this split."""
        name = PAIR[1]
        topology = made.topology
        clusters = tuple(
            replace(cluster, is_convertible=self.is_convertible and cluster.name == name)
            for cluster in topology.clusters
        )
        first = {member.name for member in topology.instances_of(name)[: self.num_prefill]}
        instances = topology.instances
        if self.num_prefill is not None:
            instances = tuple(
                replace(member, duty=Duty.PREFILL if member.name in first else Duty.DECODE)
                if member.cluster == name
                else member
                for member in instances
            )
        return replace(made, topology=replace(topology, clusters=clusters, instances=instances))


@dataclass(frozen=True)
class Story:
    """What happens while requests come, by the time in seconds. `load` is a share of the planned rate, at most `most`.
    Nodes say how their links are every `telemetry_s`, and at once that one fell if that is no more than a second."""

    load: Callable[[float], float]
    until_s: float
    most: float
    conditions: tuple[tuple[float, Condition], ...] = ()
    lengths: Callable[[float], DrawLength] = _always
    telemetry_s: float = 1.0
    outputs: Callable[[float], int] = lambda at_s: OUTPUT_TOKENS

    def arrivals(self, seed: int) -> Iterator[Arrival]:
        """Poisson."""
        rate_rps = planned()[1].system_rps
        arrivals = varying(
            random.Random(seed), lambda at_s: self.load(at_s) * rate_rps, self.most * rate_rps, self.lengths,
            self.outputs,
        )  # fmt: skip
        return itertools.takewhile(lambda arrival: arrival.at_s < self.until_s, arrivals)

    def run(
        self,
        seed: int,
        choice: Choice = "prfaas",
        *,
        checks: bool = False,
        split: Split | None = None,
    ) -> Run:
        """To the end of the last request. `split`: other duties than the planned ones."""
        made = deployment(choice, seed=seed)
        made = replace(
            made if split is None else split.of(made),
            telemetry_s=self.telemetry_s,
            tells_falls=self.telemetry_s <= 1.0,
        )
        return open_loop(made, self.arrivals(seed), conditions=self.conditions, checks=checks)

    def outcome(self, seed: int, choice: Choice = "prfaas", split: Split | None = None) -> Outcome:
        return outcome_of(self.run(seed, choice, split=split))


def steady(load: float, until_s: float) -> Story:
    """The same load all the time."""
    return Story(lambda at_s: load, until_s, load)


def link_falls(to_gbps: float, *, telemetry_s: float = 1.0) -> Story:
    """From 100 Gbps, for five minutes, and back; two seconds after nodes have spoken."""
    falls, returns = LinkBecomes(*PAIR, to_gbps * GBPS), LinkBecomes(*PAIR, 100 * GBPS)
    return Story(lambda at_s: 0.6, 900.0, 0.6, ((302.0, falls), (602.0, returns)), telemetry_s=telemetry_s)


#: By what happens. Loads are such that the deployment as a whole can serve what comes, but for `link to 2 Gbps`.
STORIES: Final[dict[str, Story]] = {
    "steady at 0.9": steady(0.9, 900.0),
    "link to 10 Gbps": link_falls(10),
    "link to 2 Gbps": link_falls(2),
    "link to 2 Gbps, told every 5 s": link_falls(2, telemetry_s=5.0),
    "five times as many for 30 s": Story(lambda at_s: 2.5 if 300 <= at_s < 330 else 0.5, 600.0, 2.5),
    "shorter, then longer prompts": Story(
        lambda at_s: 0.65, 900.0, 0.65,
        lengths=lambda at_s: _SHORTER if at_s < 300 else _LONGER if at_s < 600 else _USUAL,
    ),
    "70% of each prompt cached": Story(
        lambda at_s: 0.8, 900.0, 0.8, lengths=lambda at_s: _USUAL if at_s < 450 else _as_cached(0.7)
    ),
    "PrfaaS cluster lost and back": Story(
        lambda at_s: 0.45, 900.0, 0.45, ((300.0, EnginesDie(WEST)), (480.0, EnginesReturn(WEST)))
    ),
    "link cut and back": Story(
        lambda at_s: 0.45, 900.0, 0.45,
        ((300.0, LinkBecomes(*PAIR, 0.0)), (480.0, LinkBecomes(*PAIR, 100 * GBPS))),
    ),
    "a day in half an hour": Story(
        lambda at_s: 0.55 + 0.4 * sine_of_turns(at_s / 1_800.0), 1_800.0, 0.95
    ),
}  # fmt: skip


#: What no threshold can mend: other requests come than were planned for. From 300 s on, for 25 minutes.
SHIFTS: Final[dict[str, Story]] = {
    "answers twice as long": Story(
        lambda at_s: 0.6, 1_800.0, 0.6, outputs=lambda at_s: OUTPUT_TOKENS if at_s < 300 else 2 * OUTPUT_TOKENS
    ),
    "many more, with shorter prompts": Story(
        lambda at_s: 0.8 if at_s < 300 else 1.35, 1_800.0, 1.35, lengths=lambda at_s: _USUAL if at_s < 300 else _SHORTER
    ),
    "answers a third as long, and more": Story(
        lambda at_s: 0.8 if at_s < 300 else 1.05, 1_800.0, 1.05,
        outputs=lambda at_s: OUTPUT_TOKENS if at_s < 300 else OUTPUT_TOKENS // 3,
    ),
}  # fmt: skip
