"""From samples to orders, without sockets: chunk size, lanes, congestion control and pace of one link."""

from __future__ import annotations

import dataclasses

import pytest

from prfaas.core.link.congestion_trial import TRIAL_S
from prfaas.core.link.controller import LinkController, LinkOrders, LinkPlan
from prfaas.core.link.estimate import LaneSample
from prfaas.core.link.lane_plan import FIRST_CHUNK_BYTES, WIDEN_AFTER_S
from prfaas.core.link.pacing import MIN_RTT_S, PaceState
from prfaas.core.link.snapshot import LinkSnapshot
from prfaas.core.wire.node_api import LinkReport

GBIT = 125e6
TICK_S = 0.1
PLAN = LinkPlan(num_lanes=4, max_lanes=32, chunk_bytes=16 << 20, short_link_senders=1, trial=("bbr", "cubic"))


class Lanes:
    """Lanes of a link whose counters grow by what each delivers; orders are carried out as the shell does."""

    def __init__(self, plan: LinkPlan = PLAN, rtt_s: float = 0.02) -> None:
        self.plan = plan
        self.controller = LinkController(plan)
        self.rtt_s = rtt_s
        self.queue_s = 0.0
        self.now_s = 0.0
        self.samples: dict[int, LaneSample] = {}
        self.paces: dict[int, float | None] = {}
        self.next_connection = 100
        self.dial(plan.num_lanes)

    def dial(self, count: int) -> None:
        """Lanes are added until there are so many."""
        for place in range(len(self.samples), count):
            algorithm = self.controller.congestion_for(place, is_short=False)
            self.samples[self.next_connection] = LaneSample(
                self.rtt_s, self.rtt_s, 0, 0, 0, 0, False, 0, 0.0, 0.0, algorithm
            )
            self.next_connection += 1

    def look(self, rates: dict[str, float], *, loaded: bool = True) -> LinkOrders:
        """A tenth of a second later; `rates` by congestion control, bytes per second of one lane."""
        self.now_s += TICK_S
        for connection, before in self.samples.items():
            moved = int(rates[before.congestion] * TICK_S)
            self.samples[connection] = dataclasses.replace(
                before,
                rtt_s=self.rtt_s + self.queue_s,
                bytes_acked=before.bytes_acked + moved,
                bytes_sent=before.bytes_sent + moved,
                unsent_bytes=1 << 19 if loaded else 0,
                busy_s=before.busy_s + (TICK_S if loaded else 0.0),
            )
        orders = self.controller.look(self.samples, len(self.samples), self.now_s)
        self.paces |= orders.pace_by_lane
        for connection, name in orders.congestion_by_lane.items():
            self.samples[connection] = dataclasses.replace(self.samples[connection], congestion=name)
        self.dial(orders.lanes)
        return orders


def same(rate: float) -> dict[str, float]:
    """Both algorithms deliver as much."""
    return {"bbr": rate, "cubic": rate}


def test_chunks_follow_what_the_link_carries() -> None:
    """1 MiB until it is known, then 80 ms of a lane's share, a power of two; without a limit on who sends."""
    lanes = Lanes()
    first = lanes.look(same(0.0), loaded=False)
    assert (first.chunk_bytes, first.senders, first.send_limit) == (FIRST_CHUNK_BYTES, 4, None)
    for _ in range(15):
        orders = lanes.look(same(2 * GBIT / 4))
    assert lanes.controller.state.capacity_bytes_per_s == pytest.approx(2 * GBIT)
    assert orders.chunk_bytes == 4 << 20


def test_few_senders_and_no_pace_on_a_short_link() -> None:
    """Where processors are the limit: the largest chunks, one sender, no trial and no rate."""
    lanes = Lanes(rtt_s=MIN_RTT_S / 2)
    for _ in range(60):
        orders = lanes.look(same(GBIT))
        assert (orders.send_limit, orders.senders, orders.chunk_bytes) == (1, 1, PLAN.chunk_bytes)
        assert orders.congestion_by_lane == {}
    assert lanes.paces == {}
    assert lanes.controller.congestion_for(0, is_short=True) == "cubic"


