"""The fast timescale by hand: which way a prompt goes, when it is bound, when it goes elsewhere, when it is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from prfaas.core.control import actions as a
from prfaas.core.control import events as e
from prfaas.core.control.lifecycle import LATER_THAN_EXPECTED
from prfaas.core.control.queues import Queue
from prfaas.core.control.request import RequestState
from prfaas.core.control.router import RoutePolicy
from prfaas.core.control.view import thresholds_now, view
from prfaas.core.model.curve import polynomial
from prfaas.core.model.serving_model import ClusterModel, ServingModel
from prfaas.core.topology import Link
from tests.unit.control.driving import BLOCK, Drive, failure, told, topology_of

#: Ten thousand tokens: 1.1 s in the west, 2.1 s here; 100 bytes of each cross.
MODEL = ServingModel(
    {"west": ClusterModel(polynomial(0.1, 1e-4)), "pd": ClusterModel(polynomial(0.1, 2e-4), 4, 0.01)},
    kv_bytes=polynomial(0.0, 100.0),
    output_tokens=100.0,
)
POLICY = RoutePolicy(True, 1_000, MODEL)
FLEET = ("west-0 prefill", "west-1 prefill", "pd-0 decode", "pd-1 decode", "pd-p prefill")
LINK_BYTES_PER_S = 1e6


def drive(*members: str, policy: RoutePolicy = POLICY, rtt_s: float = 0.0) -> Drive:
    """With a link that carries ten thousand tokens in a second."""
    found = Drive(*(members or FLEET), policy=policy)
    topology = topology_of(*(members or FLEET))
    links = tuple(
        Link(link.source, link.target, LINK_BYTES_PER_S, rtt_s) if link.source == "west" else link
        for link in topology.links
    )
    found.feed(e.TopologyChanged(replace(topology, links=links)))
    for instance in found.scheduler.fleet.all:
        found.see(instance.name)
    return found


def come(found: Drive, *names: str, num_tokens: int = 10_000, **facts: object) -> list[str]:
    """Requests of these names, one after the other; what is reserved for whom."""
    actions = [action for name in names for action in found.arrives(num_tokens, request_id=name, **facts)]
    return [f"{x.request_id} {x.route.prefill}" for x in actions if isinstance(x, a.Reserve)]


def runs(found: Drive, name: str) -> None:
    """From a reservation to an answer whose prompt has been prefilled elsewhere."""
    found.feed(e.LandingReserved(name, 1_000, BLOCK, "life-1", ("full_attention",)))
    found.feed(e.PrefillEnded(name))
    found.feed(e.LandingEnded(name, 1_000))


def state(found: Drive, name: str) -> RequestState:
    return found.scheduler.requests[name].state


def test_each_goes_where_its_answer_begins_first() -> None:
    """The west is faster; when it has enough to do, the PD cluster's own instance is; then all wait."""
    found = drive()
    assert come(found, "a", "b", "c") == ["a west-0", "b west-1", "c pd-p"]
    assert come(found, "d", "e") == []
    assert [state(found, name) for name in "de"] == ["waiting", "waiting"]
    assert len(found.scheduler.requests["d"].route.options) == 2  # type: ignore[union-attr]


def test_a_prompt_is_bound_when_an_instance_is_nearly_done() -> None:
    """By the clock, before the instance says so; not earlier."""
    found = drive("west-0 prefill", "pd-0 decode")
    assert come(found, "a") == ["a west-0"]
    assert come(found, "b") == []
    began_s = found.now_s
    reserved: list[a.Reserve] = []
    while not reserved:
        due_s = found.scheduler.next_due_s
        assert due_s is not None
        reserved = [x for x in found.feed(e.Tick(), due_s - found.now_s) if isinstance(x, a.Reserve)]
    assert found.now_s - began_s == pytest.approx(1.05, abs=1e-3)
    assert [x.request_id for x in reserved] == ["b"]


