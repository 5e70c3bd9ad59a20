"""The bottleneck, the way, and who passes when, in time that is an argument."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prfaas.wan.bucket import BUSY_BURST_S, Bucket, Turns
from prfaas.wan.line import MAX_QUANTUM, Flow, Line, Way
from prfaas.wan.settings import LinkSettings

MB = 1e6


class Rig:
    """A line with flows whose senders fill all the room that they have."""

    def __init__(self, num_flows: int, link: LinkSettings, seed: int = 0) -> None:
        self.link = link
        self.line = Line(link, random.Random(seed), 0.0)
        self.way = Way(link, random.Random(seed))
        self.flows = [self.line.open(self.way, 0.0) for _ in range(num_flows)]
        self.delivered = dict.fromkeys(self.flows, 0)
        self.offered = dict.fromkeys(self.flows, 0)
        self.now_s = 0.0

    def fill(self, flow: Flow) -> None:
        room = self.line.room(flow)
        if room:
            self.line.offer(flow, room, self.now_s)
            self.offered[flow] += room

    def look(self) -> None:
        for flow in self.line.step(self.now_s):
            self.delivered[flow] += flow.arrived
            self.line.delivered(flow, flow.arrived)

    def run(self, until_s: float, *, every_s: float = 0.002, senders: list[Flow] | None = None) -> None:
        while self.now_s < until_s:
            self.now_s += every_s
            for flow in self.flows if senders is None else senders:
                self.fill(flow)
            self.look()

    def change(self, **values: object) -> None:
        self.link = replace(self.link, **values)
        self.way.settings = self.link
        self.line.change(self.link, self.now_s)


@given(
    rate=st.floats(1e3, 1e9),
    looks=st.lists(st.tuples(st.floats(0, 0.2), st.integers(0, 10**8)), max_size=40),
)
def test_never_more_than_rate_and_burst(rate: float, looks: list[tuple[float, int]]) -> None:
    """Within any stretch of time, however irregularly somebody looks."""
    bucket, now_s, taken = Bucket(rate, 0.0), 0.0, [(0.0, 0)]
    for pause_s, wanted in looks:
        now_s += pause_s
        count = min(wanted, bucket.available(now_s) or 0)
        bucket.take(count)
        taken.append((now_s, taken[-1][1] + count))
    most = max(1.0, rate * BUSY_BURST_S)
    for index, (from_s, before) in enumerate(taken):
        for to_s, after in taken[index:]:
            assert after - before <= rate * (to_s - from_s) + most + 1


@given(st.data())
def test_turns_are_equal_whoever_came_first(data: st.DataObject) -> None:
    """Those that always have something waiting pass equal numbers of bytes, but for a quantum; all that may pass does."""
    turns: Turns[int] = Turns()
    num, quantum = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 5000))
    passed = dict.fromkeys(range(num), 0)
    for key in range(num):
        turns.add(key, data.draw(st.integers(10**6, 10**7)))
    for budget in data.draw(st.lists(st.integers(0, 20_000), max_size=40)):
        served = turns.serve(budget, quantum)
        assert sum(served.values()) == budget
        for key, count in served.items():
            passed[key] += count
    assert max(passed.values()) - min(passed.values()) <= quantum


@settings(max_examples=60)
@given(
    operations=st.lists(
        st.tuples(
            st.sampled_from(["add", "serve", "pause", "resume", "remove"]), st.integers(0, 3), st.integers(1, 9000)
        ),
        max_size=60,
    )
)
def test_turns_lose_and_invent_nothing(operations: list[tuple[str, int, int]]) -> None:
    """Whatever happens to flows, what was added has passed, or waits, or was forgotten; paused flows pass nothing."""
    turns: Turns[int] = Turns()
    waiting, paused = dict.fromkeys(range(4), 0), set()
    for operation, key, count in operations:
        match operation:
            case "add":
                turns.add(key, count)
                waiting[key] += count
            case "serve":
                served = turns.serve(count, 1000)
                ready = sum(num for other, num in waiting.items() if other not in paused)
                assert sum(served.values()) == min(count, ready)
                assert not paused & served.keys()
                for other, num in served.items():
                    waiting[other] -= num
            case "pause":
                turns.pause(key)
                paused.add(key)
            case "resume":
                turns.resume(key)
                paused.discard(key)
            case "remove":
                turns.remove(key)
                waiting[key] = 0
                paused.discard(key)
        assert {other: turns.waiting(other) for other in range(4)} == waiting
        assert turns.ready_bytes == sum(num for other, num in waiting.items() if other not in paused)


@pytest.mark.parametrize("rate", [0.1 * MB, 10 * MB, 100 * MB, 1000 * MB])
@pytest.mark.parametrize("num", [1, 3, 8])
def test_a_full_link_carries_its_rate_in_equal_shares(rate: float, num: int) -> None:
    """Within a second, after the first bytes have crossed; also if one sender begins later."""
    rig = Rig(num, LinkSettings(rate, rtt=0.02))
    rig.run(1.0, senders=rig.flows[:1])
    rig.run(1.2)
    before = dict(rig.delivered)
    rig.run(3.2)
    moved = [rig.delivered[flow] - before[flow] for flow in rig.flows]
    assert sum(moved) == pytest.approx(2 * rate, rel=0.01)
    assert max(moved) - min(moved) <= max(MAX_QUANTUM, 0.02 * rate)


def test_a_late_look_is_made_up_for() -> None:
    """On a machine with other work: whoever is woken every 20 ms still gets the rate."""
    rig = Rig(2, LinkSettings(100 * MB))
    rig.run(2.0, every_s=0.02)
    assert sum(rig.delivered.values()) == pytest.approx(200 * MB, rel=0.03)


def test_bytes_arrive_half_a_round_trip_later() -> None:
    """And the line says when to look."""
    rig = Rig(1, LinkSettings(10 * MB, rtt=0.05))
    (flow,) = rig.flows
    rig.look()
    rig.line.offer(flow, 1000, 0.0)
    rig.now_s = rig.line.next_s(0.0) or 0.0
    rig.look()
    due_s = rig.line.next_s(rig.now_s)
    assert due_s == pytest.approx(rig.now_s + 0.025)
    rig.now_s = due_s - 1e-6
    rig.look()
    assert not rig.delivered[flow]
    rig.now_s = due_s
    rig.look()
    assert rig.delivered[flow] == 1000
    assert rig.line.next_s(rig.now_s) is None


def test_the_first_byte_waits_for_the_handshake() -> None:
    """A connection that is being made carries nothing."""
    rig = Rig(0, LinkSettings(10 * MB, rtt=0.1))
    flow = rig.line.open(rig.way, 0.1)
    rig.flows, rig.delivered, rig.offered = [flow], {flow: 0}, {flow: 0}
    rig.run(0.148)
    assert not rig.delivered[flow]
    rig.run(0.16)
    assert rig.delivered[flow]


def test_what_is_held_is_bounded() -> None:
    """A sender feels the link: rate × rtt and the queue are all that it can be rid of. Nobody takes anything here."""
    rig = Rig(4, LinkSettings(100 * MB, rtt=0.02, queue=0.05))
    for _ in range(2000):
        rig.now_s += 0.001
        for flow in rig.flows:
            rig.fill(flow)
        rig.line.step(rig.now_s)
    assert max(flow.held_bytes for flow in rig.flows) <= 100 * MB * (0.02 + 0.05)
    assert rig.line.queue_bytes <= 100 * MB * 0.05 * 2.1  # shares were cut while fewer waited


def test_a_queue_is_as_long_as_it_is_asked_to_be() -> None:
    """Shared by those that wait."""
    rig = Rig(5, LinkSettings(100 * MB, rtt=0.02, queue=0.03))
    rig.run(1.0)
    assert rig.line.queue_bytes <= 100 * MB * 0.03 * 1.01


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), jitter=st.floats(0, 0.05), stalls=st.floats(0, 0.5))
def test_order_is_kept(seed: int, jitter: float, stalls: float) -> None:
    """Whatever jitter and stalls do, times at which a flow's bytes arrive never decrease, and none is lost."""
    rig = Rig(3, LinkSettings(5 * MB, rtt=0.04, jitter=jitter, stalls_per_mb=stalls), seed)
    due: dict[Flow, float] = dict.fromkeys(rig.flows, 0.0)
    while rig.now_s < 0.5:
        rig.run(rig.now_s + 0.002)
        for flow in rig.flows:
            times = [at_s for at_s, _ in flow.on_the_way]
            assert times == sorted(times)
            assert not times or times[0] >= due[flow]
            due[flow] = times[0] if times else due[flow]
    for flow in rig.flows:
        rig.line.end(flow, rig.now_s)
    rig.run(rig.now_s + 5, every_s=0.02, senders=[])
    assert rig.delivered == rig.offered
    assert all(flow.has_ended for flow in rig.flows)
    assert rig.line.held_bytes == 0


