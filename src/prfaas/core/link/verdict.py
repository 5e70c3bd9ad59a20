"""Is a link clear, pressed or congested? From signs to a word that a scheduler can act on, without flapping.

Laws of this file:
- A link on which next to nothing moves and nothing waits gives no cause, whatever its round trips say: it is clear.
- A verdict rises when its cause has lasted `CONFIRM_S`, and falls when the cause has been away for `HOLD_S`.
- What raised a verdict must fall well below the threshold that raised it before it counts as away.
- Rising may skip a step, and so may falling. So a link that is not clear stays so for `HOLD_S` at least.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

#: A cause must last this long. Three samples at 100 ms; with the half second over which loss is averaged it stays
#: below the second within which congestion must be known.
CONFIRM_S: Final = 0.3
#: A cause must be away this long. Longer than the gaps between the layers and chunks of one prefill, which are not
#: relief; short beside the deadline of a transfer.
HOLD_S: Final = 2.0
#: Of the capacity, where queues begin to grow faster than load (in M/M/1 ten times the service time at 0.9, four at
#: 0.75). The second figure is where pressure ends.
PRESSED_UTILIZATION: Final = (0.9, 0.75)
#: Round trip over its minimum. Half a round trip of queue is more than pacing and delayed acknowledgements make.
PRESSED_RTT_RATIO: Final = (1.5, 1.25)
#: BBR itself keeps up to one more round trip in flight, and four such lanes were measured at 2.7: 3 is beyond that.
CONGESTED_RTT_RATIO: Final = (4.0, 3.0)
#: Where the round trip is short, ratios are large and mean little. Queues below 5 ms are the hosts' scheduling; 20 ms
#: hurt no transfer that takes ten times as long.
PRESSED_QUEUE_S: Final = 0.005
CONGESTED_QUEUE_S: Final = 0.02
#: Retransmitted of sent bytes. BBRv2 takes 2% as the loss that it yields to; links lose 0.01 to 0.1% without cause.
CONGESTED_RETRANSMIT_RATIO: Final = (0.02, 0.01)
#: Share of the latest intervals that must have seen loss. One overflow at the end of slow start is not congestion.
LOSSY_INTERVALS: Final = 0.5
#: Heartbeats of 64 lanes are 3 KB/s; the smallest image takes this in a fraction of a second.
IDLE_BYTES_PER_S: Final = 64 * 1024


class LinkVerdict(IntEnum):
    """In order of urgency; the values are those of `prfaas_link_verdict`."""

    CLEAR = 0
    PRESSED = 1
    CONGESTED = 2


@dataclass(frozen=True, slots=True)
class Signs:
    """What one look at a link showed. `stalled`: bytes waited for a whole second and none was delivered. `late`: what
    was handed over does not arrive in time, wherever it is."""

    delivered_bytes_per_s: float
    unsent_bytes: int
    utilization: float | None
    rtt_ratio: float | None
    queue_s: float
    retransmit_ratio: float
    lossy_intervals: float
    stalled: bool
    late: bool = False


class VerdictKeeper:
    """Holds one link's verdict. `since_s` is the moment of its last change."""

    def __init__(self) -> None:
        self.verdict = LinkVerdict.CLEAR
        self.since_s = 0.0
        self._started = False
        self._caused_since_s: dict[LinkVerdict, float] = {}
        self._caused_last_s: dict[LinkVerdict, float] = {}

    def update(self, signs: Signs, now_s: float) -> None:
        """Take one look into account. `now_s` never goes back."""
        if not self._started:
            self._started, self.since_s = True, now_s
        wanted = cause(signs, self.verdict)
        for level in (LinkVerdict.PRESSED, LinkVerdict.CONGESTED):
            if wanted >= level:
                self._caused_since_s.setdefault(level, now_s)
                self._caused_last_s[level] = now_s
            else:
                self._caused_since_s.pop(level, None)
        verdict = max(self._risen(now_s), self._held(now_s))
        if verdict is not self.verdict:
            self.verdict, self.since_s = verdict, now_s

    def forget_causes(self) -> None:
        """Nobody looked for a while: what was seen before does not count as lasting until now."""
        self._caused_since_s.clear()

    def _risen(self, now_s: float) -> LinkVerdict:
        confirmed = [level for level, since_s in self._caused_since_s.items() if now_s - since_s >= CONFIRM_S - 1e-9]
        return max(confirmed, default=LinkVerdict.CLEAR)

    def _held(self, now_s: float) -> LinkVerdict:
        recent = [level for level, last_s in self._caused_last_s.items() if now_s - last_s < HOLD_S]
        return min(self.verdict, max(recent, default=LinkVerdict.CLEAR))


def cause(signs: Signs, held: LinkVerdict) -> LinkVerdict:
    """The verdict that the signs call for. One that is held already needs less to stay."""
    if signs.delivered_bytes_per_s < IDLE_BYTES_PER_S and not signs.unsent_bytes and not signs.late:
        return LinkVerdict.CLEAR
    step = int(held is LinkVerdict.CONGESTED)
    rtt_ratio = signs.rtt_ratio or 1.0
    lossy = signs.retransmit_ratio >= CONGESTED_RETRANSMIT_RATIO[step] and signs.lossy_intervals >= LOSSY_INTERVALS
    queued = rtt_ratio >= CONGESTED_RTT_RATIO[step] and signs.queue_s >= CONGESTED_QUEUE_S
    if lossy or (queued and signs.unsent_bytes > 0) or signs.stalled:
        return LinkVerdict.CONGESTED
    step = int(held is not LinkVerdict.CLEAR)
    busy = signs.utilization is not None and signs.utilization >= PRESSED_UTILIZATION[step]
    queued = rtt_ratio >= PRESSED_RTT_RATIO[step] and signs.queue_s >= PRESSED_QUEUE_S
    return LinkVerdict.PRESSED if busy or queued or signs.late else LinkVerdict.CLEAR
