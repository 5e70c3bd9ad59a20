"""What a way costs, against queues whose waiting is known."""

from __future__ import annotations

import heapq
import random

import pytest

from prfaas.core.control.options import MAX_LOAD, cheapest, delay_to_others_s, told, wait_s
from prfaas.core.control.route import MAX_TOLD, Option, RouteKind
from prfaas.core.control.standing import Backlog


def waited_s(rng: random.Random, rate_rps: float, queued_s: float, until_s: float) -> float:
    """All waiting in an M/G/1 queue, two service times, that begins with `queued_s` of work."""
    now_s = total_s = 0.0
    while True:
        gap_s = rng.expovariate(rate_rps)
        now_s += gap_s
        if now_s > until_s:
            return total_s
        queued_s = max(0.0, queued_s - gap_s)
        total_s += queued_s
        queued_s += rng.choice((0.5, 1.5))


def test_what_work_adds_to_the_waiting_of_others() -> None:
    """Two queues with the same arrivals, one with a prompt more: the difference is the formula's, within 5%."""
    rate_rps, queued_s, work_s = 0.6, 2.0, 3.0
    differences = []
    for seed in range(4_000):
        with_it = waited_s(random.Random(seed), rate_rps, queued_s + work_s, 60.0)
        without = waited_s(random.Random(seed), rate_rps, queued_s, 60.0)
        differences.append(with_it - without)
    expected = delay_to_others_s(rate_rps, rate_rps * 1.0, queued_s, work_s)
    assert sum(differences) / len(differences) == pytest.approx(expected, rel=0.05)


def test_a_full_queue_has_a_price_all_the_same() -> None:
    """Beyond full there is no steady state; the price stays finite and still rises with the work."""
    assert delay_to_others_s(1.0, 3.0, 5.0, 1.0) == delay_to_others_s(1.0, MAX_LOAD, 5.0, 1.0)
    assert delay_to_others_s(1.0, 3.0, 5.0, 2.0) > 2 * delay_to_others_s(1.0, 3.0, 5.0, 1.0)
    assert delay_to_others_s(0.0, 0.0, 5.0, 1.0) == 0.0


def test_the_wait_behind_a_queue_is_what_it_will_be() -> None:
    """Against instances that really serve it, on average within a twentieth."""
    rng = random.Random(5)
    expected, real = 0.0, 0.0
    for _ in range(2_000):
        num = rng.randint(1, 6)
        remaining = [rng.uniform(0.0, 2.0) for _ in range(num)]
        waiting = [rng.uniform(0.5, 1.5) for _ in range(rng.randint(0, 12))]
        free = list(remaining)
        heapq.heapify(free)
        for seconds in waiting:
            heapq.heappush(free, heapq.heappop(free) + seconds)
        real += free[0]
        expected += wait_s(Backlog(len(remaining), min(remaining), sum(remaining)), sum(waiting), 0.5)
    assert expected == pytest.approx(real, rel=0.05)


def test_of_many_ways_the_cheapest_are_told() -> None:
    """In their order, and with the one that was chosen; of few ways all."""
    rng = random.Random(1)
    ways = [
        Option(RouteKind.REMOTE, f"w{n}", "p", "", 100, 100, float(rng.randrange(200)), 1.0, 0.0, 0.0)
        for n in range(440)
    ]
    kept = told(ways, cheapest(ways))
    assert kept[: MAX_TOLD - 1] == tuple(way for way in ways if way in kept)[: MAX_TOLD - 1]
    assert sorted(way.cost_s for way in kept) == sorted(way.cost_s for way in ways)[:MAX_TOLD]
    assert any(way is cheapest(ways) for way in kept)
    dearest = max(ways, key=lambda way: way.cost_s)
    assert dearest in told(ways, dearest)
    assert len(told(ways, dearest)) == MAX_TOLD
    assert told(ways[:MAX_TOLD], ways[0]) == tuple(ways[:MAX_TOLD])
