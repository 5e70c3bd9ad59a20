"""The pacer on a fluid model of a link: a rate, a base round trip, a queue, and sometimes someone else."""

from __future__ import annotations

import math
import random
from collections import deque
from dataclasses import dataclass, field

import pytest

from prfaas.core.link.estimate import LinkState, newest_windows_s
from prfaas.core.link.pacing import MIN_RTT_S, TRANSITIONS, Pacer, PaceSign, PaceState

TICK_S = 0.1
STEP_S = 0.005
GBIT = 125e6


@dataclass
class FluidLink:
    """Bytes as a fluid. The sender offers `pacer.bytes_per_s` while loaded (without a rate: 1.3 of the link); `other` is
    another's demand: it grows by a tenth of the link a second and, if
    `other_backs_off`, halves when bytes are lost, as TCP does. `min_rtt_s` is what the handshake saw. Beyond `queue_limit_s` of queue bytes are lost and sent again."""

    rate: float
    rtt_s: float
    queue_limit_s: float = 0.1
    loss: float = 0.0
    other: float = 0.0
    other_backs_off: bool = False
    pacer: Pacer = field(default_factory=Pacer)
    now_s: float = 0.0
    queue: float = 0.0
    window: deque[tuple[float, float, float]] = field(default_factory=lambda: deque(maxlen=int(0.5 / STEP_S)))
    rtts: list[float] = field(default_factory=list)
    goodput: list[float] = field(default_factory=list)
    resent: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.min_rtt_s = self.rtt_s

    def run(self, seconds: float, *, loaded: bool = True, rng: random.Random | None = None) -> None:
        """Advance; the pacer is asked every 100 ms."""
        for step in range(int(seconds / STEP_S)):
            paced = self.pacer.bytes_per_s
            mine = (self.rate * 1.3 if paced is None else paced) if loaded else 0.0
            offered = (mine + self.other) * STEP_S
            sent_through = min(self.queue + offered, self.rate * STEP_S)
            self.queue += offered - sent_through
            dropped = max(0.0, self.queue - self.queue_limit_s * self.rate)
            self.queue -= dropped
            if self.other and self.other_backs_off:
                self.other = self.other / 2 if dropped else self.other + 0.1 * self.rate * STEP_S
            share = mine / (mine + self.other) if mine else 0.0
            lost = (dropped + sent_through * self.loss) * share
            through = sent_through * share * (1 - self.loss)
            self.window.append((through, mine * STEP_S, lost))
            self.now_s += STEP_S
            if (step + 1) % int(TICK_S / STEP_S) == 0:
                self._tick(loaded, rng)

    def _tick(self, loaded: bool, rng: random.Random | None) -> None:
        noise = 1.0 + (rng.uniform(0.0, 0.03) if rng else 0.0)
        rtt_s = (self.rtt_s + self.queue / self.rate) * noise
        self.min_rtt_s = min(self.min_rtt_s, rtt_s)
        through, sent, lost = (sum(part[i] for part in self.window) for i in range(3))
        seconds = len(self.window) * STEP_S
        delivered = through / seconds
        self.rtts.append(rtt_s)
        self.goodput.append(sum(part[0] for part in list(self.window)[-int(TICK_S / STEP_S) :]) / TICK_S)
        self.resent.append(lost / sent if sent else 0.0)
        state = LinkState(
            self.now_s,
            capacity_bytes_per_s=delivered or None,
            delivered_bytes_per_s=delivered,
            newest_bytes_per_s=max(map(self._newest, newest_windows_s(self.rtt_s))),
            rtt_s=rtt_s,
            min_rtt_s=self.min_rtt_s,
            retransmit_ratio=self.resent[-1],
            limited_s=1.0 if loaded else 0.0,
        )
        self.pacer.update(state, self.now_s)

    def _newest(self, seconds: float) -> float:
        ticks = self.goodput[-round(seconds / TICK_S) :]
        return sum(ticks) / len(ticks)

    def last(self, series: list[float], seconds: float) -> list[float]:
        """The newest values of a series, sorted."""
        return sorted(series[-int(seconds / TICK_S) :])

    def median(self, series: list[float], seconds: float) -> float:
        """Of the last seconds."""
        part = self.last(series, seconds)
        return part[len(part) // 2]


@pytest.mark.parametrize("rtt_s", [0.005, 0.02, 0.08, 0.2])
@pytest.mark.parametrize("gbps", [0.1, 2, 100])
def test_full_link_and_empty_queue(rtt_s: float, gbps: float) -> None:
    """Under full load nearly all of the link is used, the queue is short and nothing is lost."""
    link = FluidLink(gbps * GBIT, rtt_s)
    link.run(12, rng=random.Random(1))
    assert sum(link.last(link.goodput, 8)) / 80 > 0.97 * link.rate
    assert link.median(link.rtts, 8) < 1.2 * rtt_s + 0.001
    assert max(link.last(link.resent, 8)) == 0


@pytest.mark.parametrize("rtt_s", [0.02, 0.08])
def test_follows_a_link_down_and_up(rtt_s: float) -> None:
    """Two seconds after a step the rate is within a tenth of what the link is now."""
    link = FluidLink(2 * GBIT, rtt_s)
    link.run(6)
    link.rate = 0.5 * GBIT
    link.run(2)
    assert link.goodput[-1] == pytest.approx(0.5 * GBIT, rel=0.1)
    # What is four times too much counts as a neighbour's at first, and TCP is left alone for five seconds.
    link.run(12)
    assert link.median(link.rtts, 2) < 1.25 * rtt_s
    link.rate = 2 * GBIT
    link.run(2)
    assert link.goodput[-1] == pytest.approx(2 * GBIT, rel=0.1)


def test_random_loss_does_not_slow_it() -> None:
    """A loss that sending less does not change is not congestion, not even five in a hundred."""
    for loss in (0.0001, 0.001, 0.05):
        link = FluidLink(2 * GBIT, 0.02, loss=loss)
        link.run(15)
        assert sum(link.last(link.goodput, 8)) / 80 > 0.93 * (1 - loss) * link.rate


def test_a_longer_path_is_not_a_queue_for_ever() -> None:
    """A route that became 100 ms longer costs a few seconds of slowness, not the link."""
    link = FluidLink(2 * GBIT, 0.02)
    link.run(6)
    link.rtt_s = 0.12
    link.run(12)
    assert sum(link.last(link.goodput, 6)) / 60 > 0.93 * link.rate


def test_it_holds_its_own_against_a_greedy_neighbour() -> None:
    """One who fills the queue until bytes are lost, as TCP does, does not starve us, and is not starved."""
    link = FluidLink(2 * GBIT, 0.02, queue_limit_s=0.03, other_backs_off=True)
    link.run(6)
    link.other = 0.1 * GBIT
    link.run(30)
    mine = sum(link.last(link.goodput, 20)) / 200 / link.rate
    assert 0.3 < mine < 0.9
    link.other = 0.0
    link.run(8)
    assert sum(link.last(link.goodput, 3)) / 30 > 0.95 * link.rate
    assert link.median(link.rtts, 3) < 1.25 * 0.02


def test_it_takes_what_an_unyielding_neighbour_leaves() -> None:
    """Against a constant stream nothing is won by filling the queue."""
    link = FluidLink(2 * GBIT, 0.02)
    link.run(6)
    link.other = 1.5 * GBIT
    link.run(20)
    assert sum(link.last(link.goodput, 8)) / 80 > 0.9 * 0.5 * GBIT


def test_an_idle_application_changes_nothing() -> None:
    """Having little to send says nothing about the link."""
    link = FluidLink(2 * GBIT, 0.02)
    link.run(5)
    before = link.pacer.bytes_per_s
    link.run(30, loaded=False)
    assert link.pacer.bytes_per_s == before


def test_short_links_are_not_paced() -> None:
    """Within a building there is no rate at all."""
    link = FluidLink(10 * GBIT, MIN_RTT_S / 2)
    link.run(5)
    assert link.pacer.bytes_per_s is None


def test_a_rate_that_was_never_used_is_nothing_to_yield_from() -> None:
    """A rate far over the link falls below the link at once: the queue is ours, and nobody is suspected of it."""
    link = FluidLink(1.88 * GBIT, 0.02)
    link.run(6)
    link.pacer.bytes_per_s = 3.4 * GBIT
    rates = []
    for _ in range(30):
        link.run(TICK_S)
        rates.append(link.pacer.bytes_per_s)
    assert None not in rates
    assert link.median(link.rtts, 1.5) < 1.25 * 0.02


def test_a_pause_ends_a_time_of_sending_less() -> None:
    """A transfer that ends while the queue is being emptied leaves the next one nearly all of the link."""
    link = FluidLink(2 * GBIT, 0.08)
    link.run(6)
    while (link.pacer.bytes_per_s or math.inf) > 0.95 * link.rate:
        link.run(TICK_S)
    link.run(1, loaded=False)
    assert (link.pacer.bytes_per_s or 0.0) > 0.97 * link.rate


@pytest.mark.parametrize("seed", range(40))
def test_every_step_is_in_the_table(seed: int) -> None:
    """Whatever the link, its neighbours and the application do, each look leads along a row of it; there is a rate in
    the states that have one and in no other."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    link = FluidLink(
        rng.choice([0.1, 2, 100]) * GBIT,
        rng.choice([0.0005, 0.005, 0.02, 0.2]),
        queue_limit_s=rng.choice([0.01, 0.1, 0.3]),
        loss=rng.choice([0, 0.001, 0.05]),
        other_backs_off=rng.random() < 0.5,
    )
    for _ in range(40):
        link.other = rng.choice([link.other, 0.0, 0.5 * link.rate, 0.9 * link.rate])
        link.rtt_s *= rng.choice([1, 1, 1, 0.5, 2])
        loaded = rng.random() < 0.8
        for _ in range(rng.randrange(1, 20)):
            before = link.pacer.state
            link.run(TICK_S, loaded=loaded, rng=rng)
            after = link.pacer.state
            assert after in TRANSITIONS[before].values()
            unlimited = after in (PaceState.UNPACED, PaceState.COMPETING)
            assert (link.pacer.bytes_per_s is None) == unlimited


def test_every_state_is_reached_and_left() -> None:
    """A queue that is nobody's leads through all five; a link without lanes has no rate, whatever it was doing."""
    link = FluidLink(2 * GBIT, 0.02)
    seen = {link.pacer.state}
    for step in range(300):
        link.other = 0.9 * link.rate if step > 60 else 0.0
        link.run(TICK_S)
        seen.add(link.pacer.state)
    assert seen == set(PaceState)
    for state, by_sign in TRANSITIONS.items():
        assert by_sign[PaceSign.EXEMPT] is PaceState.UNPACED
        assert any(after is not state for sign, after in by_sign.items() if sign is not PaceSign.EXEMPT)


def test_a_pause_while_tcp_competes_ends_without_a_probe() -> None:
    """The next transfer must not begin at a low rate to find out about a queue that is long gone."""
    link = FluidLink(2 * GBIT, 0.02)
    link.run(6)
    link.other = 0.9 * link.rate
    for _ in range(50):
        if link.pacer.state is not PaceState.COMPETING:
            link.run(TICK_S)
    assert link.pacer.state is PaceState.COMPETING
    link.other = 0.0
    link.run(10, loaded=False)
    assert link.pacer.state is PaceState.UNPACED
    states = []
    for _ in range(20):
        link.run(TICK_S)
        states.append(link.pacer.state)
    assert PaceState.PROBING not in states
