"""The routing threshold that serves most: Eq. 7 of arXiv 2604.15039, over the lengths that come, from measured times.

Prompts longer than t are prefilled in PrfaaS clusters, the others in PD clusters, and t is where both are equally full:
Θ_prfaas / p = Θ_pd-p / (1 - p). Expected times take the place of the times of expected lengths, which differ as
T_prefill is no straight line.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Final

from prfaas.core.control.lengths import LengthBin
from prfaas.core.record import record

#: In place of nothing, where something is divided by it.
_TINY: Final = 1e-300
#: To a millionth of a bin.
_HALVINGS: Final = 20


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
    """What one side of the threshold gets, and its stages, each of which gets as much as it can do. `prefill_s` is by
    stage: of all that it would take to prefill it there."""

    __slots__ = ("num_bytes", "prefill_s", "share", "stages")

    def __init__(self, stages: Sequence[Stage], share: float, num_bytes: float, prefill_s: Sequence[float]) -> None:
        self.stages, self.share, self.num_bytes, self.prefill_s = stages, share, num_bytes, prefill_s

    def rates_rps(self) -> list[float]:
        """Of each stage, for requests such as these. Θ_prfaas (Eq. 3) or Θ_pd-p (Eq. 4)."""
        share = self.share if self.share > _TINY else _TINY
        num_bytes = self.num_bytes if self.num_bytes > _TINY else _TINY
        found = []
        for stage, prefill_s in zip(self.stages, self.prefill_s, strict=True):
            rate_rps = stage.num_instances * share / (prefill_s if prefill_s > _TINY else _TINY)
            link_rps = stage.bytes_per_s * share / num_bytes
            found.append(rate_rps if rate_rps <= link_rps else link_rps)
        return found

    @property
    def fullness(self) -> float:
        """Seconds of all its stages for one request of the whole system."""
        if self.share <= 0:
            return 0.0
        rate_rps = math.fsum(self.rates_rps())
        return self.share / rate_rps if rate_rps > 0 else math.inf


class _Sums:
    """Over the first bins of some that are in the order in which one side gets them."""

    def __init__(self, bins: Sequence[LengthBin], stages: Sequence[Stage], kv_bytes: Callable[[float], float]) -> None:
        self.stages = [stage for stage in stages if stage.num_instances > 0 and stage.bytes_per_s > 0]
        self._share = _running([entry.share for entry in bins])
        # What crosses a link without a limit takes no time, however much it is.
        is_limited = any(stage.bytes_per_s < math.inf for stage in self.stages)
        num_bytes = [entry.share * kv_bytes(entry.mean_tokens) for entry in bins] if is_limited else [0.0] * len(bins)
        self._bytes = _running(num_bytes)
        self._prefill_s = [
            _running([entry.share * stage.prefill_s(entry.mean_tokens) for entry in bins]) for stage in self.stages
        ]

    def side(self, num_bins: int, part: float = 0.0) -> _Side:
        """With so many bins, and a part of the next one."""
        prefill_s = [_up_to(sums, num_bins, part) for sums in self._prefill_s]
        return _Side(self.stages, _up_to(self._share, num_bins, part), _up_to(self._bytes, num_bins, part), prefill_s)


def _up_to(sums: Sequence[float], num_bins: int, part: float) -> float:
    return sums[num_bins] + part * (sums[num_bins + 1] - sums[num_bins]) if part else sums[num_bins]


def _running(values: Iterable[float]) -> list[float]:
    return list(accumulate(values, initial=0.0))


def solve(
    bins: Sequence[LengthBin], prfaas: Sequence[Stage], pd: Sequence[Stage], kv_bytes: Callable[[float], float]
) -> Split:
    """`bins` are longest first, and not empty. Bins leave one by one, the last of them in part."""
    num = len(bins)
    away, at_home = _Sums(bins, prfaas, kv_bytes), _Sums(bins[::-1], pd, kv_bytes)
    if not away.stages:
        return _split(math.inf, away.side(0), at_home.side(num))
    if not at_home.stages:
        return _split(0.0, away.side(num), at_home.side(0))

    def is_full(num_away: int) -> bool:
        """With each bin that leaves, the one side becomes fuller and the other emptier."""
        return away.side(num_away).fullness >= at_home.side(num - num_away).fullness

    index = bisect_left(range(1, num + 1), True, key=is_full)
    if index == num:
        return _split(0.0, away.side(num), at_home.side(0))
    return _in_part(bins[index], partial(away.side, index), partial(at_home.side, num - index - 1))


def _in_part(entry: LengthBin, away: Callable[[float], _Side], at_home: Callable[[float], _Side]) -> Split:
    """So much of this bin leaves that both sides are equally full."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        part = (low + high) / 2
        if away(part).fullness < at_home(1 - part).fullness:
            low = part
        else:
            high = part
    threshold = entry.high_tokens - low * (entry.high_tokens - entry.low_tokens)
    return _split(threshold, away(high), at_home(1 - high))


def _split(threshold: float, away: _Side, at_home: _Side) -> Split:
    shares: dict[str, Share] = {}
    for side in (away, at_home):
        rates_rps = side.rates_rps()
        total = math.fsum(rates_rps)
        for stage, rate_rps in zip(side.stages, rates_rps, strict=True):
            if side.share > 0 and total > 0:
                shares[stage.cluster] = Share(side.share * rate_rps / total, rate_rps)
    fullness = max(away.fullness, at_home.fullness)
    return Split(threshold, away.share, 1 / fullness if fullness > 0 else math.inf, shares)
