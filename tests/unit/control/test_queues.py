"""Who waits, in which order."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas.core.control.queues import Queue


def test_of_one_tenant_who_comes_first_is_first() -> None:
    """However long their prompts are."""
    queue = Queue()
    for index in range(5):
        queue.push(f"r{index}", 5.0 - index)
    queue.remove("r2")
    queue.remove("r2")
    assert list(queue) == ["r0", "r1", "r3", "r4"]
    assert list(queue.ahead()) == [("r0", 0.0), ("r1", 5.0), ("r3", 9.0), ("r4", 11.0)]
    assert queue.waiting_s == pytest.approx(12.0)


def test_a_flood_of_one_tenant_does_not_hold_another_up() -> None:
    """The other's first prompt comes after what is being served, not after the flood; then they take turns."""
    queue = Queue()
    for index in range(20):
        queue.push(f"flood{index}", 1.0, tenant="a")
    for index in range(3):
        queue.push(f"other{index}", 1.0, tenant="b")
    served = []
    for _ in range(6):
        served.append(queue.first or "")
        queue.remove(served[-1])
    assert served == ["flood0", "other0", "flood1", "other1", "flood2", "other2"]


def test_shares_are_of_time_not_of_requests() -> None:
    """A tenant with prompts that take four times as long gets a quarter as many."""
    queue, rng = Queue(), random.Random(3)
    for index in range(400):
        queue.push(f"long{index}", 4.0, tenant="a")
        queue.push(f"short{index}", 1.0, tenant="b")
    seconds = {"long": 0.0, "short": 0.0}
    for _ in range(200):
        first = queue.first or ""
        queue.remove(first)
        seconds["long" if first.startswith("long") else "short"] += 4.0 if first.startswith("long") else 1.0
        rng.random()
    assert seconds["long"] == pytest.approx(seconds["short"], rel=0.1)


def test_who_is_not_served_costs_its_tenant_nothing() -> None:
    """A hundred prompts that went elsewhere do not put the next one behind everybody."""
    queue = Queue()
    queue.push("served", 1.0, tenant="b")
    for index in range(100):
        queue.push(f"gone{index}", 1.0, tenant="a")
        queue.remove(f"gone{index}", is_served=False)
    for index in range(3):
        queue.push(f"b{index}", 1.0, tenant="b")
    queue.push("a", 1.0, tenant="a")
    assert list(queue) == ["served", "a", "b0", "b1", "b2"]


def test_tenants_that_come_once_are_forgotten() -> None:
    """Whoever may send any key cannot fill the memory."""
    queue = Queue()
    queue.push("stays", 1e9, priority=9)
    for index in range(5_000):
        queue.push(f"r{index}", 1.0, tenant=f"t{index}")
        queue.remove(f"r{index}")
        queue.push(f"s{index}", 1e-9, tenant="s")
        queue.remove(f"s{index}")
    assert len(queue._asked_s) < 3_000


def test_priority_goes_before_fairness() -> None:
    """Lower numbers first."""
    queue = Queue()
    queue.push("late", 1.0, priority=5)
    queue.push("usual", 1.0)
    queue.push("urgent", 1.0, priority=-1)
    assert list(queue) == ["urgent", "usual", "late"]
    assert queue.ahead_of_s(-2, "") == 0.0
    assert queue.ahead_of_s(0, "") == pytest.approx(2.0)
    assert queue.ahead_of_s(9, "") == pytest.approx(3.0)


def test_an_empty_queue_remembers_nobody() -> None:
    """Who has had much yesterday is not behind today."""
    queue = Queue()
    for index in range(5):
        queue.push(f"r{index}", 9.0, tenant="a")
        queue.remove(f"r{index}")
    queue.push("b", 1.0, tenant="b")
    queue.push("a", 1.0, tenant="a")
    assert list(queue) == ["b", "a"]


@given(st.lists(st.tuples(st.integers(0, 30), st.floats(0.01, 9.0), st.integers(-1, 1), st.sampled_from("abc")),
                max_size=60))  # fmt: skip
def test_its_length_is_that_of_its_prompts(steps: list[tuple[int, float, int, str]]) -> None:
    """Whoever comes and goes, and what is before a new one is what was said."""
    queue, held = Queue(), dict[str, float]()
    for number, seconds, priority, tenant in steps:
        name = f"r{number}"
        if name in held:
            queue.remove(name)
            del held[name]
        else:
            expected = queue.ahead_of_s(priority, tenant)
            queue.push(name, seconds, priority=priority, tenant=tenant)
            held[name] = seconds
            assert dict(queue.ahead())[name] == pytest.approx(expected)
        assert sorted(queue) == sorted(held)
        assert queue.waiting_s == pytest.approx(sum(held.values()), abs=1e-6)