def test_an_instance_that_is_late_gets_nothing_more() -> None:
    """It might hang: whoever waits stays free to go elsewhere."""
    found = drive("west-0 prefill", "pd-0 decode")
    come(found, "a", "b", "c")
    found.feed(e.Tick(), 1.06)
    assert state(found, "b") is RequestState.RESERVING
    found.feed(e.Tick(), 5.0)
    assert state(found, "c") is RequestState.WAITING


def test_a_round_trip_away_it_is_bound_a_round_trip_earlier() -> None:
    """So that the instance does not stand still for a round trip."""
    found = drive("west-0 prefill", "pd-0 decode", rtt_s=0.5)
    come(found, "a", "b")
    assert found.scheduler.next_due_s == pytest.approx(found.now_s + 0.55)


def test_whoever_has_nothing_to_do_takes_over_what_waits_elsewhere() -> None:
    """The oldest that gains by it."""
    found = drive()
    come(found, "a", "b", "c", "d", "e", "f", "g", "h")
    waiting = {cluster: list(queue) for cluster, queue in found.scheduler.dispatch.queues.items()}  # type: ignore[union-attr]
    assert waiting["west"] and waiting["pd"], "both have a queue"
    for name in (*waiting["pd"], "c"):
        found.feed(e.RequestAbandoned(name, "cancelled"))
        if name == "c":
            found.feed(e.ReserveFailed("c", failure("reserve_error")))
            actions = found.feed(e.LandingDropped("c"))
    assert state(found, waiting["west"][0]) is RequestState.RESERVING, actions
    assert found.scheduler.requests[waiting["west"][0]].prefill == "pd-p"


def test_when_a_link_falls_what_waits_goes_elsewhere() -> None:
    """To a thousandth: nothing is left that waits for it, and the threshold says that nothing leaves."""
    found = drive()
    come(found, *"abcdefgh")
    dispatch = found.scheduler.dispatch
    assert dispatch is not None
    before = thresholds_now(found.scheduler.fleet, dispatch, found.now_s)["west"]
    assert before is not None and before < 50_000
    found.feed(e.LinkSeen("west-0", "pd-0", "congested", LINK_BYTES_PER_S / 1e3, 10_000_000))
    assert not dispatch.queues["west"]
    assert thresholds_now(found.scheduler.fleet, dispatch, found.now_s)["west"] is None


def test_a_link_with_enough_to_do_gets_no_more() -> None:
    """What is beyond five seconds waits where it can still go elsewhere; it goes on as soon as bytes have landed."""
    found = drive(*(f"west-{n} prefill" for n in range(9)), "pd-0 decode")
    reserved = come(found, *"abcdefgh")
    assert len(reserved) == 6, "six seconds of bytes: the sixth came when five were queued"
    runs(found, "a")
    assert state(found, "g") is RequestState.RESERVING
    assert state(found, "h") is RequestState.WAITING


def test_when_nobody_prefills_any_more_decode_computes() -> None:
    """Whoever waits goes to an engine that decodes, at once."""
    found = drive("west-0 prefill", "pd-0 decode")
    come(found, "a", "b", "c")
    actions = found.feed(e.EngineSilent("west-0", refused=True))
    assert told([x for x in actions if x.request_id in "bc"]) == ["Decode pd-0", "Decode pd-0"]


def test_without_any_engine_those_who_wait_are_refused() -> None:
    """At once: there is nothing to wait for."""
    found = drive("west-0 prefill", "pd-0 decode")
    come(found, "a", "b")
    found.feed(e.EngineSilent("pd-0", refused=True))
    actions = found.feed(e.EngineSilent("west-0", refused=True))
    assert [x.code for x in actions if isinstance(x, a.Refuse)] == [a.RefusalCode.NO_HEALTHY_ENGINE]


def test_who_leaves_while_waiting_leaves_nothing() -> None:
    """No landing, no work, no place in a queue."""
    found = drive("west-0 prefill", "pd-0 decode")
    come(found, "a", "b")
    assert told(found.feed(e.RequestAbandoned("b", "cancelled"))) == ["Close"]
    assert "b" not in found.scheduler.requests


