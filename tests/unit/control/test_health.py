"""Who is out, for how long, and what does not count. What it is worth is in tests/simulation/test_health.py."""

from __future__ import annotations

import pytest

from prfaas.core.control.fallback import FallbackReason
from prfaas.core.control.fleet import Fleet
from prfaas.core.control.health import MAX_FAILURES, MAX_OUT_S, Health, Use
from prfaas.core.control.instance import Instance
from tests.unit.control.driving import topology_of

BROKE = FallbackReason.DECODE_ERROR


@pytest.fixture
def fleet() -> Fleet:
    found = Fleet(topology_of("west-0 prefill", "pd-0 decode", "pd-1 decode"))
    for instance in found.instances.values():
        instance.engine_healthy = instance.node_ready = True
    return found


def fails(health: Health, instance: Instance, now_s: float, times: int = MAX_FAILURES) -> None:
    for number in range(times):
        health.failed(instance, f"{instance.name}-{now_s}-{number}", BROKE, now_s)
        health.check()


def tries(health: Health, instance: Instance, now_s: float, *, works: bool) -> None:
    """It is on trial, gets one request, and that ends."""
    health.tick(now_s)
    assert health.records[instance].use is Use.ON_TRIAL
    health.bound(instance, f"trial-{now_s}")
    assert instance.is_out, "and no other"
    if works:
        health.worked(instance, f"trial-{now_s}", now_s)
    else:
        health.failed(instance, f"trial-{now_s}", BROKE, now_s)
    health.check()


def test_it_is_out_for_longer_and_longer_and_never_for_long(fleet: Fleet) -> None:
    """After 2,000 trials that failed too: that is a weekend."""
    health, bad, now_s, outs = Health(fleet), fleet.instances["west-0"], 0.0, []
    fails(health, bad, now_s)
    for _ in range(2_000):
        until_s = health.next_due_s
        assert until_s is not None
        outs.append(until_s - now_s)
        now_s = until_s
        tries(health, bad, now_s, works=False)
    assert outs[:5] == [1.0, 2.0, 4.0, 8.0, 8.0]
    assert max(outs) == MAX_OUT_S
    now_s += MAX_OUT_S
    tries(health, bad, now_s, works=True)
    assert not bad.is_out


def test_of_two_that_decode_one_is_in(fleet: Fleet) -> None:
    """Also while the other is on trial, and when that has failed."""
    health = Health(fleet)
    first, second = fleet.instances["pd-0"], fleet.instances["pd-1"]
    fails(health, first, 0.0)
    assert first.is_out
    health.tick(1.0)
    fails(health, second, 1.0)
    assert not second.is_out
    tries(health, first, 1.0, works=False)
    fails(health, second, 1.5)
    assert (first.is_out, second.is_out) == (True, False)


def test_a_trial_that_is_given_up_is_the_next_requests(fleet: Fleet) -> None:
    """It said nothing."""
    health, bad = Health(fleet), fleet.instances["west-0"]
    fails(health, bad, 0.0)
    health.tick(1.0)
    health.bound(bad, "a")
    health.given_up(bad, "a")
    assert not bad.is_out
    health.bound(bad, "b")
    health.failed(bad, "b", BROKE, 1.0)
    assert health.records[bad].use is Use.OUT
    health.check()


def test_who_has_moved_is_judged_anew(fleet: Fleet) -> None:
    """What is still under way at its old place says nothing of it; nor does another life's failing."""
    health, old = Health(fleet), fleet.instances["west-0"]
    health.took(old, 1.0, 0.0)
    health.restarted(old)
    assert health.changed == [], "it was not out"
    fleet.instances["west-0"] = Instance(old.member)
    fails(health, old, 0.0, 20)
    health.took(old, 50.0, 0.0)
    assert health.records == {}
