"""From lines of requests, as `prfaas simulate` and `prfaas bench e2e` write them, to figures. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prfaas.simulator.results import mean, percentile

Line = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Saturated:
    """While more waits than can be served."""

    rps: float
    offload_fraction: float
    window_s: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Loaded:
    """Below that: seconds to the first token, queues included."""

    num_requests: int
    ttft_s_mean: float
    ttft_s_p90: float
    offload_fraction: float


def saturated(lines: Sequence[Line], warm_s: float) -> Saturated:
    """From `warm_s` to the last request's arrival: then clients go home, and nothing waits any more."""
    until_s = max(line["arrival_s"] for line in lines)
    if until_s <= warm_s:
        raise ValueError(f"the last request came after {until_s:.0f} s, within the warm-up of {warm_s:g} s; send more")
    ended = [line for line in lines if line["outcome"] == "ok" and warm_s < line["end_s"] <= until_s]
    return Saturated(len(ended) / (until_s - warm_s), offload_fraction(ended), (warm_s, until_s))


def loaded(lines: Sequence[Line], warm_up: float) -> Loaded:
    """Of all but the first `warm_up` (a share of them)."""
    some = sorted(lines, key=lambda line: line["arrival_s"])[int(len(lines) * warm_up) :]
    times_s = sorted(line["first_token_s"] - line["arrival_s"] for line in some if line["outcome"] == "ok")
    return Loaded(len(some), mean(times_s) or 0.0, percentile(times_s, 90) or 0.0, offload_fraction(some))


def offload_fraction(lines: Sequence[Line]) -> float:
    """Share that a PrfaaS cluster prefilled."""
    return sum(line["route"] == "remote" for line in lines) / len(lines)


def in_profile_time(lines: Iterable[Line], time_scale: float) -> list[dict[str, Any]]:
    """With times as they are of the profiles, not of the clock."""
    scaled = ("arrival_s", "sent_s", "first_token_s", "end_s")
    return [
        {key: value / time_scale if key in scaled and value is not None else value for key, value in line.items()}
        for line in lines
    ]