def test_jitter_is_about_the_mean() -> None:
    """Up to so much more or less, never before it was sent."""
    way = Way(LinkSettings(rtt=0.02, jitter=0.004), random.Random(1))
    delays = [way.delay_s(at * 0.02) for at in range(1, 2000)]
    assert 0.006 <= min(delays) < 0.0065
    assert 0.0135 < max(delays) <= 0.014
    assert sum(delays) / len(delays) == pytest.approx(0.01, abs=0.0003)
    assert min(Way(LinkSettings(rtt=0.0, jitter=0.01), random.Random(1)).delay_s(at) for at in range(50)) == 0


def test_stalls_come_as_often_as_asked_and_last_for_a_timeout() -> None:
    """Per MB, and per second of use; the others have the bandwidth meanwhile. The same seed, the same stalls."""
    by_volume = Rig(8, LinkSettings(100 * MB, rtt=0.02, stalls_per_mb=0.02), 3)
    by_volume.run(20.0, every_s=0.01)
    assert 25 <= by_volume.line.num_stalls <= 60  # 40 are expected
    assert sum(by_volume.delivered.values()) == pytest.approx(2000 * MB, rel=0.03)
    by_time = Rig(8, LinkSettings(100 * MB, rtt=0.02, stalls_per_s=2.0), 3)
    by_time.run(20.0, every_s=0.01)
    assert 25 <= by_time.line.num_stalls <= 60
    again = Rig(8, LinkSettings(100 * MB, rtt=0.02, stalls_per_s=2.0), 3)
    again.run(20.0, every_s=0.01)
    assert list(again.delivered.values()) == list(by_time.delivered.values())
    alone = Rig(1, LinkSettings(100 * MB, rtt=0.2, stalls_per_mb=1000.0))
    alone.run(0.2)
    before = sum(alone.delivered.values())
    alone.run(0.38, senders=[])
    assert sum(alone.delivered.values()) == before  # 2 × rtt is longer than 200 ms


