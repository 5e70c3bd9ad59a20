"""What a lane uses for congestion control while it rests. Pure.

cubic forgets in a pause what it has learned: after one retransmission timeout without data (0.3 s) the kernel begins
again with ten segments (`net.ipv4.tcp_slow_start_after_idle`), which took 0.7 s of a move over 80 ms. BBR keeps its
window. So a lane that uses cubic rests on BBR.

Laws of this file:
- A lane goes to rest at the first look at which its link is idle, well before its first heartbeat, and returns at the
  first look at which the link is not. By then bytes are on their way, and the kernel does not judge the pause again.
- Only where a rate is known: it bounds what a lane sends in between.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from prfaas.core.link.estimate import LaneSample
from prfaas.core.link.verdict import IDLE_BYTES_PER_S

RESTING: Final = "bbr"
FORGETFUL: Final = "cubic"


class RestingLanes:
    """`look` is called after every look at the link, and tells which connections must change to what."""

    def __init__(self) -> None:
        self._resting: set[int] = set()
        self._sent: dict[int, int] = {}

    def look(self, samples: Mapping[int, LaneSample], seconds: float, *, is_paced: bool) -> dict[int, str]:
        """`samples` by connection; `seconds` since the last look."""
        before, self._sent = self._sent, {lane: sample.bytes_sent for lane, sample in samples.items()}
        self._resting &= samples.keys()
        if set(before) != set(samples):
            return {}  # of a lane that is new nothing is known
        sent = sum(self._sent.values()) - sum(before.values())
        if any(sample.unsent_bytes for sample in samples.values()) or sent > IDLE_BYTES_PER_S * seconds:
            returning, self._resting = self._resting, set()
            return dict.fromkeys(returning, FORGETFUL)
        if not is_paced:
            return {}
        tired = {lane for lane, sample in samples.items() if sample.congestion == FORGETFUL} - self._resting
        self._resting |= tired
        return dict.fromkeys(tired, RESTING)
