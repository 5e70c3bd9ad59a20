"""How fast the lanes of one link may send together, found from what the link delivers. Pure.

TCP finds a link's rate by filling its queue. Many lanes do that at once: measured with eight BBR lanes on 2 Gbit/s, a
tenth of all bytes was sent twice and the round trip doubled. A common rate, just under the link's own, leaves the queue
empty, and does not disturb others who use the link.

Laws of this file:
- `TRANSITIONS` has every change of state; docs/wire.md prints it.
- The link *pushes back* when the round trip is `QUEUE_SHARE` (and `QUEUE_S`) over its base, or when `LOSS_SHARE` more
  than usual was sent again. The link is full then. What it delivers at that moment is the *knee*.
- UNPACED: there is no rate. TCP finds the link's limit.
- DRAINING: the rate is under the knee, and falls further every `DEEPER_S` in which the queue does not become shorter.
  It never falls below `YIELD` of what was in use.
- GROWING: the rate returns to just under the knee, or under the capacity if that is more. Then it grows while the lanes
  use it: slowly first, because the link is most likely full, and faster the longer nothing pushes back, because then
  the link has become faster. It stays under `ROOM` times what is delivered.
- COMPETING: a queue that does not become shorter although we send less is not ours. The link has become longer, or
  others fill it. The lowest round trip and the lowest loss of that time become the base, and there is no rate for
  `FREE_S`: TCP takes its share as the neighbours' TCP does.
- PROBING: the rate is low for `PROBE_S`, to see whether the queue was ours after all.
- The base falls at once to every lower round trip.
- Links with round trips below `MIN_RTT_S` have no rate: within a building the timers cost more than the queue.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from prfaas.core.link.estimate import MAX_GAP_S, LinkState, newest_windows_s

#: A rack's switch is at 0.1 ms, two halls of a site below one.
MIN_RTT_S: Final = 1e-3
#: Keeps the median round trip under full load well below 1.2 times the base.
QUEUE_SHARE: Final = 0.15
#: The kernel's smoothed round trip moves by this much without a queue (delayed acknowledgements, busy receivers).
QUEUE_S: Final = 2e-3
#: Resent bytes over sent ones. Random loss of long links is below 0.1%.
LOSS_SHARE: Final = 0.01
#: The queue should be gone after this long: the rate is lower than what is delivered by queue / DRAIN_S, within bounds.
DRAIN_S: Final = 0.3
DRAIN_BOUNDS: Final = (0.05, 0.25)
#: What is delivered is known to a few percent. If the queue has not become shorter after this long, the rate is still
#: too high.
DEEPER_S: Final = 0.3
DEEPER: Final = 0.92
#: The rate is this much over what is delivered: the link is slower than it was a moment ago.
SLOWER: Final = 1.1
#: Of the knee, once the queue is gone.
REST: Final = 0.99
#: Of the capacity. The capacity covers a longer time than the knee, and the knee is too low if a lane happened to be
#: held up by something else (BBR sends next to nothing for 0.2 s every ten seconds, to see the minimal round trip).
REST_OF_CAPACITY: Final = 0.94
PATIENCE_S: Final = 1.5
#: The rate never falls below this share of the rate in use. A neighbour takes whatever we leave free, so a lower rate
#: would leave the neighbour everything. If the link itself got slower, TCP slows down until the new rate is found.
YIELD: Final = 0.75
#: How long the rate is low after a time without one.
PROBE_S: Final = 0.4
#: If the round trip is still at this share of the first one after `UNTOUCHED_S`, sending less has not shortened it.
UNTOUCHED: Final = 0.93
UNTOUCHED_S: Final = 0.8
#: The lowest round trip seen while draining must be this old before it counts as the new base.
FALLING_S: Final = 0.5
#: Factors of successive looks, 0.1 s apart; the last one repeats.
GROWTH: Final = (1.005, 1.005, 1.01, 1.02, 1.04, 1.08, 1.15, 1.3, 1.4)
#: The rate holds the lanes back if they deliver this share of it. If they deliver less, something else does.
BINDING_SHARE: Final = 0.85
#: Losses do not hold back all lanes at once. Lanes that lose nothing need room above an equal share.
ROOM: Final = 2.0
#: The rate grows in steps, so that it comes only near `ROOM`.
UNUSED_SLACK: Final = 1.4
#: A burst that has just begun shows neither the link's rate nor its queue: nothing is acknowledged in the first round
#: trip, and the newest rate covers several. One second is as long as the estimator remembers.
LOADED_BOUNDS_S: Final = (0.25, 0.9)
#: How long TCP competes without a rate. BBR looks at the minimal round trip every ten seconds, so that we notice within
#: two of these times that a neighbour has left.
FREE_S: Final = 5.0
#: No lower rate: 8 Mbit/s, at which a lane still moves a chunk in a second.
MIN_BYTES_PER_S: Final = 1e6


class PaceState(StrEnum):
    """What the rate of a link is doing."""

    UNPACED = "unpaced"
    GROWING = "growing"
    DRAINING = "draining"
    COMPETING = "competing"
    PROBING = "probing"


class PaceSign(StrEnum):
    """What one look at the link means to its rate. The first that applies, in this order."""

    EXEMPT = "exempt"  #: no lane is up, or the round trip is below `MIN_RTT_S`
    HOLDING = "holding"  #: the time of COMPETING or PROBING is not over, or a pause hides whether it is
    PAUSED = "paused"  #: the lanes are not loaded: the application is the limit
    DUE = "due"  #: the time of COMPETING is over, and the lanes are loaded
    NOT_OURS = "not_ours"  #: the link pushes back, and sending less has not shortened its queue
    PUSHED_BACK = "pushed_back"
    CLEAR = "clear"  #: loaded, and nothing pushes back


S, X = PaceState, PaceSign
#: state -> sign -> next state. A sign that is not in a state's row cannot be seen in it.
TRANSITIONS: Final[dict[PaceState, dict[PaceSign, PaceState]]] = {
    S.UNPACED: {X.EXEMPT: S.UNPACED, X.PAUSED: S.UNPACED, X.CLEAR: S.UNPACED, X.PUSHED_BACK: S.DRAINING},
    S.GROWING: {X.EXEMPT: S.UNPACED, X.PAUSED: S.GROWING, X.CLEAR: S.GROWING, X.PUSHED_BACK: S.DRAINING},
    S.DRAINING: {
        X.EXEMPT: S.UNPACED,
        X.PAUSED: S.GROWING,
        X.CLEAR: S.GROWING,
        X.PUSHED_BACK: S.DRAINING,
        X.NOT_OURS: S.COMPETING,
    },
    S.COMPETING: {X.EXEMPT: S.UNPACED, X.HOLDING: S.COMPETING, X.PAUSED: S.UNPACED, X.DUE: S.PROBING},
    S.PROBING: {
        X.EXEMPT: S.UNPACED,
        X.HOLDING: S.PROBING,
        X.PAUSED: S.GROWING,
        X.CLEAR: S.GROWING,
        X.PUSHED_BACK: S.DRAINING,
    },
}


@dataclass(slots=True)
class _Drain:
    """One time of draining: since when, its first round trip, the least rate, and the least that was seen in it. The
    rate fell last at `fallen_s`, when the round trip was `fallen_rtt_s`."""

    since_s: float
    first_rtt_s: float
    least_rate: float
    rtt_s: float
    rtt_at_s: float
    loss: float
    fallen_s: float
    fallen_rtt_s: float

    def see(self, rtt_s: float, loss: float, now_s: float) -> None:
        if rtt_s < self.rtt_s:
            self.rtt_s, self.rtt_at_s = rtt_s, now_s
        self.loss = min(self.loss, loss)

    def is_not_ours(self, now_s: float) -> bool:
        waited_s = now_s - self.since_s
        untouched = waited_s >= UNTOUCHED_S and self.rtt_s > UNTOUCHED * self.first_rtt_s
        return untouched or (waited_s >= PATIENCE_S and now_s - self.rtt_at_s >= FALLING_S)

    def fall_to(self, rate: float, rtt_s: float, now_s: float) -> float:
        self.fallen_s, self.fallen_rtt_s = now_s, rtt_s
        return max(self.least_rate, rate)


class Pacer:
    """`update` is called after every look at the link; `bytes_per_s` is what all its lanes may send, None: no limit."""

    def __init__(self) -> None:
        self.state = PaceState.UNPACED
        self.bytes_per_s: float | None = None
        #: How long the lanes have been loaded while neither the link nor the rate held them back.
        self.unused_s = 0.0
        self._base_rtt_s = 0.0
        self._usual_loss = 0.0
        self._num_good = 0
        self._noted_s: float | None = None
        self._until_s = 0.0
        self._knee = 0.0
        self._drain: _Drain | None = None

    def update(self, look: LinkState, now_s: float) -> float | None:
        """The rate from now on."""
        before = self.state
        if look.rtt_s is None or look.min_rtt_s is None or look.min_rtt_s < MIN_RTT_S:
            sign, self.unused_s = PaceSign.EXEMPT, 0.0
        else:
            is_loaded = _is_loaded(look)
            if is_loaded:
                self._base_rtt_s = min(look.rtt_s, self._base_rtt_s or look.min_rtt_s)
                self._note_room(look, now_s)
            sign = self._sign(look, look.rtt_s, now_s, is_loaded=is_loaded)
        self.state = TRANSITIONS[before][sign]
        rate = self._next_rate(before, sign, look, now_s)
        self.bytes_per_s = None if rate is None else max(MIN_BYTES_PER_S, rate)
        return self.bytes_per_s

    def lanes_added(self) -> None:
        """The lanes that are there now have not been loaded yet."""
        self.unused_s = 0.0

    def _note_room(self, look: LinkState, now_s: float) -> None:
        rate, since_s = self.bytes_per_s, self._noted_s
        self._noted_s = now_s
        held_back = rate is not None and look.newest_bytes_per_s > rate / ROOM * UNUSED_SLACK
        if held_back or self._is_pushed_back(look) or since_s is None or now_s - since_s > MAX_GAP_S:
            self.unused_s = 0.0
        else:
            self.unused_s += now_s - since_s

    def _sign(self, look: LinkState, rtt_s: float, now_s: float, *, is_loaded: bool) -> PaceSign:
        if self.state is PaceState.COMPETING:
            if now_s < self._until_s + (0.0 if is_loaded else PROBE_S):
                return PaceSign.HOLDING
            return PaceSign.DUE if is_loaded else PaceSign.PAUSED
        if not is_loaded:
            return PaceSign.PAUSED
        if self.state is PaceState.PROBING and now_s < self._until_s:
            return PaceSign.HOLDING
        if not self._is_pushed_back(look):
            return PaceSign.CLEAR
        if self._drain is not None:
            self._drain.see(rtt_s, look.retransmit_ratio, now_s)
            if self._drain.is_not_ours(now_s):
                return PaceSign.NOT_OURS
        return PaceSign.PUSHED_BACK

    def _next_rate(self, before: PaceState, sign: PaceSign, look: LinkState, now_s: float) -> float | None:
        match self.state:
            case PaceState.UNPACED:
                self._drain = None
                return None
            case PaceState.DRAINING:
                return self._begin_draining(look, now_s) if self._drain is None else self._drain_on(look, now_s)
            case PaceState.GROWING:
                return self._returned_or_grown(before, sign, look)
            case PaceState.COMPETING:
                self._take_for_normal(now_s)
                return None
            case PaceState.PROBING:
                if before is not PaceState.PROBING:
                    self._until_s += PROBE_S
                self._knee = max(self._knee, look.newest_bytes_per_s)
                return YIELD * self._knee

    def _begin_draining(self, look: LinkState, now_s: float) -> float:
        assert look.rtt_s is not None
        self._num_good = 0
        rate, through = self.bytes_per_s, look.newest_bytes_per_s
        self._knee = through
        least = 0.0 if rate is None else YIELD * min(rate, max(through, look.capacity_bytes_per_s or 0.0))
        self._drain = _Drain(now_s, look.rtt_s, least, look.rtt_s, now_s, look.retransmit_ratio, now_s, look.rtt_s)
        return max(least, min(rate or math.inf, self._drained_share(look.rtt_s) * through))

    def _drain_on(self, look: LinkState, now_s: float) -> float:
        assert look.rtt_s is not None
        assert self._drain is not None
        assert self.bytes_per_s is not None
        rate, through = self.bytes_per_s, look.newest_bytes_per_s
        if rate > SLOWER * through:
            self._knee = through
            return self._drain.fall_to(self._drained_share(look.rtt_s) * through, look.rtt_s, now_s)
        if now_s - self._drain.fallen_s >= DEEPER_S and look.rtt_s > UNTOUCHED * self._drain.fallen_rtt_s:
            return self._drain.fall_to(DEEPER * rate, look.rtt_s, now_s)
        return rate

    def _returned_or_grown(self, before: PaceState, sign: PaceSign, look: LinkState) -> float:
        assert self.bytes_per_s is not None
        self._drain = None
        rate = self.bytes_per_s
        if sign is PaceSign.CLEAR:
            self._usual_loss = min(self._usual_loss, max(look.retransmit_ratio, self._usual_loss / 2))
            if before is not PaceState.DRAINING:
                return self._grown(look, rate)
        knee = REST * self._knee if before is PaceState.DRAINING else 0.0
        return max(rate, knee, REST_OF_CAPACITY * (look.capacity_bytes_per_s or 0.0))

    def _grown(self, look: LinkState, rate: float) -> float:
        factor = GROWTH[min(self._num_good, len(GROWTH) - 1)]
        is_binding = look.newest_bytes_per_s >= BINDING_SHARE * rate / factor
        if not is_binding and rate >= ROOM * look.newest_bytes_per_s:
            return rate
        self._num_good += 1
        return max(rate, min(rate * factor, ROOM * look.newest_bytes_per_s))

    def _take_for_normal(self, now_s: float) -> None:
        if self._drain is not None:
            self._base_rtt_s, self._usual_loss = self._drain.rtt_s, self._drain.loss
            self._drain, self._knee = None, 0.0
            self._until_s = now_s + FREE_S

    def _drained_share(self, rtt_s: float) -> float:
        """Of what is delivered: so much that the queue is gone after `DRAIN_S`."""
        least, most = DRAIN_BOUNDS
        return 1 - min(most, max(least, (rtt_s - self._base_rtt_s) / DRAIN_S))

    def _is_pushed_back(self, look: LinkState) -> bool:
        assert look.rtt_s is not None
        queue_s = look.rtt_s - self._base_rtt_s
        too_long = queue_s > max(QUEUE_S, QUEUE_SHARE * self._base_rtt_s)
        return too_long or look.retransmit_ratio > self._usual_loss + LOSS_SHARE


def _is_loaded(look: LinkState) -> bool:
    """Else the application is the limit."""
    rtt_s = look.min_rtt_s or 0.0
    least, most = LOADED_BOUNDS_S
    wanted_s = min(most, max(least, rtt_s + newest_windows_s(rtt_s)[-1]))
    return look.limited_s >= wanted_s and look.newest_bytes_per_s > 0