def test_stalls_per_second_count_use_only() -> None:
    """A link that was idle for an hour does not begin with a stall."""
    rig = Rig(1, LinkSettings(100 * MB, stalls_per_s=0.01), 5)
    rig.run(0.1)
    rig.now_s = 3600.0
    rig.run(3600.5)
    assert rig.line.num_stalls == 0


def test_what_is_held_back_goes_on_where_it_was() -> None:
    """A flow that is held passes and delivers nothing, the others have its share; then nothing of it is lost."""
    rig = Rig(2, LinkSettings(10 * MB, rtt=0.02))
    rig.run(0.5)
    held, other = rig.flows
    rig.line.hold(held)
    before = dict(rig.delivered)
    rig.run(1.5)
    assert rig.delivered[held] == before[held]
    assert rig.delivered[other] - before[other] == pytest.approx(10 * MB, rel=0.05)
    rig.line.release(held, rig.now_s)
    rig.run(2.5)
    assert rig.delivered[held] - before[held] == pytest.approx(5 * MB, rel=0.1)


def test_an_end_follows_the_last_byte() -> None:
    """Also if the receiver is slow, or if there was no byte at all."""
    rig = Rig(2, LinkSettings(10 * MB, rtt=0.02))
    flow, silent = rig.flows
    rig.line.step(0.0)
    rig.line.offer(flow, 5000, 0.0)
    rig.line.end(flow, 0.0)
    rig.line.end(silent, 0.0)
    ended = []
    for tick in range(1, 60):
        ended += [(other, tick) for other in rig.line.step(tick * 0.001) if other.has_ended]
    assert {other for other, _ in ended} == {flow, silent}
    assert min(tick for _, tick in ended) >= 10
    assert flow.arrived == 5000
    rig.line.close(flow)
    assert rig.line.held_bytes == 0


def test_a_changed_rate_holds_at_once() -> None:
    """Both ways, and no limit is one."""
    rig = Rig(3, LinkSettings(100 * MB, rtt=0.02))
    rig.run(1.0)
    rig.change(bandwidth=10 * MB)
    rig.run(1.5)  # what was waiting drains
    before = sum(rig.delivered.values())
    rig.run(2.5)
    assert sum(rig.delivered.values()) - before == pytest.approx(10 * MB, rel=0.02)
    rig.change(bandwidth=None)
    before = sum(rig.delivered.values())
    rig.run(2.6)
    assert sum(rig.delivered.values()) - before > 40 * MB
    rig.change(bandwidth=1.0)
    rig.run(4.0)
    before = sum(rig.delivered.values())
    rig.run(14.0, every_s=0.1)
    assert 5 <= sum(rig.delivered.values()) - before <= 15


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), cuts=st.lists(st.integers(1, 5000), max_size=20))
def test_bits_flip_by_the_seed_however_bytes_are_read(seed: int, cuts: list[int]) -> None:
    """Each flip changes one bit of one byte, and is counted."""

    def flipped(sizes: list[int]) -> tuple[bytes, int]:
        line = Line(LinkSettings(1e6, flips_per_mb=500.0), random.Random(seed), 0.0)
        came, at = bytearray(50_000), 0
        for size in [*sizes, len(came)]:
            line.flip(memoryview(came)[at : at + size])
            at += size
        return bytes(came), line.num_flips

    damaged, num_flips = flipped(cuts)
    assert (damaged, num_flips) == flipped([])
    assert sum(byte.bit_count() for byte in damaged) == num_flips
    assert max(byte.bit_count() for byte in damaged) <= 1


def test_no_bit_flips_unasked_and_as_many_as_asked() -> None:
    """On the average: a hundred in a megabyte."""
    line, came = Line(LinkSettings(1e6), random.Random(1), 0.0), bytearray(1_000_000)
    line.flip(memoryview(came))
    assert not any(came)
    line.change(LinkSettings(1e6, flips_per_mb=100.0), 0.0)
    line.flip(memoryview(came))
    assert 60 < line.num_flips < 140