def test_a_conversation_is_continued_where_it_is_held() -> None:
    """PPD: what is added is computed by the instance that only decodes, which holds the rest; a new prompt is not."""
    found = drive("west-0 prefill", "pd-0 decode", "pd-1 decode", "pd-p prefill")
    found.arrives(2_000)
    runs(found, "r")
    found.feed(e.AnswerBegan("r", 1))
    found.feed(e.LandingSettled("r", e.FinalRecord("consumed", None, 1_999, 1)))
    held_at = found.scheduler.requests["r"].decode
    found.feed(e.AnswerEnded("r", "ok"))
    # Whoever computed it for others holds it no more.
    found.see("west-0", boot="life-2")
    actions = found.arrives(2_100, request_id="more")
    assert told(actions) == [f"Decode {held_at}"]
    assert told(found.arrives(2_100, request_id="long"))[0].startswith("Decode"), "the same prefix"
    fresh = found.feed(e.RequestArrived("new", "new/t", 2_100))
    fresh = found.feed(e.PromptCounted("new", 2_100, {}))
    assert told(fresh) == ["Reserve"] or told(fresh)[0].startswith("Reserve")


def test_what_a_cluster_holds_it_need_not_compute() -> None:
    """The west computed it, and lacks a tenth: it is asked again although a new prompt of that length would stay."""
    found = drive("west-0 prefill", "pd-0 both")
    slow_west = replace(MODEL, clusters=MODEL.clusters | {"west": ClusterModel(polynomial(0.1, 3e-4))})
    found.arrives(10_000)
    runs(found, "r")
    found.feed(e.AnswerBegan("r", 1))
    found.feed(e.LandingSettled("r", e.FinalRecord("consumed", None, 9_999, 1)))
    found.feed(e.AnswerEnded("r", "ok"))
    found.feed(e.PolicyChanged(RoutePolicy(True, 1_000, slow_west)))
    found.see("pd-0", boot="life-2")
    assert told(found.arrives(11_000, request_id="more")) == ["Reserve"]
    found.see("west-0", boot="life-2")
    assert told(found.arrives(11_000, request_id="new")) == ["Decode pd-0"]


def test_answers_that_must_come_fast_are_not_slowed() -> None:
    """With a bound on the time per token that leaves no room, not even a held conversation is computed by decode."""
    tight = RoutePolicy(True, 1_000, replace(MODEL, tpot_s=0.0101))
    found = drive("west-0 prefill", "pd-0 decode", policy=tight)
    found.arrives(2_000)
    runs(found, "r")
    found.feed(e.AnswerBegan("r", 1))
    found.feed(e.LandingSettled("r", e.FinalRecord("consumed", None, 1_999, 1)))
    assert told(found.arrives(2_100, request_id="more"))[0].startswith("Reserve")


def test_times_that_are_seen_correct_those_expected() -> None:
    """A cluster that takes three times as long as it should is chosen no more."""
    found = drive()
    for index in range(40):
        name = f"r{index}"
        found.feed(e.RequestArrived(name, name, 10_000))
        found.feed(e.PromptCounted(name, 10_000, {}))
        is_west = found.scheduler.requests[name].prefill.startswith("west")
        found.feed(e.LandingReserved(name, 1_000))
        found.feed(e.PrefillEnded(name), 3.3 if is_west else 2.1)
        found.feed(e.RequestAbandoned(name, "cancelled"))
        found.feed(e.LandingDropped(name))
    dispatch = found.scheduler.dispatch
    assert dispatch is not None
    assert dispatch.estimates.prefill_s("west", 10_000) > dispatch.estimates.prefill_s("pd", 10_000)
    assert found.scheduler.requests == {}
    seen = view(found.scheduler, found.now_s).clusters
    assert seen["west"].prefill_factor > 1.5
    assert seen["pd"].prefill_factor == pytest.approx(1.0, abs=0.01)


