"""One instance gets another duty: drained, switched, confirmed; or not, and why."""

from __future__ import annotations

from dataclasses import replace

import pytest

from prfaas.core.control import actions as a
from prfaas.core.control import events as e
from prfaas.core.control.conversion import MAX_DRAIN_S, MAX_SWITCH_S, Conversion, Phase
from prfaas.core.control.fallback import FallbackReason
from prfaas.core.control.rebalance import MAX_COOL_DOWN_S
from prfaas.core.control.router import RoutePolicy
from prfaas.core.topology import Duty, Topology
from tests.unit.control.driving import BLOCK, Drive, failure, topology_of
from tests.unit.control.test_dispatch import MODEL

MEMBERS = ("west-0 prefill", "pd-0 decode", "pd-1 decode", "pd-p prefill")
POLICY = RoutePolicy(True, 1_000, MODEL, cool_down_s=100.0)


def convertible(topology: Topology) -> Topology:
    clusters = tuple(replace(cluster, is_convertible=cluster.name == "pd") for cluster in topology.clusters)
    return replace(topology, clusters=clusters)


def drive(*members: str, policy: RoutePolicy = POLICY) -> Drive:
    found = Drive(*(members or MEMBERS), policy=policy)
    found.feed(e.TopologyChanged(convertible(found.scheduler.fleet.topology)))
    for instance in found.scheduler.fleet.all:
        found.see(instance.name)
    return found


def begin(found: Drive, name: str = "pd-1", to_duty: Duty = Duty.PREFILL) -> list[a.Action]:
    """As the rebalancer does; then something happens that changes nothing."""
    instance = found.scheduler.fleet.instances[name]
    conversion = Conversion(name, "pd", instance.duty, to_duty, "a test", 1.0, found.now_s)
    found.scheduler.converter.begin(conversion, found.now_s)
    return found.feed(e.Tick())


def switch(found: Drive, name: str = "pd-1", duty: Duty = Duty.PREFILL) -> list[a.Action]:
    """Whoever runs it has done so."""
    return found.feed(e.TopologyChanged(found.scheduler.fleet.topology.with_duty(name, duty)))


def ends(actions: list[a.Action]) -> list[tuple[Phase, str]]:
    return [(x.conversion.phase, x.conversion.detail) for x in actions if isinstance(x, a.NoteConversion)]


def decode_at(actions: list[a.Action]) -> str:
    """Where a request is decoded, or its landing reserved."""
    return next(
        x.instance if isinstance(x, a.Decode) else x.route.decode
        for x in actions
        if isinstance(x, a.Decode | a.Reserve)
    )


def test_an_idle_instance_is_switched_at_once_and_used_when_it_works() -> None:
    """Then it prefills for the other one."""
    found = drive()
    assert a.Convert("pd-1", Duty.PREFILL) in begin(found)
    assert ends(switch(found)) == [(Phase.DONE, "")]
    assert found.scheduler.converter.current is None
    assert found.scheduler.fleet.instances["pd-1"].may_prefill_for_others
    assert [i.name for i in found.scheduler.fleet.working_prefillers("pd")] == ["pd-1", "pd-p"]


def test_a_busy_one_is_drained_first_and_gets_nothing_new() -> None:
    """What it has is answered; the others take what comes."""
    found = drive()
    first = decode_at(found.arrives(10_000))
    found.feed(e.LandingReserved("r", 1_000, BLOCK, "life-1", ("full_attention",)))
    assert not [x for x in begin(found, first) if isinstance(x, a.Convert)]
    other = {"pd-0": "pd-1", "pd-1": "pd-0"}[first]
    for number in range(4):
        assert decode_at(found.arrives(10, request_id=f"n{number}", obstacle="echo")) == other
    found.feed(e.PrefillEnded("r"))
    found.feed(e.LandingEnded("r", 1_000))
    found.feed(e.AnswerBegan("r", 1))
    found.feed(e.AnswerEnded("r", "ok", 200, None, 5))
    out = found.feed(e.LandingSettled("r", e.FinalRecord("consumed", None, 9_999, 1)))
    assert a.Convert(first, Duty.PREFILL) in out, "its last landing is gone"


def test_it_is_done_when_it_is_seen_to_work() -> None:
    """A node that was started anew must say so first."""
    found = drive()
    begin(found)
    found.feed(e.NodeSilent("pd-1"))
    assert ends(switch(found)) == []
    assert ends(found.feed(e.NodeSeen("pd-1", True), 7.0)) == [(Phase.DONE, "")]
    assert found.scheduler.converter.switch_s == (10.0 + 7.0) / 2, "how long it took is remembered"


