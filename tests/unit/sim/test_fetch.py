"""Cached prefixes that move before a prompt is prefilled: when they do, what it saves, and what goes wrong on the way."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prfaas.core.cache.engine_cache import EngineCache
from prfaas.core.cache.hashing import TokenChain
from prfaas.core.control import events as e
from prfaas.core.control.estimates import Estimates
from prfaas.core.control.fetching import Fetch
from prfaas.core.control.lifecycle import TransferTerms
from prfaas.core.control.route import Option, Prompt, RouteKind
from prfaas.core.control.router import RoutePolicy
from prfaas.core.control.scheduler import Scheduler
from prfaas.core.model.curve import polynomial
from prfaas.core.model.layout import KVGroupKind
from prfaas.core.model.serving_model import ClusterModel, ServingModel
from prfaas.core.topology import Cluster, Duty, Instance, Link, Role, Topology, complete_links
from prfaas.sim.caches import CacheProfile
from prfaas.sim.conditions import Condition, EnginesDie, EnginesFail, EnginesReturn, LinkBecomes
from prfaas.sim.deployment import SimulatedDeployment
from prfaas.sim.engine import EngineProfile
from prfaas.sim.runs import Run, open_loop
from prfaas.sim.simulation import Life
from tests.unit.sim.prompts import BLOCK, asks, ran

PAIR = ("west", "pd")
HYBRID = frozenset({KVGroupKind.FULL_ATTENTION, KVGroupKind.LINEAR_STATE})
PREFILL_S = polynomial(0.0, 1e-3)
#: Far away ten times as fast as here.
FAST_S = polynomial(0.0, 1e-4)
STATE_BYTES = 5e5


def deployment(
    *, may_fetch: bool = True, gbytes_per_s: float = 0.1, num_west: int = 1, max_pd_blocks: int = 10_000
) -> SimulatedDeployment:
    """A thousand bytes a token and half a million of state. In the PD cluster one prefills and one decodes."""
    clusters = (Cluster("west", Role.PRFAAS), Cluster("pd", Role.PD))
    west = [
        Instance(f"west-{n}", "west", Duty.PREFILL, f"sim://w{n}", f"sim://wn{n}", f"w{n}") for n in range(num_west)
    ]
    pd = [Instance(f"pd-{d}", "pd", d, f"sim://{d}", f"sim://{d}n", str(d)) for d in (Duty.PREFILL, Duty.DECODE)]
    topology = Topology(clusters, (*west, *pd), complete_links(clusters, [Link(*PAIR, gbytes_per_s * 1e9, 0.0)]))
    kv_bytes = polynomial(STATE_BYTES, 1e3)
    curves = {"west": FAST_S, "pd": PREFILL_S}
    model = ServingModel({name: ClusterModel(curve, 8, 0.01) for name, curve in curves.items()}, kv_bytes, 1)
    profiles = {i.name: EngineProfile(curves[i.cluster], 8, 0.01) for i in topology.instances}
    caches = CacheProfile(BLOCK, {"west": 10_000, "pd": max_pd_blocks}, HYBRID)
    policy = RoutePolicy(True, 100, model, may_fetch=may_fetch)
    return SimulatedDeployment(topology, profiles, kv_bytes, policy, TransferTerms(90.0, 90.0), caches=caches)


def ttft_s(life: Life) -> float:
    assert life.began_s is not None
    return life.began_s - life.arrival.at_s


#: While the far cluster is away the first turn is computed here; then it is back, and ten times as fast.
AWAY = ((0.0, EnginesDie(("west-0",))), (50.0, EnginesReturn(("west-0",))))


def two_turns(made: SimulatedDeployment, *more: tuple[float, Condition]) -> tuple[Life, Life]:
    """The first here, the second a minute later with as much again."""
    first, second = ran(made, asks(1.0, 20_050), asks(60.0, 40_050), conditions=(*AWAY, *more))
    assert first.prefill == "pd-prefill"
    return first, second


def test_a_prefix_follows_the_prompt_to_the_faster_cluster() -> None:
    """20,000 tokens take 0.2 s to cross, as much again 2 s to compute there and 20 s here."""
    _, second = two_turns(deployment())
    assert (second.prefill, second.num_fetched_tokens, second.num_computed_tokens) == ("west-0", 20_000, 20_050)
    crossing_s = (STATE_BYTES + 20_000e3) / 0.1e9
    assert ttft_s(second) == pytest.approx(crossing_s + FAST_S.at(20_050), abs=0.4)


def test_without_leave_nothing_is_fetched() -> None:
    """The control: the far cluster computes all of it."""
    _, second = two_turns(deployment(may_fetch=False))
    assert (second.prefill, second.num_fetched_tokens, second.num_computed_tokens) == ("west-0", 0, 40_050)


def test_over_a_scarce_link_each_cluster_keeps_to_its_own_cache() -> None:
    """At 4 MB/s the prefix would take 5 s, and 2 s to compute."""
    _, second = two_turns(deployment(gbytes_per_s=0.004))
    assert second.num_fetched_tokens == 0


def test_an_idle_neighbour_fetches_from_the_one_that_holds_it() -> None:
    """Two turns of one conversation at once, far away: one at the holder, one at its neighbour, neither computes what
    they share."""
    turns = [asks(0.0, 20_050), asks(60.0, 40_050), asks(60.01, 30_050)]
    _, second, third = ran(deployment(num_west=2), *turns)
    assert {second.prefill, third.prefill} == {"west-0", "west-1"}
    assert (second.num_computed_tokens, third.num_computed_tokens) == (20_050, 10_050)
    assert (second.num_fetched_tokens, third.num_fetched_tokens) == (0, 20_000)


def test_a_source_that_dies_on_the_way_costs_a_recompute() -> None:
    """0.1 s after the fetch began; no request fails."""
    _, second = two_turns(deployment(), (60.1, EnginesDie(("pd-prefill",))))
    assert (second.outcome, second.fallback, second.num_fetched_tokens) == ("ok", "", 0)
    assert second.num_computed_tokens == 40_050


def test_a_link_that_is_cut_on_the_way_costs_a_recompute() -> None:
    """When the ends have given it up; what was computed then crosses the link that is back."""
    cut = (60.1, LinkBecomes(*PAIR, 0.0)), (70.0, LinkBecomes(*PAIR, 0.1e9))
    _, second = two_turns(deployment(), *cut)
    assert second.outcome == "ok"
    assert second.num_fetched_tokens == 0


def test_a_target_that_dies_on_the_way_leaves_nothing_on_the_link() -> None:
    """The prompt is computed elsewhere; see `ran` for the link."""
    _, second = two_turns(deployment(), (60.1, EnginesDie(("west-0",))))
    assert second.outcome == "ok"
    assert second.num_fetched_tokens == 0


def test_what_the_source_has_forgotten_is_computed() -> None:
    """Room for 250 blocks: another prompt has driven the first one out, and the scheduler does not know."""
    made = deployment(max_pd_blocks=250)
    away = ((0.0, EnginesDie(("west-0",))), (80.0, EnginesReturn(("west-0",))))
    turns = [asks(1.0, 20_050), asks(40.0, 20_050, "b"), asks(100.0, 40_050)]
    third = ran(made, *turns, conditions=away)[2]
    assert (third.prefill, third.num_fetched_tokens, third.num_computed_tokens) == ("west-0", 0, 40_050)


def test_a_prefix_that_comes_over_the_cut_link_is_computed() -> None:
    """The first turn far away, the second here, where nobody far away works any more for others: its prefix was on its
    way here when the link was cut. The answer comes as soon as the ends have given it up."""
    made = deployment(gbytes_per_s=0.002)
    cut = ((70.5, LinkBecomes(*PAIR, 0.0)),)
    first, second = ran(made, asks(1.0, 20_050), asks(70.0, 20_150, "a"), conditions=cut)
    assert first.outcome == second.outcome == "ok"
    assert ttft_s(second) < 30.0


def test_nothing_is_fetched_where_no_lane_is_up() -> None:
    """The link is cut for good before the second turn: it is computed here, at once."""
    made = deployment()
    cut = ((40.0, LinkBecomes(*PAIR, 0.0)),)
    _, second = ran(made, asks(1.0, 20_050), asks(60.0, 20_150), conditions=cut)
    assert second.num_fetched_tokens == 0
    assert ttft_s(second) == pytest.approx(PREFILL_S.at(20_150), abs=0.5)


def test_a_source_that_fails_its_work_sends_nothing() -> None:
    """It answers probes, and every request with an error."""
    _, second = two_turns(deployment(), (59.0, EnginesFail(("pd-prefill",))))
    assert (second.outcome, second.num_fetched_tokens) == ("ok", 0)


def test_an_instance_is_busy_while_it_fetches() -> None:
    """Half a second after the second turn came there are 1.7 + 2 s to do, less half a second."""
    run = Run(deployment(gbytes_per_s=0.012), checks=True)
    run.expect(AWAY)
    run.simulation.follow(iter((asks(1.0, 20_050), asks(60.0, 40_050))))
    run.simulation.run(60.5)
    work = run.simulation.scheduler.fleet.instances["west-0"].work
    assert work.remaining_s(60.5) == pytest.approx(20.5e6 / 0.012e9 + FAST_S.at(20_050) - 0.5, abs=0.1)


def test_an_engine_is_not_taken_for_slow_because_it_fetched() -> None:
    """1.7 s for the fetch, 2 s for the prefill: what is learned of its speed is nothing."""
    run = open_loop(
        deployment(gbytes_per_s=0.012), [asks(1.0, 20_050), asks(60.0, 40_050)], checks=True, conditions=AWAY
    )
    second = max(run.ended, key=lambda life: life.number)
    assert second.num_fetched_tokens == 20_000
    assert run.simulation.scheduler.dispatch is not None
    assert run.simulation.scheduler.dispatch.estimates.factor("west") == 1.0


def scheduler_of(made: SimulatedDeployment) -> Scheduler:
    """All of whose instances work."""
    scheduler = Scheduler(made.topology, made.policy, made.terms)
    for name in scheduler.fleet.instances:
        scheduler.handle(e.EngineSeen(name, True), 0.0)
        scheduler.handle(e.NodeSeen(name, True, BLOCK, f"life of {name}", HYBRID), 0.0)
    return scheduler


def test_what_is_fetched_already_is_before_the_next_until_it_has_crossed() -> None:
    """A tenth of a gigabyte a second; 20,000 tokens are 20.5 MB. Nothing leads from one PrfaaS cluster to another."""
    scheduler = scheduler_of(deployment())
    assert scheduler.dispatch is not None
    fetching = scheduler.dispatch._placer.fetching
    assert fetching is not None
    source, target = (scheduler.fleet.instances[name] for name in ("pd-prefill", "west-0"))
    first_s = fetching.begins(source, target, 20_000, 100.0)
    assert first_s == pytest.approx(0.255)
    assert fetching.takes_s("pd", "west", 1e7, 100.0) == pytest.approx(0.05 + first_s + 0.1)
    assert fetching.takes_s("pd", "west", 1e7, 101.0) == pytest.approx(0.05 + 0.1)
    assert fetching.takes_s("west", "pd", 1e7, 100.0) == pytest.approx(0.05 + 0.1), "the other direction is free"
    assert fetching.takes_s("west", "elsewhere", 1.0, 100.0) == float("inf")
    source.cut_off_from = frozenset({"west-0"})
    match = EngineCache(10)
    match.observe_kinds(HYBRID)
    match.ran_locally(chain_of(550))
    assert fetching.best(550, [(source, match.match(chain_of(550)))], "west", 100.0) is None


def test_what_others_on_the_link_wait_for_it_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prefix that comes from where prompts are prefilled for others shares their link: 0.2 s of it, at 2 prompts a
    second that fill half, make them wait 2 / 0.5 * 0.2²/2 s in all. The other way nothing else crosses."""
    scheduler = scheduler_of(deployment())
    assert scheduler.dispatch is not None
    monkeypatch.setattr(
        Estimates, "rate_and_load", lambda self, cluster, now_s: (2.0, 0.5) if cluster == "west" else (0.0, 0.0)
    )
    fetching = scheduler.dispatch._placer.fetching
    assert fetching is not None
    match = EngineCache(1_000)
    match.observe_kinds(HYBRID)
    match.ran_locally(chain_of(20_050))

    def fetched(source: str, cluster: str) -> Fetch:
        holder = scheduler.fleet.instances[source]
        found = fetching.best(20_050, [(holder, match.match(chain_of(20_050)))], cluster, 0.0)
        assert found is not None
        return found

    crosses_s = (STATE_BYTES + 20_000e3) / 0.1e9
    assert fetched("west-0", "pd").others_s == pytest.approx(2.0 / 0.5 * crosses_s**2 / 2)
    assert fetched("pd-prefill", "west").others_s == 0.0


