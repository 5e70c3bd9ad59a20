"""What nodes tell of links."""

from __future__ import annotations

from dataclasses import replace

import pytest

from prfaas.sim.conditions import LinkBecomes
from prfaas.sim.runs import Run
from prfaas.testing.scheduling import GBPS, PAIR, deployment, steady


def seconds_slow(to_gbps: float, *, sees_queues: bool) -> int:
    """Of two minutes after a link has fallen, how many it was expected to carry less than half of what it did before."""
    run = Run(replace(deployment(), sees_queues=sees_queues))
    simulation = run.simulation
    run.expect([(60.0, LinkBecomes(*PAIR, to_gbps * GBPS))])
    simulation.follow(steady(0.6, 180.0).arrivals(3))
    dispatch = simulation.scheduler.dispatch
    assert dispatch is not None
    num = 0
    for second in range(60, 180):
        simulation.run(float(second))
        num += dispatch.estimates.links.bytes_per_s(PAIR, float(second)) < 50 * GBPS
    return num


@pytest.mark.parametrize("sees_queues", [True, False])
def test_late_bytes_are_seen_anyway(sees_queues: bool) -> None:
    """Far more comes than 2 Gbps carry."""
    assert seconds_slow(2, sees_queues=sees_queues) > 110


def test_short_queues_are_seen_by_those_who_see_queues() -> None:
    """10 Gbps carry nearly all that comes: bytes queue, and are late now and then."""
    assert seconds_slow(10, sees_queues=True) > seconds_slow(10, sees_queues=False) > 0