def test_batches_that_filled_at_once_have_no_place_until_their_answers_end() -> None:
    """Four answers of one second began together 0.2 s ago: the next place is free in 0.8 s, not in a quarter."""
    found = drive("west-0 prefill", "pd-0 decode")
    for name in "abcd":
        come(found, name, num_tokens=500)
        runs(found, name)
        found.feed(e.AnswerBegan(name, 1))
    found.now_s += 0.2
    dispatch = found.scheduler.dispatch
    assert dispatch is not None
    (option,) = dispatch.options_of(500, found.now_s)
    assert option.finish_s == pytest.approx(0.8, abs=0.1)
    for name in "abcd":
        found.feed(e.AnswerEnded(name, "ok"))
    assert len(dispatch.answers) == 0
    (option,) = dispatch.options_of(500, found.now_s)
    assert option.finish_s < 0.4


def test_those_in_a_longer_queue_come_to_the_batches_later() -> None:
    """Whoever is prefilled before them does not wait for a place until they have had theirs."""
    long_answers = replace(POLICY, model=replace(MODEL, output_tokens=10_000.0))
    found = drive("west-0 prefill", "pd-0 decode", "pd-p prefill", policy=long_answers)
    assert come(found, "a", "b", num_tokens=50_000) == ["a west-0", "b pd-p"]
    dispatch = found.scheduler.dispatch
    assert dispatch is not None
    for name in "cdef":
        dispatch.queues.setdefault("west", Queue()).push(name, 20.0)
        dispatch.num_waiting["pd"] += 1
    finish_s = {option.prefill_cluster: option.finish_s for option in dispatch.options_of(100, found.now_s)}
    # With two on their way and four that wait, three of 100 s would have to leave four places: 75 s.
    assert finish_s["pd"] == pytest.approx(10.1 + 0.12, abs=0.2)
    assert finish_s["west"] == pytest.approx(5.1 + 80.0 + 0.11, abs=0.2)


@pytest.mark.parametrize("bound", ["policy", "request"])
def test_who_would_be_answered_too_late_is_refused_at_once(bound: str) -> None:
    """With the time after which it may ask again; whoever waits already is kept."""
    policy = replace(POLICY, max_ttft_s=3.0 if bound == "policy" else None)
    facts = {"max_ttft_s": 3.0} if bound == "request" else {}
    found = drive("west-0 prefill", "pd-0 decode", policy=policy)
    come(found, "a", "b", **facts)
    actions = found.arrives(10_000, request_id="c", **facts)
    assert [(x.code, x.retry_after_s) for x in actions if isinstance(x, a.Refuse)] == [(a.RefusalCode.TOO_BUSY, 1)]
    assert state(found, "b") is RequestState.WAITING


def test_the_urgent_go_first_and_tenants_take_turns() -> None:
    """In the queue as it stands."""
    found = drive("west-0 prefill", "pd-0 decode")
    come(found, "a", "b", "c", tenant="t1")
    come(found, "d", tenant="t2")
    come(found, "e", priority=-1, tenant="t1")
    assert list(found.scheduler.dispatch.queues["west"]) == ["e", "b", "d", "c"]  # type: ignore[union-attr]


def test_another_policy_takes_over_what_waits() -> None:
    """Nothing of the old one is left but what is on its way, which the new one reckons with."""
    found = drive("west-0 prefill", "pd-0 decode")
    come(found, "a", "b")
    found.feed(e.PolicyChanged(RoutePolicy(True, 500)))
    assert found.scheduler.dispatch is None
    assert state(found, "b") is RequestState.RESERVING
    found.feed(e.PolicyChanged(RoutePolicy(True, 1_000, MODEL)))
    assert come(found, "c") == []
    assert sorted(found.scheduler.fleet.instances["west-0"].work) == ["a", "b"]
    found.feed(e.PolicyChanged(RoutePolicy(True, 1_000, replace(MODEL, output_tokens=7.0))))
    assert state(found, "c") is RequestState.WAITING


