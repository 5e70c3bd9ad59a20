"""Simulated time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from prfaas.sim.kernel import Kernel, Planned


@given(st.lists(st.tuples(st.sampled_from([0.0, 1.0, 1.5, 2.0]), st.integers(0, 2)), max_size=30))
def test_things_happen_by_time_then_priority_then_order(plans: list[tuple[float, int]]) -> None:
    """And the clock shows the time of each."""
    kernel = Kernel()
    happened: list[tuple[float, int, int]] = []
    for number, (at_s, priority) in enumerate(plans):
        kernel.at(at_s, lambda n=number, p=priority: happened.append((kernel.now_s, p, n)), priority=priority)
    kernel.run(10.0)
    assert happened == sorted((at_s, priority, number) for number, (at_s, priority) in enumerate(plans))
    assert kernel.now_s == 10.0


plan = st.tuples(st.sampled_from([0.0, 0.0, -1.0, 1.0]), st.sampled_from([0, 0, 0, 1, -1]), st.integers(0, 20))


@given(st.lists(plan, min_size=1, max_size=40))
def test_what_is_planned_while_something_happens_keeps_the_order(plans: list[tuple[float, int, int]]) -> None:
    """Whatever of it is to happen at once, and whatever is cancelled meanwhile: always the least that is planned."""
    kernel = Kernel()
    left = list(enumerate(plans))
    planned: dict[int, tuple[tuple[float, int, int], Planned]] = {}
    happened: list[tuple[float, int, int]] = []

    def take(num: int) -> None:
        for number, (delay_s, priority, cancels) in left[:num]:
            entry = kernel.after(delay_s, happens, number, priority=priority)
            planned[number] = (kernel.now_s + max(0.0, delay_s), priority, number), entry
            if cancels in planned and cancels != number:
                planned.pop(cancels)[1].cancel()
        del left[:num]

    def happens(number: int) -> None:
        order, _ = planned.pop(number)
        happened.append(order)
        take(2)

    take(3)
    while planned or left:
        if not planned:
            take(1)
        expected = min(order for order, _ in planned.values())
        assert kernel.step()
        assert happened[-1] == expected
        assert kernel.now_s == expected[0]
    assert not kernel.step()


def test_what_is_cancelled_does_not_happen() -> None:
    """Cancelling twice, or too late, changes nothing."""
    kernel = Kernel()
    happened: list[str] = []
    early, late = (kernel.at(at_s, happened.append, name) for at_s, name in ((1.0, "early"), (2.0, "late")))
    late.cancel()
    late.cancel()
    kernel.run(3.0)
    early.cancel()
    assert happened == ["early"]
    assert kernel.num_events == 1


def test_a_run_ends_where_it_was_told_to() -> None:
    """What is due later waits, and a time that has passed means now."""
    kernel = Kernel()
    happened: list[float] = []
    kernel.at(5.0, lambda: happened.append(kernel.now_s))
    kernel.run(4.0)
    assert happened == []
    kernel.at(1.0, lambda: happened.append(kernel.now_s))
    kernel.run(6.0)
    assert happened == [4.0, 5.0]
