"""The link estimator on a small fluid model of a link: lanes with windows, one queue, loss, and a round trip."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas.core.link.estimate import LaneSample, LinkEstimator, LinkState
from prfaas.core.link.snapshot import LinkSnapshot
from prfaas.core.link.verdict import HOLD_S, LinkVerdict, Signs, VerdictKeeper
from prfaas.core.wire.contract import from_json
from prfaas.core.wire.node_api import LinkReport

GBPS = 1e9 / 8
STEP_S = 0.01
BASE_RTT_S = 0.02
ALWAYS = math.inf


@dataclass
class Lane:
    """Bytes of one connection; `pipe` is what was served and is not acknowledged yet."""

    pipe: deque[float] = field(default_factory=lambda: deque([0.0] * (round(BASE_RTT_S / STEP_S) - 1)))
    backlog: float = 0.0
    queued: float = 0.0
    inflight: float = 0.0
    sent: float = 0.0
    retrans: float = 0.0
    acked: float = 0.0
    rate: float = 0.0
    busy_s: float = 0.0
    shown_acked: int = 0


class FluidLink:
    """`noise` is the relative error of delivery rates and of how much of a step's bytes is acknowledged late. The lanes
    together send no faster than `paced`."""

    def __init__(self, rate: float, lanes: int = 4, *, noise: float = 0.0, seed: int = 1) -> None:
        self.rate, self.noise, self.loss = rate, noise, 0.0
        self.window = 1.4 * rate * BASE_RTT_S
        self.lanes = [Lane() for _ in range(lanes)]
        self.rng = random.Random(seed)
        self.now_s = 100.0
        self.receiver_limited = False
        self.paced: float | None = None

    def step(self, demand: float) -> None:
        """`demand` is what the application offers, in bytes per second."""
        count = len(self.lanes)
        allowed = math.inf if self.paced is None else self.paced * STEP_S / count
        for lane in self.lanes:
            lane.backlog = 4e6 if demand == ALWAYS else lane.backlog + demand * STEP_S / count
            sending = max(0.0, min(lane.backlog, allowed, self.window / count - lane.inflight))
            lane.backlog -= sending
            lane.queued += sending
            lane.inflight += sending
            lane.sent += sending
            lane.busy_s += STEP_S if lane.inflight > 0 else 0.0
        queued = sum(lane.queued for lane in self.lanes)
        served_share = min(1.0, self.rate * STEP_S / queued) if queued else 0.0
        for lane in self.lanes:
            served = lane.queued * served_share
            lost = served * self.loss
            lane.queued += lost - served
            lane.sent += lost
            lane.retrans += lost
            lane.pipe.append(served - lost)
            arrived = lane.pipe.popleft()
            lane.inflight -= arrived
            lane.acked += arrived
            lane.rate = arrived / STEP_S
        self.now_s += STEP_S

    def samples(self) -> dict[int, LaneSample]:
        """What TCP_INFO would say."""
        return {number: self._sample(lane) for number, lane in enumerate(self.lanes)}

    def _sample(self, lane: Lane) -> LaneSample:
        rng, noise = self.rng, self.noise
        late = lane.rate * STEP_S * rng.uniform(0, 5 * noise)
        lane.shown_acked = max(lane.shown_acked, int(lane.acked - late))
        queue_s = sum(other.queued for other in self.lanes) / self.rate
        return LaneSample(
            rtt_s=(BASE_RTT_S + queue_s) * rng.uniform(1, 1 + noise / 2),
            min_rtt_s=BASE_RTT_S,
            bytes_sent=int(lane.sent),
            bytes_retrans=int(lane.retrans),
            bytes_acked=lane.shown_acked,
            delivery_rate_bytes_per_s=int(lane.rate * rng.lognormvariate(0, noise)),
            delivery_is_app_limited=lane.backlog <= 0,
            unsent_bytes=int(lane.backlog),
            busy_s=lane.busy_s,
            receiver_limited_s=lane.busy_s if self.receiver_limited else 0.0,
        )


class Watched:
    """A link, its estimator, and every state that it showed, sampled every 100 ms."""

    def __init__(self, link: FluidLink) -> None:
        self.link, self.estimator = link, LinkEstimator()
        self.states: list[LinkState] = [self.estimator.observe(link.samples(), link.now_s)]

    def run(self, seconds: float, demand: float | Callable[[float], float] = ALWAYS) -> list[LinkState]:
        """Run for so long; `demand` may depend on the seconds since the call. Returns the states of this run."""
        first = len(self.states)
        for index in range(round(seconds / STEP_S)):
            self.link.step(demand(index * STEP_S) if callable(demand) else demand)
            if index % 10 == 9:
                self.states.append(self.estimator.observe(self.link.samples(), self.link.now_s, self.link.paced))
        return self.states[first:]

    @property
    def capacity(self) -> float:
        return self.states[-1].capacity_bytes_per_s or 0.0

    @property
    def verdict(self) -> LinkVerdict:
        return self.states[-1].verdict


def near(states: list[LinkState], truth: float, tolerance: float = 0.1) -> bool:
    """Every state's capacity is within the tolerance."""
    return all(abs((state.capacity_bytes_per_s or 0.0) - truth) <= tolerance * truth for state in states)