def test_a_policy_that_keeps_all_at_home_does() -> None:
    """Although the west would be faster."""
    found = drive(policy=replace(POLICY, offload=False))
    assert come(found, "a") == ["a pd-p"]


def test_what_cannot_be_counted_or_sent_stays() -> None:
    """With the reason that a fixed threshold gives."""
    found = drive()
    actions = found.arrives(10_000, obstacle="echo")
    assert [(x.route.kind, x.route.reason) for x in actions if isinstance(x, a.Decode)] == [("local", "echo")]


def test_the_view_shows_what_is_known() -> None:
    """Queues, factors, links, thresholds; and of a fixed threshold only itself."""
    found = drive()
    come(found, *"abcdefgh")
    seen = view(found.scheduler, found.now_s)
    assert seen.moves
    assert seen.threshold_tokens == 1_000, "as planned: eight lengths say little"
    assert seen.clusters["west"].num_waiting + seen.clusters["pd"].num_waiting == 5
    assert (seen.clusters["west"].num_instances, seen.clusters["west"].num_working) == (2, 2)
    assert [(link.source, link.bytes_per_s) for link in seen.links] == [("west", LINK_BYTES_PER_S)]
    assert seen.links[0].queued_bytes > 0
    fixed = view(Drive().scheduler, 0.0)
    assert (fixed.moves, fixed.threshold_tokens, fixed.clusters) == (False, 100, {})


def test_the_solved_threshold_takes_over_from_the_planned_one() -> None:
    """After so many lengths that they say something."""
    found = drive()
    for index in range(80):
        name = f"r{index}"
        found.feed(e.RequestArrived(name, name, 200 * (index + 1)), 1.0)
        found.feed(e.PromptCounted(name, 200 * (index + 1), {}))
        found.feed(e.RequestAbandoned(name, "cancelled"))
    seen = view(found.scheduler, found.now_s)
    assert seen.num_lengths_seen == 80
    assert seen.threshold_tokens is not None and 1_000 < seen.threshold_tokens < 16_000
    assert seen.rate_rps == pytest.approx(1.0, rel=0.2)
    assert sum(cluster.share for cluster in seen.clusters.values()) == pytest.approx(1.0)


def test_a_prompt_of_which_all_is_known_is_not_moved() -> None:
    """One token is left to compute."""
    found = drive("west-0 prefill", "pd-0 both")
    found.arrives(1_600)
    runs(found, "r")
    found.feed(e.AnswerBegan("r", 1))
    found.feed(e.LandingSettled("r", e.FinalRecord("consumed", None, 1_599, 1)))
    found.feed(e.AnswerEnded("r", "ok"))
    assert told(found.arrives(1_601, request_id="again")) == ["Decode pd-0"]


def test_a_way_in_time_is_taken_though_another_is_cheaper() -> None:
    """Only who has no way in time is refused."""
    found = drive()
    come(found, *"abcdef")
    fast = found.arrives(10_000, request_id="probe")
    assert not [x for x in fast if isinstance(x, a.Refuse)]
    options = found.scheduler.requests["probe"].route.options  # type: ignore[union-attr]
    soonest = min(options, key=lambda option: option.finish_s)
    found.feed(e.RequestAbandoned("probe", "cancelled"))
    actions = found.arrives(10_000, request_id="late", max_ttft_s=soonest.finish_s * LATER_THAN_EXPECTED + 0.01)
    assert not [x for x in actions if isinstance(x, a.Refuse)]
    assert found.scheduler.requests["late"].option == soonest
    refused = found.arrives(10_000, request_id="later", max_ttft_s=soonest.finish_s * LATER_THAN_EXPECTED - 0.01)
    assert [x.code for x in refused if isinstance(x, a.Refuse)] == [a.RefusalCode.TOO_BUSY]


