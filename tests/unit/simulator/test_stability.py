"""Whether a run's queues grow: what is said of growth, of bursts, of refusals, and of runs that cannot tell."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from prfaas.sim.runs import Run, Sample
from prfaas.simulator.stability import Stability, stability

SPAN_S = 1_000


def verdict(
    inside: Callable[[int], float], *, rps: Callable[[int], int] = lambda second: 10, refused: float = 0.0,
    stay_s: float = 1.0, is_closed: bool = False,
) -> Stability:  # fmt: skip
    """Of a run of 1,000 s with so many inside, and so many that come, in each second."""
    arrived_s = [second + 0.5 for second in range(SPAN_S) for _ in range(rps(second))]
    places = range(len(arrived_s))
    outcomes = SimpleNamespace(
        arrived_s=arrived_s, num_ended=len(arrived_s), ended=lambda: places, that=lambda among, what: places,
        e2e_s=lambda place: stay_s,
    )  # fmt: skip
    samples = [Sample(float(second), round(inside(second)), 0.0) for second in range(SPAN_S)]
    run = SimpleNamespace(outcomes=outcomes, samples=samples, sample_s=1.0, is_closed=is_closed)
    return stability(cast(Run, cast(Any, run)), 0.0, float(SPAN_S), len(arrived_s) / SPAN_S, refused)


def bursts(*starts_s: int) -> Callable[[int], bool]:
    return lambda second: any(start_s <= second < start_s + 60 for start_s in starts_s)


@pytest.mark.parametrize(("share", "name"), [(0.0, "stable"), (0.05, "backlogged"), (0.3, "overloaded")])
def test_growth_is_a_share_of_what_comes(share: float, name: str) -> None:
    """Of ten requests a second."""
    assert verdict(lambda second: 10 + share * 10 * second) == Stability(name)


def test_a_queue_that_has_been_as_long_and_went_down_does_not_grow() -> None:
    """A burst at the end is a burst like those before it."""
    during = bursts(150, 450, 940)
    assert verdict(lambda s: 1_000 if during(s) else 10, rps=lambda s: 50 if during(s) else 5).name == "stable"


def test_who_ends_in_its_only_burst_cannot_tell() -> None:
    """Twice as many requests may."""
    during = bursts(940)
    num = 940 * 5 + 60 * 50
    found = verdict(lambda s: 1_000 if during(s) else 10, rps=lambda s: 50 if during(s) else 5)
    assert found.name == "too_short"
    assert found.num_enough is not None
    assert 2 * num <= found.num_enough < 2.2 * num


def test_a_short_run_says_how_many_would_be_enough() -> None:
    """Eight stays of 500 s are four times as long."""
    assert verdict(lambda second: 10, stay_s=500.0) == Stability("too_short", 40_000)


def test_a_long_queue_is_a_backlog_even_if_nobody_knows_whether_it_grows() -> None:
    """A thousand wait of six thousand that came: chance alone moves so many by a hundred."""
    assert verdict(lambda second: 3_000, rps=lambda second: 6).name == "backlogged"


def test_who_refuses_or_waits_has_no_queue_that_grows() -> None:
    """That is said, and not that all is well."""
    assert verdict(lambda second: 10, refused=0.9) == Stability("refusing")
    assert verdict(lambda second: 10, refused=0.01) == Stability("stable")
    assert verdict(lambda second: 10, is_closed=True, stay_s=500.0) == Stability("closed_loop")
    assert verdict(lambda second: 10 + 3 * second, refused=0.2).name == "overloaded"
