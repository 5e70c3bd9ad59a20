"""One link, from samples of its lanes to orders for them. Pure: the shell takes the samples and carries out the orders.

Laws of this file:
- A look takes every lane that is up, by connection: a lane that was dialled again is another connection.
- Orders say what is to be different from now on. A lane that was never paced is not told that it is not.
- Lanes are added, never taken away, and only while all of them are up: a lane that is being dialled says nothing about
  the windows of the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from prfaas.core.link.congestion_trial import CongestionTrial, LaneProgress
from prfaas.core.link.estimate import LaneSample, LinkEstimator, LinkState
from prfaas.core.link.lane_plan import chunk_bytes, wider
from prfaas.core.link.pacing import MIN_RTT_S, Pacer, PaceState
from prfaas.core.link.resting import RestingLanes
from prfaas.core.link.verdict import LinkVerdict

#: On a link within a building BBR's timers cost more than the queue that they avoid.
SHORT_LINK_CONGESTION: Final = "cubic"


@dataclass(frozen=True, slots=True)
class LinkPlan:
    """What the operator and the machine allow. `trial`: the two congestion controls to choose from, or None where
    `congestion` is set (empty: the kernel's own). `short_link_senders`: lanes that send at once on a short link."""

    num_lanes: int
    max_lanes: int
    chunk_bytes: int
    short_link_senders: int
    congestion: str = ""
    trial: tuple[str, str] | None = None
    paced: bool = True


@dataclass(frozen=True, slots=True)
class LinkOrders:
    """From one look. `senders` lanes send at once, all of them where `send_limit` is None; `lanes` is how many there
    should be. The last two name connections, and only those that must change: their congestion control, and the bytes
    per second that they may send (None: no limit)."""

    chunk_bytes: int
    senders: int
    send_limit: int | None
    lanes: int
    congestion_by_lane: Mapping[int, str] = field(default_factory=dict)
    pace_by_lane: Mapping[int, float | None] = field(default_factory=dict)


class LinkController:
    """`look` is called about every 100 ms by one thread; the rest may be read by any."""

    def __init__(self, plan: LinkPlan) -> None:
        self.lanes = plan.num_lanes
        self._plan = plan
        self._estimator = LinkEstimator()
        self._pacer = Pacer() if plan.paced else None
        self._trial = CongestionTrial(*plan.trial) if plan.trial else None
        self._resting = RestingLanes()
        #: connection -> its share of the rate, as it was told
        self._told: dict[int, float] = {}

    @property
    def state(self) -> LinkState:
        """As of the last look."""
        return self._estimator.state

    @property
    def paced_bytes_per_s(self) -> float | None:
        """What all lanes may send together; None is no limit."""
        return None if self._pacer is None else self._pacer.bytes_per_s

    @property
    def pace_state(self) -> PaceState:
        return PaceState.UNPACED if self._pacer is None else self._pacer.state

    @property
    def is_at_rest(self) -> bool:
        """A look without lanes would change nothing."""
        state = self.state
        return state.verdict is LinkVerdict.CLEAR and state.rtt_s is None and not state.delivered_bytes_per_s

    @property
    def chosen_congestion(self) -> str | None:
        """The winner of the trial; None before there is one."""
        return None if self._trial is None else self._trial.choice

    def congestion_for(self, lane_index: int, *, is_short: bool) -> str:
        """What a lane that is dialled now should use; empty leaves it to the kernel. Lanes count from 0."""
        if self._trial is None:
            return self._plan.congestion
        return SHORT_LINK_CONGESTION if is_short else self._trial.algorithm_for(lane_index)

    def look(
        self, samples: Mapping[int, LaneSample], lanes_up: int, now_s: float, *, is_late: bool = False
    ) -> LinkOrders:
        """`samples` by connection; `is_late`: see `arrivals`. A lane that is up without a sample (it is not TCP) counts
        in `lanes_up` only."""
        before_s = self.state.at_s
        state = self._estimator.observe(samples, now_s, self.paced_bytes_per_s, is_late=is_late)
        is_short = state.min_rtt_s is not None and state.min_rtt_s < MIN_RTT_S
        send_limit = self._plan.short_link_senders if is_short else None
        senders = min(lanes_up, send_limit or lanes_up)
        seconds = state.at_s - before_s
        pace = self._pace(samples, state)
        congestion = {} if is_short else self._rest(samples, seconds) | self._try_congestion(samples, state, seconds)
        self._add_lanes(lanes_up)
        return LinkOrders(
            chunk_bytes=chunk_bytes(state.capacity_bytes_per_s, senders, self._plan.chunk_bytes, is_short=is_short),
            senders=senders,
            send_limit=send_limit,
            lanes=self.lanes,
            congestion_by_lane=congestion,
            pace_by_lane=pace,
        )

    def _rest(self, samples: Mapping[int, LaneSample], seconds: float) -> dict[int, str]:
        if self._trial is None:
            return {}  # the operator has chosen, or the kernel has no choice
        return self._resting.look(samples, seconds, is_paced=self.paced_bytes_per_s is not None)

    def _try_congestion(self, samples: Mapping[int, LaneSample], state: LinkState, seconds: float) -> dict[int, str]:
        if self._trial is None or self._trial.choice is not None:
            return {}
        progress = {lane: LaneProgress(sample.congestion, sample.bytes_acked) for lane, sample in samples.items()}
        choice = self._trial.observe(progress, seconds, limited=state.limited_s >= seconds)
        return {} if choice is None else dict.fromkeys(samples, choice)

    def _pace(self, samples: Mapping[int, LaneSample], state: LinkState) -> dict[int, float | None]:
        if self._pacer is None:
            return {}
        rate = self._pacer.update(state, state.at_s)
        share = math.inf if rate is None else rate / max(1, len(samples))
        changed = [lane for lane in samples if self._told.get(lane, math.inf) != share]
        self._told = dict.fromkeys(samples, share)
        return dict.fromkeys(changed, None if share == math.inf else share)

    def _add_lanes(self, lanes_up: int) -> None:
        if self._pacer is None or lanes_up < self.lanes:
            return
        lanes = wider(self.lanes, max(self._plan.max_lanes, self._plan.num_lanes), self._pacer.unused_s)
        if lanes > self.lanes:
            self.lanes = lanes
            self._pacer.lanes_added()