def test_an_instance_that_reaches_nobody_makes_no_ticks() -> None:
    """It has room and no lane; the other one has a lane and no room: the clock waits for that."""
    found = drive("west-0 prefill", "west-1 prefill", "pd-0 decode")
    found.feed(e.NodeSeen("west-1", True, BLOCK, "life-1", ("full_attention",), frozenset({"pd-0"})))
    assert come(found, "a", "b") == ["a west-0"]
    num_ticks = 0
    while (due_s := found.scheduler.next_due_s) is not None and state(found, "b") is RequestState.WAITING:
        found.feed(e.Tick(), max(0.0, due_s - found.now_s))
        num_ticks += 1
    assert num_ticks < 10


def test_a_full_link_holds_up_only_those_who_need_it() -> None:
    """Twenty wait for it; the next one, for another PD cluster, goes past them."""
    found = drive(*(f"west-{n} prefill" for n in range(12)), "pd-0 decode")
    come(found, *(f"r{n}" for n in range(26)))
    dispatch = found.scheduler.dispatch
    assert dispatch is not None
    assert len(dispatch.queues["west"]) == 20
    assert found.scheduler.next_due_s is not None
    assert found.scheduler.next_due_s >= found.now_s + 0.2, "nothing to do before something lands, or all are looked at"


def test_a_probe_that_says_nothing_new_costs_nothing() -> None:
    """Queues are looked at when somebody can be used who could not, or no more."""
    found = drive("west-0 prefill", "pd-0 decode")
    come(found, "a", "b")
    dispatch = found.scheduler.dispatch
    assert dispatch is not None
    for _ in range(3):
        found.see("west-0")
        found.see("pd-0")
    assert dispatch._changed == set()
    assert dispatch.estimates._solved_s is None


@pytest.mark.parametrize(("falls_to", "gives_up"), [(8e5, False), (1e4, True)], ids=["a fifth less", "to a hundredth"])
def test_what_crosses_a_link_that_falls_is_given_up_if_that_is_sooner(*, falls_to: float, gives_up: bool) -> None:
    """The decode side computes it in two seconds; it would land in a little more than one, or in a hundred."""
    found = drive("west-0 prefill", "pd-0 decode")
    assert come(found, "a") == ["a west-0"]
    found.feed(e.LandingReserved("a", 1_000_000, BLOCK, "life-1", ("full_attention",)))
    assert state(found, "a") == "prefilling"
    out = found.feed(e.LinkSeen("west-0", "pd-0", "congested", 1e9, 1_000_000, falls_to, unsent_bytes=1_000))
    decoded = [x for x in out if isinstance(x, a.Decode)]
    if not gives_up:
        assert decoded == []
        return
    (decode,) = decoded
    assert decode.fallback is not None
    assert decode.fallback.reason == "deadline"
    assert "the link from west to pd has become slow" in decode.fallback.detail
    assert [type(x) for x in out if isinstance(x, a.StopPrefill | a.DropLanding)] == [a.StopPrefill, a.DropLanding]


def crossing(*names: str, **members: str) -> Drive:
    """All of these cross, ten thousand tokens and a megabyte each; the decode side computes each in 2.1 s."""
    found = drive(*(f"west-{index} prefill" for index in range(len(names))), "pd-0 decode", **members)  # type: ignore[arg-type]
    assert len(come(found, *names)) == len(names)
    for name in names:
        found.feed(e.LandingReserved(name, 1_000_000, BLOCK, "life-1", ("full_attention",)))
        assert state(found, name) == "prefilling"
    return found


def late(found: Drive, arrives_bytes_per_s: float, **left_bytes: int) -> list[str]:
    """The sender says that bytes are late, and what is missing of each transfer; whose prompt is computed here then."""
    left = {f"{name}/t": num for name, num in left_bytes.items()}
    seen = e.LinkSeen(
        "west-0", "pd-0", "pressed", 1e9, sum(left.values()), 1e8, 1_000, arrives_bytes_per_s, left
    )  # fmt: skip
    out = found.feed(seen)
    stopped = [x.request_id for x in out if isinstance(x, a.StopPrefill)]
    assert sorted(x.request_id for x in out if isinstance(x, a.DropLanding)) == sorted(stopped)
    return [x.request_id for x in out if isinstance(x, a.Decode) and x.fallback is not None]


