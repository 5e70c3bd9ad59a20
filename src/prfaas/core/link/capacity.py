"""What a link can carry: windows over the counters of its lanes, and the estimate that they teach. Pure.

Laws of this file:
- *Limited* is an interval at whose end some lane that moves had bytes that TCP has not sent yet: the link, not the
  application, was slow. An interval in which a lane came or went, or its counters went back, is never limited.
- *Saturated* is a window of limited intervals in which one lane at least had data under way for `BUSY_SHARE` of the
  time. (Samples alone could catch a periodic sender always at work.)
- **Known.** The estimate is None until a limited half second, or a burst, has shown what the link gives.
- **Up.** What was delivered was possible: half a second that delivered more than the estimate raises it. So does the
  median of the last bursts; a burst's rate is the kernel's delivery rate, summed over the lanes that were caught with
  unsent bytes at the same moment. Rates of other lanes do not add up: they may have had the link one after another.
- **Steady.** After a saturated second the estimate *is* the goodput of that second's better half, up or down (BBR sends
  next to nothing for 0.2 s now and then, to see the minimal round trip), unless goodput still grows (slow start says
  nothing about the link), nothing at all was delivered (a stall is not a capacity), or the receiver's window was the
  brake (then it only rises).
- **Paced.** While the lanes deliver what they are held to, or were in the last second (they need a while to use more
  when they may), that rate is the brake and not the link: the estimate only rises, until `PACED_MEMORY_S` of it. The
  pacer has felt for the link's limit by then, and the best half second of that time is the estimate.
- **Kept.** Nothing else lowers it: it does not decay while the link idles or the application is the limit.

Bytes are counted by `bytes_acked`, which is exact over half a second; a filled hole may credit one round trip too much.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

#: Goodput, utilization and loss are of this long. Five samples at 100 ms: late acknowledgements of one round trip
#: weigh little, and a step of the link is seen well within two seconds.
RATE_WINDOW_S: Final = 0.5
#: The estimate falls only after this long: a burst that a queue or a loss held up for 0.5 s is no slower link.
STEADY_WINDOW_S: Final = 1.0
#: Timers are late now and then; a window may be this much shorter than its name.
WINDOW_SLACK: Final = 0.95
#: BBR's criterion of a full pipe: goodput that no longer grows by a quarter.
STILL_GROWING: Final = 1.25
#: The kernel counts busy time in jiffies, 4 ms at worst: 4% of a sample.
BUSY_SHARE: Final = 0.9
#: Of the busy time. Beyond half of it, the receiver is the narrower place.
RECEIVER_SHARE: Final = 0.5
#: The rate holds the lanes back if they deliver this share of it; headers and late acknowledgements are the rest.
PACED_SHARE: Final = 0.9
#: The pacer touches the link's limit about every second, every two after it has given way to a neighbour.
PACED_MEMORY_S: Final = 4.0
#: Bursts remembered, and for how long: a median of five forgives two wrong ones. Minutes later they prove nothing.
NUM_BURSTS: Final = 5
BURST_MEMORY_S: Final = 10.0
#: Fewer do not raise a known estimate.
MIN_BURSTS: Final = 3


@dataclass(frozen=True, slots=True)
class Interval:
    """Between two samples, all lanes together. `busy_s` and `receiver_limited_s` are the busiest lane's; the pacer let
    `paced_bytes_per_s` through."""

    seconds: float
    acked: int = 0
    sent: int = 0
    retrans: int = 0
    limited: bool = False
    waiting: bool = False
    busy_s: float = 0.0
    receiver_limited_s: float = 0.0
    paced_bytes_per_s: float = math.inf


class Window:
    """The newest intervals that together last `seconds`, or all if there are fewer."""

    def __init__(self, intervals: Iterable[Interval], seconds: float) -> None:
        self.parts: list[Interval] = []
        self.seconds = 0.0
        for part in intervals:
            if self.seconds >= seconds * WINDOW_SLACK:
                break
            self.parts.append(part)
            self.seconds += part.seconds
        self.whole = self.seconds >= seconds * WINDOW_SLACK
        self.acked = sum(part.acked for part in self.parts)
        self.rate = self.acked / self.seconds if self.seconds > 0 else 0.0
        self.limited = self.whole and all(part.limited for part in self.parts)

    @property
    def saturated(self) -> bool:
        """Limited throughout, and never idle in between. Kernels before 4.10 do not tell busy time."""
        busy_s = sum(part.busy_s for part in self.parts)
        return self.limited and (busy_s == 0 or busy_s >= self.seconds * BUSY_SHARE)

    @property
    def receiver_limited(self) -> bool:
        waited_s = sum(part.receiver_limited_s for part in self.parts)
        return waited_s > RECEIVER_SHARE * sum(part.busy_s for part in self.parts)

    @property
    def lowest_paced_rate(self) -> float:
        """What the pacer let through when it let through least."""
        return min((part.paced_bytes_per_s for part in self.parts), default=math.inf)

    @property
    def stalled(self) -> bool:
        return self.whole and not self.acked and all(part.waiting for part in self.parts)

    @property
    def retransmit_ratio(self) -> float:
        sent, retrans = sum(part.sent for part in self.parts), sum(part.retrans for part in self.parts)
        return min(1.0, retrans / sent) if sent > 0 else 0.0

    @property
    def lossy_intervals(self) -> float:
        sending = [part for part in self.parts if part.sent > 0]
        return sum(part.retrans > 0 for part in sending) / len(sending) if sending else 0.0


class Capacity:
    """The estimate of one link, in bytes per second. `value` is None until known."""

    def __init__(self) -> None:
        self.value: float | None = None
        self._bursts: deque[tuple[float, float]] = deque(maxlen=NUM_BURSTS)
        #: When, and the half second's rate, since the lanes have been limited and paced without a break.
        self._limited: deque[tuple[float, float]] = deque()

    def learn(self, recent: Window, steady: Window, burst_rate: float, now_s: float) -> None:
        """`recent` is the newest half of `steady`; `burst_rate` is 0 if no lane was caught sending."""
        before_s = steady.seconds - recent.seconds
        before_rate = (steady.acked - recent.acked) / before_s if before_s > 0 else 0.0
        grows = recent.rate > STILL_GROWING * before_rate and before_s > 0
        self._remember(recent, now_s)
        if steady.saturated and steady.acked and not grows and not steady.receiver_limited:
            paced = recent.rate >= PACED_SHARE * steady.lowest_paced_rate
            self._settle(max(recent.rate, before_rate), paced=paced, now_s=now_s)
        elif recent.whole and (recent.limited or self.value is not None):
            self._raise_to(recent.rate)
        if recent.limited:
            self._bursts.clear()
        elif burst_rate > 0:
            self._bursts.append((now_s, burst_rate))
            rates = sorted(rate for at_s, rate in self._bursts if now_s - at_s <= BURST_MEMORY_S)
            if self.value is None or len(rates) >= MIN_BURSTS:
                self._raise_to(rates[(len(rates) - 1) // 2])

    def _remember(self, recent: Window, now_s: float) -> None:
        if not recent.limited:
            self._limited.clear()
            return
        self._limited.append((now_s, recent.rate))
        while len(self._limited) > 1 and now_s - self._limited[1][0] >= PACED_MEMORY_S:
            self._limited.popleft()

    def _settle(self, rate: float, *, paced: bool, now_s: float) -> None:
        if not paced:
            self.value = rate
            self._limited.clear()  # this is known now, whatever was before
        elif now_s - self._limited[0][0] >= PACED_MEMORY_S:
            self.value = max(rate for _, rate in self._limited)
        else:
            self._raise_to(rate)

    def _raise_to(self, rate: float) -> None:
        if rate > (self.value or 0.0):
            self.value = rate
