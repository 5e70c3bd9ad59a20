"""The routing threshold that serves most: Eq. 7 of arXiv 2604.15039, over the lengths that come, from measured times.

Prompts longer than t are prefilled in PrfaaS clusters, the others in PD clusters, and t is where both are equally full:
Θ_prfaas / p = Θ_pd-p / (1 - p). Expected times take the place of the times of expected lengths, which differ as
T_prefill is no straight line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from prfaas.core.control.lengths import LengthBin
from prfaas.core.record import record


@record
class Stage:
    """The instances of one cluster that prefill: how many, seconds of one for l tokens, and what all of its links carry
    together, inf if nothing of it crosses a link."""

    cluster: str
    num_instances: int
    prefill_s: Callable[[float], float]
    bytes_per_s: float = math.inf


@record
class Share:
    """Of all requests, what one cluster prefills; and how many it could, per second, of such as it gets."""

    share: float
    max_rps: float


@record
class Split:
    """`threshold_tokens` is inf where nothing can leave. `shares` by cluster; a cluster that gets none has none."""

    threshold_tokens: float
    offload_fraction: float
    max_rps: float
    shares: Mapping[str, Share]


class _Side:
    """Stages that share what one side of the threshold gets, each as it can."""

    def __init__(self, stages: Sequence[Stage], kv_bytes: Callable[[float], float]) -> None:
        self.stages = [stage for stage in stages if stage.num_instances > 0 and stage.bytes_per_s > 0]
        self._kv_bytes = kv_bytes
        self.share = 0.0
        self._prefill_s = [0.0] * len(self.stages)
        self._bytes = 0.0

    def add(self, share: float, mean_tokens: float) -> None:
        self.share += share
        self._bytes += share * self._kv_bytes(mean_tokens)
        for index, stage in enumerate(self.stages):
            self._prefill_s[index] += share * stage.prefill_s(mean_tokens)

    def rates_rps(self) -> list[float]:
        """Of each stage, for requests such as these. Θ_prfaas (Eq. 3) or Θ_pd-p (Eq. 4)."""
        share = max(self.share, 1e-300)
        return [
            min(
                stage.num_instances * share / max(prefill_s, 1e-300),
                stage.bytes_per_s * share / max(self._bytes, 1e-300),
            )
            for stage, prefill_s in zip(self.stages, self._prefill_s, strict=True)
        ]

    @property
    def fullness(self) -> float:
        """Seconds of all its stages for one request of the whole system."""
        if self.share <= 0:
            return 0.0
        rate_rps = sum(self.rates_rps())
        return self.share / rate_rps if rate_rps > 0 else math.inf


def solve(
    bins: Sequence[LengthBin], prfaas: Sequence[Stage], pd: Sequence[Stage], kv_bytes: Callable[[float], float]
) -> Split:
    """`bins` are longest first, and not empty. Bins leave one by one, the last of them in part."""
    away = _Side(prfaas, kv_bytes)
    if not away.stages:
        return _split(math.inf, away, _of(bins, pd, kv_bytes))
    rest = _Side(pd, kv_bytes)
    if not rest.stages:
        return _split(0.0, _of(bins, prfaas, kv_bytes), rest)
    at_home_without: list[_Side] = []
    for entry in reversed(bins):
        rest.add(entry.share, entry.mean_tokens)
        at_home_without.append(_copy(rest))
    at_home_without.reverse()  # [i]: all bins from the i-th on
    for index, entry in enumerate(bins):
        at_home = at_home_without[index + 1] if index + 1 < len(bins) else _Side(pd, kv_bytes)
        more = _copy(away)
        more.add(entry.share, entry.mean_tokens)
        if more.fullness >= at_home.fullness:
            return _in_part(entry, away, at_home)
        away = more
    return _split(0.0, away, _Side(pd, kv_bytes))


def _in_part(entry: LengthBin, away: _Side, at_home: _Side) -> Split:
    """So much of this bin leaves that both sides are equally full."""
    low, high = 0.0, 1.0
    for _ in range(30):
        part = (low + high) / 2
        more, rest = _copy(away), _copy(at_home)
        more.add(part * entry.share, entry.mean_tokens)
        rest.add((1 - part) * entry.share, entry.mean_tokens)
        if more.fullness < rest.fullness:
            low = part
        else:
            high = part
    threshold = entry.high_tokens - low * (entry.high_tokens - entry.low_tokens)
    return _split(threshold, more, rest)


def _split(threshold: float, away: _Side, at_home: _Side) -> Split:
    shares: dict[str, Share] = {}
    for side in (away, at_home):
        rates_rps = side.rates_rps()
        total = sum(rates_rps)
        for stage, rate_rps in zip(side.stages, rates_rps, strict=True):
            if side.share > 0 and total > 0:
                shares[stage.cluster] = Share(side.share * rate_rps / total, rate_rps)
    fullness = max(away.fullness, at_home.fullness)
    return Split(threshold, away.share, 1 / fullness if fullness > 0 else math.inf, shares)


def _of(bins: Sequence[LengthBin], stages: Sequence[Stage], kv_bytes: Callable[[float], float]) -> _Side:
    side = _Side(stages, kv_bytes)
    for entry in bins:
        side.add(entry.share, entry.mean_tokens)
    return side


def _copy(side: _Side) -> _Side:
    twin = object.__new__(_Side)
    twin.stages, twin._kv_bytes = side.stages, side._kv_bytes
    twin.share, twin._bytes, twin._prefill_s = side.share, side._bytes, list(side._prefill_s)
    return twin