def test_what_has_nearly_landed_stays_and_what_has_not_goes() -> None:
    """At a hundredth of the link: 20 KB take two seconds, 900 KB take ninety. Neither what a socket took nor an earlier
    capacity counts."""
    found = crossing("a", "b")
    assert late(found, 1e4, a=20_000, b=900_000) == ["b"]
    assert state(found, "a") == "prefilling"


def test_no_more_is_computed_here_than_is_sooner_here() -> None:
    """Each has the link after those before it that stay, and the engine after those that were given up: 2.1 s each there,
    and at a fifth of the link 5 s each here. So the second would gain too little, and the others have it before them."""
    found = crossing("a", "b", "c", "d")
    given_up = late(found, 2e5, a=1_000_000, b=1_000_000, c=1_000_000, d=1_000_000)
    assert given_up == ["a", "c", "d"]
    assert found.scheduler.fleet.instances["pd-0"].work.remaining_s(found.now_s) == pytest.approx(6.3)
    assert late(found, 2e5, b=1_000_000) == [], "what was given up has left the link to it"


def test_the_transfers_of_others_go_first() -> None:
    """Bytes at the sender that are nobody's here cross too, whoever sent them, and those of transfers that are over."""
    for others, expected in ((0, []), (1_000_000, ["a"])):
        found = crossing("a")
        seen = e.LinkSeen("west-0", "pd-0", "pressed", None, others + 200_000, None, None, 1e5, {"a/t": 200_000})
        out = found.feed(seen)
        assert [x.request_id for x in out if isinstance(x, a.Decode)] == expected, others


def test_it_is_looked_at_again_with_every_word() -> None:
    """It stood to land in time when the link fell, and then nothing arrived."""
    found = crossing("a")
    assert late(found, 1e5, a=150_000) == []
    found.feed(e.Tick(), 1.0)
    assert late(found, 1e4, a=145_000) == ["a"]


def test_what_would_be_given_up_at_once_is_not_sent() -> None:
    """Where whoever decodes may compute the prompt itself; when the link is whole it is sent again."""
    found = drive("west-0 prefill", "pd-0 both")
    assert come(found, "a") == ["a west-0"]
    late(found, 1e4, a=900_000)
    routes = [o.kind for o in found.scheduler.dispatch.options_of(10_000, found.now_s)]  # type: ignore[union-attr]
    assert routes == ["local"]
    found.feed(e.Tick(), 60.0)
    routes = [o.kind for o in found.scheduler.dispatch.options_of(10_000, found.now_s)]  # type: ignore[union-attr]
    assert sorted(routes) == ["local", "remote"]


def test_the_split_is_solved_anew_when_a_link_is_back() -> None:
    """With the next prompt, and not after sixteen more of them."""
    found = drive("west-0 prefill", "pd-0 both")
    estimates = found.scheduler.dispatch.estimates  # type: ignore[union-attr]
    for index in range(80):
        come(found, f"r{index}")
        found.feed(e.RequestAbandoned(f"r{index}", "cancelled"))
        found.feed(e.Tick(), 0.1)
    whole = estimates.split
    late(found, 1e4, others=1_000_000)
    slow = estimates.split
    assert whole is not None and slow is not None
    assert slow.threshold_tokens > whole.threshold_tokens
    found.feed(e.Tick(), 30.0)
    found.feed(e.LinkSeen("west-0", "pd-0", "clear", None, 0, 0.0))
    assert come(found, "next") is not None
    assert estimates.split is not None
    assert estimates.split.threshold_tokens < 1.2 * whole.threshold_tokens
