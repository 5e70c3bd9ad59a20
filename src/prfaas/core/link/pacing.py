"""How fast the lanes of one link may send together, found from what the link delivers. Pure.

TCP finds a link's rate by filling its queue. Many lanes do that at once: measured with eight BBR lanes on 2 Gbit/s, a
tenth of all bytes was sent twice and the round trip doubled. A common rate at the link's own leaves the queue empty,
and whatever else uses the link in peace.

Laws of this file:
- *Pushed back* is a tick whose round trip is more than `QUEUE_SHARE` (and `QUEUE_S`) over its base, or that resent more
  than `LOSS_SHARE` over the usual. The link is full then, and what it delivers is its *knee*. The rate falls below the
  knee, by a quarter of what was used at most, further for every `DEEPER_S` that does not shorten the queue, until the
  queue is gone or the application pauses. It returns to just under the knee, or under the capacity if that is more.
  Until it happens first there is no rate.
- Without that, and while the rate is what holds the lanes back, it grows: slowly first, since the link is most likely
  full, and faster the longer nothing pushes back, since then it has become wider; to `ROOM` times what is delivered at
  most. Where losses hold the lanes back and not the rate, it grows to there too and stays out of their way.
- A queue that does not shrink at all in `UNTOUCHED_S`, or that stays for `PATIENCE_S` and no longer falls, although we
  send less, is not ours, nor is a loss: the link got longer, or others fill it. The lowest round trip and loss of that
  time become the usual ones, and for `FREE_S` there is no rate: TCP takes its share as the neighbours do. Then the rate
  is low for `PROBE_S`, to see whether the queue was ours. A base that turns out too high falls at once, to every lower
  round trip.
- Links with round trips below `MIN_RTT_S` are not paced: within a building the timers cost more than the queue.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from prfaas.core.link.estimate import MAX_GAP_S, LinkState, newest_windows_s

#: A rack's switch is at 0.1 ms, two halls of a site below one.
MIN_RTT_S: Final = 1e-3
#: Leaves the median under full load well below 1.2 times the base.
QUEUE_SHARE: Final = 0.15
#: The kernel's smoothed round trip moves by this much without a queue (delayed acknowledgements, busy receivers).
QUEUE_S: Final = 2e-3
#: Resent bytes over sent ones. Random loss of long links is below 0.1%.
LOSS_SHARE: Final = 0.01
#: The queue shall be gone after this long, so the rate is below what goes through by queue / DRAIN_S, within bounds.
DRAIN_S: Final = 0.3
DRAIN_BOUNDS: Final = (0.05, 0.25)
#: What goes through is known to a few percent: a queue that has not become shorter after so long wants a lower rate.
DEEPER_S: Final = 0.3
DEEPER: Final = 0.92
#: Sending this much more than goes through: the link is slower than it was a moment ago.
SLOWER: Final = 1.1
#: Of the knee, once it has drained.
REST: Final = 0.99
#: Of the capacity, which is of a longer time: the knee is too low when a lane happened to be held up by something else
#: (BBR looks at the minimal round trip every ten seconds, and sends next to nothing for it).
REST_OF_CAPACITY: Final = 0.94
PATIENCE_S: Final = 1.5
#: The rate falls no lower than this share of what was used of it. Against a neighbour who takes whatever is free,
#: falling further would be to leave it everything; on a link that got slower, TCP slows down until the rate is found
#: anew.
YIELD: Final = 0.75
#: After a time without a rate, the queue is given this long to show whether it was ours after all.
PROBE_S: Final = 0.4
#: A round trip that is still this share of the first one by then has not been shortened by our sending less.
UNTOUCHED: Final = 0.93
UNTOUCHED_S: Final = 0.8
#: The lowest round trip of a time of being pushed back must be this old before it is taken for the usual one.
FALLING_S: Final = 0.5
#: Factors of successive ticks of 0.1 s: 4% after half a second, 4.8 times the rate after 1.1 s without pushing back.
GROWTH: Final = (1.005, 1.005, 1.01, 1.02, 1.04, 1.08, 1.15, 1.3, 1.4)
#: The rate holds the lanes back if they deliver this share of it; otherwise congestion control or the application does.
BINDING_SHARE: Final = 0.85
#: Lanes that losses hold back are not all held back at once: their peaks need room, or equal shares would cut them off.
ROOM: Final = 2.0
#: The rate grows in steps, so that it reaches `ROOM` only about.
UNUSED_SLACK: Final = 1.4
#: A burst that has just begun shows neither the rate of the link nor its queue: nothing comes in its first round trip,
#: and the newest rate is that of several. A second is as long as the estimator remembers.
LOADED_BOUNDS_S: Final = (0.25, 0.9)
#: For so long TCP competes without a rate when a queue turned out not to be ours. BBR looks at the minimal round trip
#: every ten seconds, so that a neighbour who has left is noticed in two of these.
FREE_S: Final = 5.0
#: No rate below: 8 Mbit/s, at which a lane still moves a chunk in a second.
MIN_BYTES_PER_S: Final = 1e6


@dataclass(slots=True)
class _PushBack:
    """A time of being pushed back, and the least that was seen in it."""

    since_s: float
    first_rtt_s: float
    least_rate: float
    rtt_s: float
    rtt_at_s: float
    loss: float
    fallen_s: float = 0.0
    fallen_rtt_s: float = 0.0

    def fall_to(self, rate: float, rtt_s: float, now_s: float) -> float:
        """The rate falls, not below the least; what the round trip was then is remembered."""
        self.fallen_s, self.fallen_rtt_s = now_s, rtt_s
        return max(self.least_rate, rate)


class Pacer:
    """`update` is called after every look at the link; `bytes_per_s` is what all its lanes may send, None: no limit."""

    def __init__(self) -> None:
        self.bytes_per_s: float | None = None
        #: For how long the lanes have been loaded and neither the link nor the rate held them back: their windows do.
        self.unused_s = 0.0
        self._base_rtt_s: float | None = None
        self._usual_loss = 0.0
        self._good_ticks = 0
        self._noted_s: float | None = None
        self._free_until_s = -PROBE_S
        self._knee: float | None = None
        self._push_back: _PushBack | None = None

    def update(self, state: LinkState, now_s: float) -> float | None:
        """The rate from now on."""
        if state.rtt_s is None or state.min_rtt_s is None or state.min_rtt_s < MIN_RTT_S:
            self.bytes_per_s = None
            self.unused_s = 0.0
        elif _is_loaded(state):
            self._base_rtt_s = min(state.rtt_s, self._base_rtt_s or state.min_rtt_s)
            self._note_room(state, now_s)
            rate = self._next(state, self.bytes_per_s, now_s)
            self.bytes_per_s = None if rate is None else max(MIN_BYTES_PER_S, rate)
        elif self.bytes_per_s is not None:
            self.bytes_per_s = self._returned(self.bytes_per_s, state)  # what stood in the queue leaves it meanwhile
        return self.bytes_per_s

    def _note_room(self, state: LinkState, now_s: float) -> None:
        rate, since_s = self.bytes_per_s, self._noted_s
        self._noted_s = now_s
        held_back = rate is not None and state.newest_bytes_per_s > rate / ROOM * UNUSED_SLACK
        if held_back or self._is_pushed_back(state) or since_s is None or now_s - since_s > MAX_GAP_S:
            self.unused_s = 0.0
        else:
            self.unused_s += now_s - since_s

    def _next(self, state: LinkState, rate: float | None, now_s: float) -> float | None:
        if now_s < self._free_until_s:
            return None
        if now_s < self._free_until_s + PROBE_S:
            self._knee = max(self._knee or 0.0, state.newest_bytes_per_s)
            return YIELD * self._knee
        if self._is_pushed_back(state):
            return self._fallen(state, rate or math.inf, now_s)
        if rate is None:
            return None  # TCP finds the link's rate first
        self._usual_loss = min(self._usual_loss, max(state.retransmit_ratio, self._usual_loss / 2))
        return self._grown(state, rate) if self._push_back is None else self._returned(rate, state)

    def _returned(self, rate: float, state: LinkState) -> float:
        knee = REST * (self._knee or rate) if self._push_back is not None else rate
        self._push_back = None
        return max(rate, knee, REST_OF_CAPACITY * (state.capacity_bytes_per_s or 0.0))

    def _fallen(self, state: LinkState, rate: float, now_s: float) -> float | None:
        assert state.rtt_s is not None
        self._good_ticks = 0
        through = state.newest_bytes_per_s
        seen = self._push_back
        if seen is None:
            self._knee = through
            used = min(rate, max(through, state.capacity_bytes_per_s or 0.0))
            least = 0.0 if rate == math.inf else YIELD * used
            seen = _PushBack(now_s, state.rtt_s, least, state.rtt_s, now_s, state.retransmit_ratio)
            self._push_back = seen
            return seen.fall_to(min(rate, self._drain(state) * through), state.rtt_s, now_s)
        if state.rtt_s < seen.rtt_s:
            seen.rtt_s, seen.rtt_at_s = state.rtt_s, now_s
        seen.loss = min(seen.loss, state.retransmit_ratio)
        if rate < math.inf and self._is_not_ours(seen, now_s):
            self._push_back = self._knee = None
            self._base_rtt_s, self._usual_loss = seen.rtt_s, seen.loss
            self._free_until_s = now_s + FREE_S
            return None
        if rate > SLOWER * through:
            self._knee = through
            return seen.fall_to(self._drain(state) * through, state.rtt_s, now_s)
        if now_s - seen.fallen_s >= DEEPER_S and state.rtt_s > UNTOUCHED * seen.fallen_rtt_s:
            return seen.fall_to(DEEPER * rate, state.rtt_s, now_s)
        return rate

    def _is_not_ours(self, seen: _PushBack, now_s: float) -> bool:
        waited_s = now_s - seen.since_s
        untouched = waited_s >= UNTOUCHED_S and seen.rtt_s > UNTOUCHED * seen.first_rtt_s
        return untouched or (waited_s >= PATIENCE_S and now_s - seen.rtt_at_s >= FALLING_S)

    def _drain(self, state: LinkState) -> float:
        assert state.rtt_s is not None
        assert self._base_rtt_s is not None
        least, most = DRAIN_BOUNDS
        return 1 - min(most, max(least, (state.rtt_s - self._base_rtt_s) / DRAIN_S))

    def _is_pushed_back(self, state: LinkState) -> bool:
        assert state.rtt_s is not None
        assert self._base_rtt_s is not None
        queue_s = state.rtt_s - self._base_rtt_s
        too_long = queue_s > max(QUEUE_S, QUEUE_SHARE * self._base_rtt_s)
        return too_long or state.retransmit_ratio > self._usual_loss + LOSS_SHARE

    def _grown(self, state: LinkState, rate: float) -> float:
        factor = GROWTH[min(self._good_ticks, len(GROWTH) - 1)]
        is_binding = state.newest_bytes_per_s >= BINDING_SHARE * rate / factor
        if not is_binding and rate >= ROOM * state.newest_bytes_per_s:
            return rate
        self._good_ticks += 1
        return max(rate, min(rate * factor, ROOM * state.newest_bytes_per_s))


def _is_loaded(state: LinkState) -> bool:
    """Else the application is the limit."""
    rtt_s = state.min_rtt_s or 0.0
    least, most = LOADED_BOUNDS_S
    wanted_s = min(most, max(least, rtt_s + newest_windows_s(rtt_s)[-1]))
    return state.limited_s >= wanted_s and state.newest_bytes_per_s > 0