def changes(states: list[LinkState]) -> list[float]:
    """Moments of changed verdicts."""
    since = [state.verdict_since_s for state in states]
    return sorted(set(since) - {since[0]})


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("noise", [0.0, 0.2])
@pytest.mark.parametrize("lanes", [1, 4, 8])
def test_capacity_follows_steps_under_load(lanes: int, noise: float, seed: int) -> None:
    """From 2 to 0.5 to 2 Gbit/s: within 10% two seconds after each step, and from then on."""
    watched = Watched(FluidLink(2 * GBPS, lanes, noise=noise, seed=seed))
    for rate in (2 * GBPS, 0.5 * GBPS, 2 * GBPS):
        watched.link.rate = rate
        watched.run(2)
        assert near(watched.run(5), rate)


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_our_own_rate_is_not_the_link(noise: float) -> None:
    """Three seconds at three quarters of the link, because we gave way or felt for it, say nothing about it."""
    watched = Watched(FluidLink(2 * GBPS, noise=noise))
    watched.run(3)
    watched.link.paced = 1.5 * GBPS
    assert near(watched.run(3), 2 * GBPS)


def test_a_link_that_got_slower_is_noticed_while_paced() -> None:
    """At once if it is clearly below our rate, and after five seconds if it is just below."""
    watched = Watched(FluidLink(2 * GBPS))
    watched.link.paced = 1.98 * GBPS
    watched.run(6)
    watched.link.rate = 1.85 * GBPS
    watched.run(5)
    assert near(watched.run(2), 1.85 * GBPS, 0.02)
    watched.link.rate = 0.5 * GBPS
    watched.run(2)
    watched.link.paced = 0.5 * GBPS
    assert near(watched.run(6), 0.5 * GBPS)


@pytest.mark.parametrize("lanes", [1, 8])
def test_short_bursts_teach_the_capacity(lanes: int) -> None:
    """Bursts of 300 ms every second are too short for a saturated second, and suffice."""
    watched = Watched(FluidLink(2 * GBPS, lanes, noise=0.1))
    watched.run(5, lambda at_s: 6 * GBPS if at_s % 1 < 0.1 else 0.0)
    assert near(watched.run(5, lambda at_s: 6 * GBPS if at_s % 1 < 0.1 else 0.0), 2 * GBPS, 0.15)


def test_capacity_is_unknown_until_the_link_was_the_limit() -> None:
    """An application that sends little proves little."""
    watched = Watched(FluidLink(2 * GBPS))
    assert all(state.capacity_bytes_per_s is None for state in watched.run(5, 0.1 * GBPS))
    assert watched.states[-1].utilization is None
    assert watched.states[-1].delivered_bytes_per_s == pytest.approx(0.1 * GBPS, rel=0.01)
    watched.run(1)
    assert watched.capacity == pytest.approx(2 * GBPS, rel=0.1)