def test_the_better_congestion_control_is_told_once_to_every_lane() -> None:
    """After three seconds of load; lanes that are dialled later use it too."""
    lanes = Lanes(dataclasses.replace(PLAN, max_lanes=4))
    told = [lanes.look({"bbr": GBIT / 4, "cubic": GBIT}).congestion_by_lane for _ in range(60)]
    (orders,) = [by_lane for by_lane in told if by_lane]
    assert orders == dict.fromkeys(lanes.samples, "cubic")
    assert told.index(orders) * TICK_S >= TRIAL_S
    assert [lanes.controller.congestion_for(place, is_short=False) for place in range(2)] == ["cubic", "cubic"]


def test_lanes_are_added_while_their_windows_are_the_limit() -> None:
    """Loaded, without a queue, without a rate: six after a second and a half, nine after another; up to the limit."""
    lanes = Lanes(dataclasses.replace(PLAN, max_lanes=10))
    counts = [lanes.look(same(GBIT / 10)).lanes for _ in range(100)]
    assert sorted(set(counts)) == [4, 6, 9, 10]
    assert counts.index(6) * TICK_S >= WIDEN_AFTER_S
    assert (counts.index(9) - counts.index(6)) * TICK_S >= WIDEN_AFTER_S - TICK_S


@pytest.mark.parametrize("why", ["a queue", "an idle application", "a lane that is down"])
def test_lanes_are_not_added_otherwise(why: str) -> None:
    """The link is full, nothing waits, or not all lanes that there are can be judged."""
    lanes = Lanes()
    lanes.queue_s = 0.05 if why == "a queue" else 0.0
    if why == "a lane that is down":
        del lanes.samples[100]
        lanes.dial = lambda count: None  # type: ignore[method-assign]
    for _ in range(round(2 * WIDEN_AFTER_S / TICK_S) if why != "a queue" else 20):
        assert lanes.look(same(GBIT / 10), loaded=why != "an idle application").lanes == 4


def test_a_rate_is_shared_evenly_and_told_only_when_it_changes() -> None:
    """A link that pushes back: each lane gets its share, and a new lane its own at the next look."""
    lanes = Lanes(dataclasses.replace(PLAN, max_lanes=4))
    for _ in range(12):
        lanes.look(same(2 * GBIT / 4))
    assert lanes.paces == {}, "no rate, and nobody was told that there is none"
    lanes.queue_s = 0.02
    lanes.look(same(2 * GBIT / 4))
    rate = lanes.controller.paced_bytes_per_s
    assert rate is not None
    assert lanes.controller.pace_state is PaceState.DRAINING
    assert lanes.paces == dict.fromkeys(lanes.samples, rate / 4)
    lanes.queue_s = 0.0
    lanes.look(same(0.0), loaded=False)
    assert lanes.look(same(0.0), loaded=False).pace_by_lane == {}
    gone = min(lanes.samples)
    del lanes.samples[gone]
    lanes.dial(4)
    (new,) = lanes.look(same(0.0), loaded=False).pace_by_lane
    assert new == max(lanes.samples)


def test_without_pacing_nothing_is_paced_and_no_lane_added() -> None:
    """The operator's wish."""
    lanes = Lanes(dataclasses.replace(PLAN, paced=False))
    lanes.queue_s = 0.05
    for _ in range(60):
        assert lanes.look(same(GBIT / 10)).lanes == 4
    assert lanes.paces == {}


def test_a_report_has_what_waits_beside_the_state() -> None:
    """In words and ages, as docs/protocols.md has it."""
    report = LinkReport.of(LinkSnapshot(LinkController(PLAN).state, lanes_up=3, queued_bytes=7, num_transfers=2), 1.0)
    assert (report.lanes_up, report.queued_bytes, report.num_transfers) == (3, 7, 2)
    assert report.verdict == "clear"