def chain_of(num_tokens: int) -> TokenChain:
    return TokenChain(num_tokens, BLOCK, asks(0.0, num_tokens).blocks)


@settings(max_examples=60)
@given(
    held=st.dictionaries(st.sampled_from(("west-0", "west-1", "pd-prefill", "pd-decode")), st.integers(1, 400)),
    num_tokens=st.integers(2, 45_000),
    gbytes_per_s=st.floats(0.001, 1.0),
    busy=st.sets(st.sampled_from(("west-0", "west-1", "pd-prefill"))),
)
def test_the_rule_is_never_worse_than_each_clusters_own_cache(
    held: dict[str, int], num_tokens: int, gbytes_per_s: float, busy: set[str]
) -> None:
    """Whatever is held where and who is busy: with fetches no way is expected to take longer, and one that fetches
    nothing is the same as without."""
    made = deployment(gbytes_per_s=gbytes_per_s, num_west=2)

    def ways(may_fetch: bool) -> dict[tuple[RouteKind, str], Option]:
        scheduler = Scheduler(made.topology, replace(made.policy, may_fetch=may_fetch), made.terms)
        for name, instance in scheduler.fleet.instances.items():
            scheduler.handle(e.EngineSeen(name, True), 0.0)
            scheduler.handle(e.NodeSeen(name, True, BLOCK, f"life of {name}", HYBRID), 0.0)
            if name in held:
                instance.cache.ran_locally(chain_of(held[name] * BLOCK))
            if name in busy:
                instance.work.add("other", 3.0, 0.0)
        assert scheduler.dispatch is not None
        prompt = Prompt(num_tokens, {BLOCK: chain_of(num_tokens)})
        return {(o.kind, o.prefill_cluster): o for o in scheduler.dispatch._ways(prompt, 0.0)}

    with_it, without = ways(True), ways(False)
    assert with_it.keys() == without.keys()
    for way, option in with_it.items():
        assert option.finish_s <= without[way].finish_s + 1e-9
        if not option.num_fetched_tokens:
            assert option == without[way]