def test_idling_and_light_load_keep_the_estimate() -> None:
    """Neither a minute of nothing nor a minute of a tenth lowers it."""
    watched = Watched(FluidLink(2 * GBPS, noise=0.1))
    watched.run(3)
    assert near(watched.run(60, 0.0), 2 * GBPS)
    assert near(watched.run(60, 0.2 * GBPS), 2 * GBPS)
    assert watched.states[-1].utilization == pytest.approx(0.1, abs=0.02)


def test_more_than_the_estimate_raises_it_even_under_light_load() -> None:
    """What was delivered was possible."""
    watched = Watched(FluidLink(0.5 * GBPS))
    watched.run(2)
    watched.run(2, 0.0)
    watched.link.rate *= 4
    watched.link.window *= 4
    watched.run(2, 0.4 * GBPS)
    assert watched.capacity == pytest.approx(0.5 * GBPS, rel=0.05)
    watched.run(2, 1 * GBPS)
    assert watched.capacity == pytest.approx(1 * GBPS, rel=0.1)


def test_slow_start_lowers_nothing() -> None:
    """A window that doubles every 150 ms after a pause is no slower link."""
    watched = Watched(FluidLink(2 * GBPS))
    watched.run(3)
    watched.run(3, 0.0)
    full = watched.link.window
    for power in range(10, 0, -1):
        watched.link.window = full / 2**power
        watched.run(0.1)
    watched.link.window = full
    watched.run(2)
    lowest = min(state.capacity_bytes_per_s or 0.0 for state in watched.states[-60:])
    assert lowest > 0.85 * 2 * GBPS


def test_a_periodic_sender_in_step_with_the_samples_lowers_nothing() -> None:
    """A third of every 100 ms idle, but unsent bytes at every look: busy time tells."""
    watched = Watched(FluidLink(2 * GBPS, 1))
    watched.run(3)
    assert near(watched.run(10, lambda at_s: 5 * GBPS if round(at_s / STEP_S) % 10 >= 8 else 0.0), 2 * GBPS)
    assert watched.states[-1].unsent_bytes > 0


def test_a_receiver_that_brakes_lowers_nothing() -> None:
    """A small receive window is no slower link."""
    watched = Watched(FluidLink(2 * GBPS))
    watched.run(3)
    watched.link.window /= 10
    watched.link.receiver_limited = True
    assert near(watched.run(5), 2 * GBPS)


def test_sustained_loss_is_congestion_within_a_second() -> None:
    """3% for a second; when it is gone, the link is clear again after the named time."""
    for seed in range(3):
        watched = Watched(FluidLink(2 * GBPS, noise=0.1, seed=seed))
        watched.run(3)
        watched.run(3, 0.5 * GBPS)
        assert watched.verdict is LinkVerdict.CLEAR
        watched.link.loss = 0.03
        states = watched.run(1, 0.5 * GBPS)
        assert states[-1].verdict is LinkVerdict.CONGESTED
        assert states[-1].retransmit_ratio == pytest.approx(0.03, rel=0.2)
        assert {state.verdict for state in watched.run(10, 0.5 * GBPS)} == {LinkVerdict.CONGESTED}
        watched.link.loss = 0.0
        watched.run(HOLD_S - 0.1, 0.5 * GBPS)
        assert watched.verdict is LinkVerdict.CONGESTED
        watched.run(1, 0.5 * GBPS)
        assert watched.verdict is LinkVerdict.CLEAR


def test_one_overflow_is_not_congestion() -> None:
    """A tenth lost for 100 ms is how slow start ends."""
    watched = Watched(FluidLink(2 * GBPS))
    watched.run(3)
    watched.link.loss = 0.1
    states = watched.run(0.1)
    watched.link.loss = 0.0
    states += watched.run(3)
    assert max(state.retransmit_ratio for state in states) > 0.015
    assert LinkVerdict.CONGESTED not in {state.verdict for state in states}


