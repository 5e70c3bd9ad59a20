"""What is seen of a run, of processes or simulated: the same figures from the same view of the scheduler. Pure.

All times are seconds in which the deployment is served; of an emulated one `emulation.time_scale` of them pass for a
second of the real one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from prfaas.demo.case_study import NUM_PREFILL


class Member(NamedTuple):
    """An instance of the PD cluster. `num_requests` of the gateway's are there."""

    duty: str
    num_requests: int


@dataclass(frozen=True, slots=True)
class Sample:
    """Of one moment. `threshold_tokens`: the solved one, or the one that it begins with; None if nothing can leave.
    `num_waiting`: prompts in the gateway's queues, by cluster. `num_answers`: requests at instances that decode, those
    that wait for a place too. `loads` of the last minutes, by cluster and duty. `sent_bytes` have crossed the link so
    far, and the scheduler expects it to carry `link_bytes_per_s`."""

    at_s: float
    threshold_tokens: int | None
    num_lengths_seen: int
    num_prefill: int
    num_decode: int
    num_waiting: dict[str, int]
    num_answers: int
    loads: dict[str, float]
    sent_bytes: float
    link_bytes_per_s: float


def sample_of(at_s: float, view: Mapping[str, Any], members: Iterable[Member], sent_bytes: float) -> Sample:
    """`view` as GET /prfaas/scheduler gives it."""
    listed = list(members)
    num_prefill = sum(member.duty == "prefill" for member in listed)
    return Sample(
        at_s=at_s,
        threshold_tokens=view["threshold_tokens"],
        num_lengths_seen=view["num_lengths_seen"],
        num_prefill=num_prefill,
        num_decode=len(listed) - num_prefill,
        num_waiting={name: cluster["num_waiting"] for name, cluster in view["clusters"].items()},
        num_answers=sum(member.num_requests for member in listed if member.duty == "decode"),
        loads={f"{s['cluster']} {s['duty']}": s["load"] for s in view["stages"] if s["load"] is not None},
        sent_bytes=sent_bytes,
        link_bytes_per_s=view["links"][0]["bytes_per_s"],
    )


@dataclass(frozen=True, slots=True)
class Asked:
    """One request. `first_token_s` None: it had none when the run was over. `route` is empty if it is not known;
    `fallback` says why it was computed where it is decoded after all, and is empty if it was not."""

    arrival_s: float
    first_token_s: float | None
    route: str
    outcome: str
    fallback: str

    @property
    def has_failed(self) -> bool:
        """It was refused, or its answer was not whole."""
        return self.outcome in ("error", "unavailable")

    @property
    def ttft_s(self) -> float | None:
        return None if self.first_token_s is None else self.first_token_s - self.arrival_s


@dataclass(frozen=True, slots=True)
class Converted:
    """An instance was given another duty, from `began_s` to `ended_s`."""

    instance: str
    to_duty: str
    phase: str
    began_s: float
    ended_s: float
    why: str


def conversions_of(view: Mapping[str, Any], now_s: float) -> list[Converted]:
    """The first one first."""
    return [
        Converted(c["instance"], c["to_duty"], c["phase"], now_s - c["began_s_ago"],
                  now_s - c["began_s_ago"] + c["took_s"], c["why"])
        for c in reversed(view["conversions"])
    ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Seen:
    """A run. `num_wrong`: parts of KVCache that were not what they must be. `late_s_max`: how much later than meant
    a request was sent."""

    samples: list[Sample]
    asked: list[Asked]
    conversions: list[Converted]
    num_wrong: int = 0
    late_s_max: float = 0.0

    @property
    def num_failed(self) -> int:
        return sum(one.has_failed for one in self.asked)


class Window(NamedTuple):
    """Of the first tokens that came from `from_s` to `to_s`: how many, the mean time to them, and which share of them a
    PrfaaS cluster prefilled; nan where there is none."""

    from_s: float
    to_s: float
    num: int
    ttft_s_mean: float
    offload_fraction: float


def windows(asked: Sequence[Asked], edges_s: Sequence[float]) -> list[Window]:
    """One between each two edges."""
    found = []
    for from_s, to_s in pairwise(edges_s):
        begun = [one for one in asked if one.first_token_s is not None and from_s <= one.first_token_s < to_s]
        times_s = [one.ttft_s for one in begun if one.ttft_s is not None]
        known = [one for one in begun if one.route]
        remote = sum(one.route == "remote" for one in known)
        found.append(
            Window(
                from_s, to_s, len(begun), math.fsum(times_s) / len(times_s) if times_s else math.nan,
                remote / len(known) if known else math.nan,
            )
        )  # fmt: skip
    return found


def crossing_bytes_per_s(samples: Sequence[Sample], every_s: float) -> list[tuple[float, float]]:
    """Means of intervals of at least `every_s`, each with its middle."""
    found: list[tuple[float, float]] = []
    before = samples[0]
    for sample in samples[1:]:
        passed_s = sample.at_s - before.at_s
        if passed_s >= every_s:
            found.append((before.at_s + passed_s / 2, (sample.sent_bytes - before.sent_bytes) / passed_s))
            before = sample
    return found


def between(samples: Iterable[Sample], from_s: float, to_s: float) -> list[Sample]:
    return [sample for sample in samples if from_s <= sample.at_s < to_s]


@dataclass(frozen=True)
class Story:
    """One run. Times are of the real deployment. `load`: a share of what the case study is planned to serve. `mu`: what
    the file that is served says of the lengths, if that is not the case study's, which the load has. `conditions`: the
    link's rates, in Gbps."""

    name: str
    about: str
    load: float
    until_s: float
    num_prefill: int = NUM_PREFILL
    is_convertible: bool = False
    mu: float | None = None
    conditions: tuple[tuple[float, float], ...] = ()
    window_s: float = 30.0


@dataclass(frozen=True)
class Done:
    """Both ends of one story; all times in the seconds of the served deployment."""

    story: Story
    time_scale: float
    planned_threshold_tokens: float
    system: Seen
    simulated: Seen
    wall_s: float

    @property
    def until_s(self) -> float:
        return self.story.until_s * self.time_scale

    @property
    def ends(self) -> tuple[tuple[str, Seen], tuple[str, Seen]]:
        return ("processes", self.system), ("simulated", self.simulated)

    @property
    def change_s(self) -> list[float]:
        return [at_s * self.time_scale for at_s, _ in self.story.conditions]