def test_a_refusal_leaves_everything_as_it_was() -> None:
    """And is asked again later and later."""
    found = drive()
    rebalancer = found.scheduler.rebalancer
    assert rebalancer is not None
    for number, cools_s in enumerate((200.0, 400.0, 800.0)):
        begin(found)
        assert found.feed(e.ConversionRefused("pd-0", "nobody asked")) == []
        assert ends(found.feed(e.ConversionRefused("pd-1", "not today"))) == [(Phase.REFUSED, "not today")], number
        assert rebalancer._cools_until_s - found.now_s == cools_s
        assert found.scheduler.fleet.instances["pd-1"].may_decode
    for _ in range(10):
        begin(found)
        found.feed(e.ConversionRefused("pd-1", "not today"))
    assert rebalancer._cools_until_s - found.now_s == MAX_COOL_DOWN_S
    begin(found)
    switch(found)
    assert rebalancer._cools_until_s - found.now_s == 100.0, "one that was done makes good for those"


@pytest.mark.parametrize("is_busy", [True, False], ids=["draining", "switching"])
def test_what_takes_too_long_is_given_up(*, is_busy: bool) -> None:
    """The scheduler says when to look."""
    found = drive()
    name = decode_at(found.arrives(10, obstacle="echo")) if is_busy else "pd-1"
    begin(found, name)
    limit_s = MAX_DRAIN_S if is_busy else MAX_SWITCH_S
    began_s = found.now_s
    said: list[tuple[Phase, str]] = []
    while not said:
        due_s = found.scheduler.next_due_s
        assert due_s is not None
        said = ends(found.feed(e.Tick(), due_s - found.now_s))
    assert found.now_s == began_s + limit_s
    word = "draining" if is_busy else "switching"
    assert said == [(Phase.TOO_SLOW, f"it was {word} for 600 s")]
    assert found.scheduler.fleet.instances[name].may_decode


@pytest.mark.parametrize(
    ("members", "detail"),
    [
        (("west-0 prefill", "pd-0 decode", "pd-p prefill"), "it left, or moved"),
        (("west-0 prefill", "pd-0 decode", "pd-1 both", "pd-p prefill"), "it was given the duty both"),
    ],
)
def test_the_file_has_its_way(members: tuple[str, ...], detail: str) -> None:
    """What it changes meanwhile is not converted any more."""
    found = drive()
    found.arrives(10, obstacle="echo")
    begin(found, found.request.decode)
    if found.request.decode == "pd-0":
        members = tuple(m.replace("pd-0", "x").replace("pd-1", "pd-0").replace("x", "pd-1") for m in members)
    out = found.feed(e.TopologyChanged(convertible(topology_of(*members))))
    assert ends(out) == [(Phase.OVERTAKEN, detail)]


def test_when_no_other_works_it_still_decodes() -> None:
    """A request is worth more than a conversion."""
    found = drive()
    first = decode_at(found.arrives(10, obstacle="echo"))
    begin(found, first)
    other = {"pd-0": "pd-1", "pd-1": "pd-0"}[first]
    found.feed(e.EngineSilent(other, refused=True))
    assert decode_at(found.arrives(10, request_id="s", obstacle="echo")) == first
    assert found.scheduler.fleet.healthy


def test_a_prefill_instance_ends_its_prompt_first() -> None:
    """And one whose landing was reserved meanwhile has its prompt too."""
    found = drive("pd-0 decode", "pd-p prefill", "pd-q prefill")
    out = found.arrives(10_000)
    (reserve,) = [x for x in out if isinstance(x, a.Reserve)]
    assert not [x for x in begin(found, reserve.route.prefill, Duty.DECODE) if isinstance(x, a.Convert)]
    out = found.feed(e.LandingReserved("r", 1_000, BLOCK, "life-1", ("full_attention",)))
    assert [x.instance for x in out if isinstance(x, a.Prefill)] == [reserve.route.prefill]
    lost = failure(FallbackReason.PREFILL_FAILED)
    assert a.Convert(reserve.route.prefill, Duty.DECODE) in found.feed(e.PrefillEnded("r", lost))


def test_another_policy_ends_nothing_that_is_under_way() -> None:
    """A policy whose threshold stands still begins nothing either."""
    found = drive()
    begin(found)
    found.feed(e.PolicyChanged(RoutePolicy(True, 1_000)))
    assert found.scheduler.rebalancer is None
    assert ends(switch(found)) == [(Phase.DONE, "")]
    found.feed(e.PolicyChanged(POLICY))
    assert found.scheduler.rebalancer is not None


def test_what_is_taken_back_before_it_works_is_not_done() -> None:
    """The file gives it its old duty again."""
    found = drive()
    begin(found)
    found.feed(e.NodeSilent("pd-1"))
    switch(found)
    assert ends(switch(found, duty=Duty.DECODE)) == [(Phase.OVERTAKEN, "it was given the duty decode")]


def test_a_cool_down_outlives_a_policy() -> None:
    """And so do the conversions that were."""
    found = drive()
    begin(found)
    found.feed(e.ConversionRefused("pd-1", "not today"))
    before = found.scheduler.rebalancer
    found.feed(e.PolicyChanged(RoutePolicy(True, 1_000)))
    found.feed(e.PolicyChanged(replace(POLICY, model=replace(MODEL, output_tokens=7.0))))
    after = found.scheduler.rebalancer
    assert before is not None
    assert after is not None
    assert (after._cools_until_s, after._num_failed) == (before._cools_until_s, 1)
