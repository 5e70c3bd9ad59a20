"""How a link is doing, from the kernel's counters of its lanes. Pure: samples and time are arguments.

Laws of this file:
- Only differences of counters count, lane by lane; a lane seen for the first time, or whose counters went back, starts
  anew. What a lane moved before its first and after its last sample is not counted.
- Capacity follows the laws of `link_capacity`, the verdict those of `link_verdict`.
- Round trips are the kernel's own. The link's is the median of the lanes that moved since the last look; its minimum is
  the lowest of all lanes of the last five minutes, those that ended included.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from prfaas.core.link.capacity import RATE_WINDOW_S, STEADY_WINDOW_S, Capacity, Interval, Window
from prfaas.core.link.verdict import LinkVerdict, Signs, VerdictKeeper

#: No sample for this long: what happened between is unknown, and windows begin anew.
MAX_GAP_S: Final = 1.0
#: As long as the kernel's own minimum (net.ipv4.tcp_min_rtt_wlen), and beyond the life of a lane.
MIN_RTT_MEMORY_S: Final = 300.0
#: The newest rate is the greater of these windows': one look may catch few acknowledgements, two hide a fast rise. They
#: hold so many round trips at least, since acknowledgements come in bursts of a round trip each.
NEWEST_S: Final = (0.1, 0.2)
NEWEST_ROUND_TRIPS: Final = (3, 5)


def newest_windows_s(min_rtt_s: float) -> list[float]:
    """How long the windows of the newest rate are on a link with this round trip, the shorter one first."""
    wanted = zip(NEWEST_S, NEWEST_ROUND_TRIPS, strict=True)
    return [min(RATE_WINDOW_S, max(seconds, trips * min_rtt_s)) for seconds, trips in wanted]


@dataclass(frozen=True, slots=True)
class LaneSample:
    """One lane's TCP_INFO at one moment. Counters grow from the connection's start; 0 stands for unknown."""

    rtt_s: float
    min_rtt_s: float
    bytes_sent: int
    bytes_retrans: int
    bytes_acked: int
    delivery_rate_bytes_per_s: int
    delivery_is_app_limited: bool
    unsent_bytes: int
    busy_s: float = 0.0
    receiver_limited_s: float = 0.0
    congestion: str = ""


@dataclass(frozen=True, slots=True)
class LinkState:
    """One link at `at_s`. Rates are of the last half second, the newest of the last look or two, or the last
    three to five round trips if these take longer; None is not known.
    `limited_s`: for how long the application has had more to send than went out. `rtt_s` is the median of the lanes."""

    at_s: float = 0.0
    capacity_bytes_per_s: float | None = None
    delivered_bytes_per_s: float = 0.0
    newest_bytes_per_s: float = 0.0
    limited_s: float = 0.0
    utilization: float | None = None
    rtt_s: float | None = None
    min_rtt_s: float | None = None
    rtt_ratio: float | None = None
    retransmit_ratio: float = 0.0
    unsent_bytes: int = 0
    verdict: LinkVerdict = LinkVerdict.CLEAR
    verdict_since_s: float = 0.0


class LinkEstimator:
    """All lanes of one link. `observe` is called about every 100 ms; lanes are named by connection."""

    def __init__(self) -> None:
        self.state = LinkState()
        self._capacity = Capacity()
        self._keeper = VerdictKeeper()
        self._intervals: deque[Interval] = deque()
        self._lanes: dict[int, LaneSample] = {}
        self._moved_s: dict[int, float] = {}
        self._at_s: float | None = None
        self._min_rtt_s: float | None = None
        self._min_rtt_at_s = 0.0

    def observe(
        self,
        samples: Mapping[int, LaneSample],
        now_s: float,
        paced_bytes_per_s: float | None = None,
        *,
        is_late: bool = False,
    ) -> LinkState:
        """Take a sample of every lane that is up; a `now_s` that is not later than the last changes nothing.
        `paced_bytes_per_s` is what all lanes together were held to since the last; None: to nothing. `is_late`: what
        was handed over does not arrive in time (see `arrivals`)."""
        seconds = None if self._at_s is None else now_s - self._at_s
        if seconds is not None and seconds <= 0:
            return self.state
        if seconds is None or seconds > MAX_GAP_S:
            self._intervals.clear()
            self._keeper.forget_causes()
        else:
            paced = math.inf if paced_bytes_per_s is None else paced_bytes_per_s
            self._add(replace(self._interval(samples, seconds, now_s), paced_bytes_per_s=paced))
        burst_rate = self._burst_rate(samples) if seconds is not None else 0.0
        self._lanes, self._at_s = dict(samples), now_s
        recent, steady = Window(self._newest(), RATE_WINDOW_S), Window(self._newest(), STEADY_WINDOW_S)
        self._capacity.learn(recent, steady, burst_rate, now_s)
        self.state = self._look(samples, recent, steady, now_s, is_late=is_late)
        return self.state

    def _newest(self) -> Iterable[Interval]:
        return reversed(self._intervals)

    def _add(self, interval: Interval) -> None:
        self._intervals.append(interval)
        spare_s = sum(part.seconds for part in self._intervals) - STEADY_WINDOW_S
        while spare_s > self._intervals[0].seconds:
            spare_s -= self._intervals.popleft().seconds

    def _interval(self, samples: Mapping[int, LaneSample], seconds: float, now_s: float) -> Interval:
        kept = {lane: (self._lanes[lane], after) for lane, after in samples.items() if self._goes_on(lane, after)}
        undisturbed = len(kept) == len(samples) == len(self._lanes)
        moved = {lane: now_s for lane, (before, after) in kept.items() if after.bytes_acked > before.bytes_acked}
        self._moved_s = {lane: at_s for lane, at_s in (self._moved_s | moved).items() if lane in kept}
        held_up = (
            after.unsent_bytes > 0 and now_s - self._moved_s.get(lane, -RATE_WINDOW_S) < RATE_WINDOW_S
            for lane, (_, after) in kept.items()
        )
        pairs = kept.values()
        return Interval(
            seconds,
            acked=sum(after.bytes_acked - before.bytes_acked for before, after in pairs),
            sent=sum(after.bytes_sent - before.bytes_sent for before, after in pairs),
            retrans=sum(after.bytes_retrans - before.bytes_retrans for before, after in pairs),
            limited=undisturbed and any(held_up),
            waiting=any(sample.unsent_bytes > 0 for sample in samples.values()),
            busy_s=max((after.busy_s - before.busy_s for before, after in pairs), default=0.0),
            receiver_limited_s=max(
                (after.receiver_limited_s - before.receiver_limited_s for before, after in pairs), default=0.0
            ),
        )

    def _goes_on(self, lane: int, after: LaneSample) -> bool:
        before = self._lanes.get(lane)
        return before is not None and (
            after.bytes_acked >= before.bytes_acked
            and after.bytes_sent >= before.bytes_sent
            and after.bytes_retrans >= before.bytes_retrans
        )

    def _burst_rate(self, samples: Mapping[int, LaneSample]) -> float:
        return float(
            sum(
                after.delivery_rate_bytes_per_s
                for lane, after in samples.items()
                if after.unsent_bytes > 0
                and not after.delivery_is_app_limited
                and self._goes_on(lane, after)
                and after.bytes_acked > self._lanes[lane].bytes_acked
            )
        )

    def _look(
        self, samples: Mapping[int, LaneSample], recent: Window, steady: Window, now_s: float, *, is_late: bool
    ) -> LinkState:
        rtt_s, min_rtt_s = self._round_trips(samples, now_s)
        capacity = self._capacity.value
        rtt_ratio = max(1.0, rtt_s / min_rtt_s) if rtt_s and min_rtt_s else None
        signs = Signs(
            delivered_bytes_per_s=recent.rate,
            unsent_bytes=sum(sample.unsent_bytes for sample in samples.values()),
            utilization=min(1.0, recent.rate / capacity) if capacity else None,
            rtt_ratio=rtt_ratio,
            queue_s=rtt_s - min_rtt_s if rtt_s and min_rtt_s else 0.0,
            retransmit_ratio=recent.retransmit_ratio,
            lossy_intervals=recent.lossy_intervals,
            stalled=steady.stalled,
            late=is_late,
        )
        self._keeper.update(signs, now_s)
        return LinkState(
            now_s,
            capacity,
            signs.delivered_bytes_per_s,
            self._newest_rate(min_rtt_s or 0.0),
            self._limited_s(),
            signs.utilization,
            rtt_s,
            min_rtt_s,
            rtt_ratio,
            signs.retransmit_ratio,
            signs.unsent_bytes,
            self._keeper.verdict,
            self._keeper.since_s,
        )

    def _newest_rate(self, min_rtt_s: float) -> float:
        return max(Window(self._newest(), seconds).rate for seconds in newest_windows_s(min_rtt_s))

    def _limited_s(self) -> float:
        limited = itertools.takewhile(lambda part: part.limited, self._newest())
        return sum(part.seconds for part in limited)

    def _round_trips(self, samples: Mapping[int, LaneSample], now_s: float) -> tuple[float | None, float | None]:
        moving = [sample.rtt_s for lane, sample in samples.items() if self._moved_s.get(lane) == now_s]
        rtts = sorted(rtt_s for rtt_s in moving or [sample.rtt_s for sample in samples.values()] if rtt_s > 0)
        lowest = min((sample.min_rtt_s for sample in samples.values() if sample.min_rtt_s > 0), default=None)
        expired = now_s - self._min_rtt_at_s > MIN_RTT_MEMORY_S
        if lowest is not None and (self._min_rtt_s is None or lowest <= self._min_rtt_s or expired):
            self._min_rtt_s, self._min_rtt_at_s = lowest, now_s
        return rtts[len(rtts) // 2] if rtts else None, self._min_rtt_s