def test_saturation_presses_and_a_standing_queue_congests() -> None:
    """A full link is pressed; four base round trips are congestion; a light load clears both."""
    watched = Watched(FluidLink(2 * GBPS))
    watched.run(3)
    assert watched.verdict is LinkVerdict.PRESSED
    watched.link.window *= 4
    watched.run(1)
    assert watched.verdict is LinkVerdict.CONGESTED
    assert watched.states[-1].rtt_ratio == pytest.approx(5.6, rel=0.2)
    watched.run(4, 0.2 * GBPS)
    assert watched.verdict is LinkVerdict.CLEAR


def test_a_link_that_swallows_everything_is_congested_and_keeps_its_estimate() -> None:
    """Nothing delivered for a second while bytes wait; a stall is not a capacity."""
    watched = Watched(FluidLink(2 * GBPS))
    watched.run(3)
    watched.link.rate = 1e-9
    watched.run(2)
    assert watched.verdict is LinkVerdict.CONGESTED
    assert watched.capacity > 0.1 * GBPS


def test_noise_around_the_threshold_of_pressure_does_not_flap() -> None:
    """At most one change in ten seconds, for loads around either threshold."""
    for load in (0.7, 0.75, 0.8, 0.85, 0.9, 0.95):
        watched = Watched(FluidLink(2 * GBPS, noise=0.1, seed=round(100 * load)))
        watched.run(3)
        noise = random.Random(7)
        states = watched.run(60, lambda _, load=load, noise=noise: load * 2 * GBPS * noise.uniform(0.8, 1.2))  # type: ignore[misc]
        assert len(changes(states)) <= 6, load


def test_noise_around_the_threshold_of_loss_does_not_flap() -> None:
    """At most one change in ten seconds, for losses around either threshold."""
    for loss in (0.005, 0.01, 0.015, 0.02, 0.025):
        watched = Watched(FluidLink(2 * GBPS))
        watched.run(3)
        noise = random.Random(7)
        states = []
        for _ in range(600):
            watched.link.loss = loss * noise.uniform(0.5, 1.5)
            states += watched.run(0.1, 1 * GBPS)
        assert len(changes(states)) <= 6, loss


def test_lanes_that_come_and_go_count_from_their_first_sample() -> None:
    """A new connection's counters add nothing by themselves, and one whose counters went back is a new one."""
    big = LaneSample(0.02, 0.02, 10**12, 0, 10**12, 0, True, 0)
    estimator = LinkEstimator()
    estimator.observe({1: big}, 0.0)
    assert estimator.observe({1: big, 2: big}, 0.1).delivered_bytes_per_s == 0
    again = replace(big, bytes_sent=10, bytes_acked=10)
    assert estimator.observe({1: again}, 0.2).delivered_bytes_per_s == 0
    assert (
        estimator.observe({1: replace(again, bytes_sent=3 * 10**6, bytes_acked=3 * 10**6)}, 0.3).retransmit_ratio == 0
    )
    assert estimator.state.delivered_bytes_per_s == pytest.approx(1e7, rel=0.01)
    assert estimator.observe({}, 0.3) is estimator.state
    assert estimator.observe({}, 0.4).rtt_s is None
    assert estimator.state.min_rtt_s == 0.02


@pytest.mark.parametrize(("rtt_s", "highest"), [(0.01, 2.0), (0.08, 1.4)])
def test_the_newest_rate_is_of_several_round_trips(rtt_s: float, highest: float) -> None:
    """Acknowledgements that come in every other look are no higher rate where the round trip is long."""
    estimator = LinkEstimator()
    rates = []
    for tick in range(20):
        acked = (tick // 2) * 2 * 10**6
        sample = LaneSample(rtt_s, rtt_s, acked, 0, acked, 0, False, 10**6)
        rates.append(estimator.observe({1: sample}, tick * 0.1).newest_bytes_per_s / 1e7)
    assert max(rates[10:]) == pytest.approx(highest, rel=0.05)


seconds = st.floats(0, 1e4)
counters = st.integers(0, 2**63)
lane_samples = st.builds(
    LaneSample, seconds, seconds, counters, counters, counters, counters, st.booleans(), counters, seconds, seconds,
)  # fmt: skip
looks = st.lists(st.tuples(st.floats(-1, 3), st.dictionaries(st.integers(0, 3), lane_samples, max_size=4)), max_size=30)


@given(looks)
def test_any_samples_give_figures_in_range(looks: list[tuple[float, dict[int, LaneSample]]]) -> None:
    """Counters going back, no round trips, lanes vanishing, time standing still: nothing raises, ratios are ratios."""
    estimator, now_s = LinkEstimator(), 50.0
    for pause_s, samples in looks:
        now_s += pause_s
        state = estimator.observe(samples, now_s)
        assert 0 <= state.retransmit_ratio <= 1
        assert state.utilization is None or 0 <= state.utilization <= 1
        assert state.rtt_ratio is None or state.rtt_ratio >= 1
        assert state.capacity_bytes_per_s is None or 0 < state.capacity_bytes_per_s < math.inf
        assert state.delivered_bytes_per_s >= 0 and state.unsent_bytes >= 0
        assert state.verdict_since_s <= state.at_s
        report = LinkReport.of(LinkSnapshot(state, 4, 0, 0), now_s)
        assert from_json(LinkReport, msgspec.json.encode(report)) == report, "every figure is within the contract"


@given(
    st.lists(
        st.dictionaries(st.integers(0, 7), st.tuples(st.integers(0, 200), seconds, seconds, st.booleans()), max_size=8),
        max_size=60,
    )
)
def test_an_idle_link_stays_clear(looks: list[dict[int, tuple[int, float, float, bool]]]) -> None:
    """Heartbeats, lanes that come and go, and any round trips: never anything but clear, and capacity stays unknown."""
    estimator = LinkEstimator()
    totals = dict.fromkeys(range(8), 10**9)
    for index, look in enumerate(looks):
        samples = {}
        for lane, (moved, rtt_s, min_rtt_s, limited) in look.items():
            totals[lane] += moved
            total = totals[lane]
            samples[lane] = LaneSample(rtt_s, min_rtt_s, total, moved, total, 10**9, limited, 0)
        state = estimator.observe(samples, index * 0.1)
        assert state.verdict is LinkVerdict.CLEAR
        assert state.verdict_since_s == 0
        assert state.capacity_bytes_per_s is None


@given(st.lists(st.sampled_from(["idle", "busy", "lossy"]), min_size=1, max_size=300))
def test_verdicts_rise_when_confirmed_and_fall_when_the_cause_is_long_away(causes: list[str]) -> None:
    """Up exactly when four looks in a row call for it; down to a level only after two seconds without more than it."""
    idle = Signs(0.0, 0, None, None, 0.0, 0.0, 0.0, False)
    signs = {
        "idle": idle,
        "busy": replace(idle, delivered_bytes_per_s=1e9, utilization=1.0),
        "lossy": replace(idle, delivered_bytes_per_s=1e9, retransmit_ratio=0.5, lossy_intervals=1.0),
    }
    levels = [list(signs).index(name) for name in causes]
    keeper = VerdictKeeper()
    for index, name in enumerate(causes):
        before = keeper.verdict
        keeper.update(signs[name], index * 0.1)
        confirmed = min(levels[index - 3 : index + 1]) if index >= 3 else 0
        assert keeper.verdict >= confirmed
        assert keeper.verdict <= max(before, confirmed)
        if keeper.verdict < before:
            assert max(levels[max(0, index - 19) : index + 1]) <= keeper.verdict
            assert keeper.since_s == index * 0.1
