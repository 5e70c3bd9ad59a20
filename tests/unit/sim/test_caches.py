"""Prefix caches of simulated engines: what they save, what they forget, and what the scheduler believes of them."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from prfaas.core.control.lifecycle import TransferTerms
from prfaas.core.control.router import RoutePolicy
from prfaas.core.model.curve import Curve, polynomial, saturating
from prfaas.core.model.layout import KVGroupKind
from prfaas.core.model.serving_model import ClusterModel, ServingModel
from prfaas.core.topology import Cluster, Duty, Instance, Link, Role, Topology, complete_links
from prfaas.sim.arrivals import Arrival
from prfaas.sim.caches import CacheProfile, kinds_of
from prfaas.sim.conditions import Condition, EnginesDie, EnginesReturn, LinkBecomes
from prfaas.sim.deployment import SimulatedDeployment
from prfaas.sim.engine import EngineProfile
from prfaas.sim.policies import POLICIES
from prfaas.sim.runs import Run, to_end
from prfaas.sim.sessions import Conversations, Sessions
from prfaas.sim.simulation import Life
from tests.unit.sim.prompts import BLOCK, asks, ran

PAIR = ("west", "pd")
ATTENTION = frozenset({KVGroupKind.FULL_ATTENTION})
HYBRID = ATTENTION | {KVGroupKind.LINEAR_STATE}
PREFILL_S = polynomial(0.0, 1e-3)


def deployment(
    kinds: frozenset[KVGroupKind] | None = ATTENTION,
    *,
    max_blocks: int = 1_000,
    threshold_tokens: int = 100,
    num_west: int = 1,
    is_solved: bool = False,
    pd_duty: Duty = Duty.BOTH,
    link_bytes_per_s: float = 1e6,
) -> SimulatedDeployment:
    """A thousand tokens a second everywhere, a thousand bytes a token."""
    clusters = (Cluster("west", Role.PRFAAS), Cluster("pd", Role.PD))
    west = [
        Instance(f"west-{n}", "west", Duty.PREFILL, f"sim://w{n}", f"sim://wn{n}", f"w{n}") for n in range(num_west)
    ]
    members = (*west, Instance("pd-0", "pd", pd_duty, "sim://p", "sim://pn", "p"))
    topology = Topology(clusters, members, complete_links(clusters, [Link(*PAIR, link_bytes_per_s, 0.0)]))
    profile = EngineProfile(PREFILL_S, 8, 0.01)
    state_bytes = 5e5 if kinds is not None and KVGroupKind.LINEAR_STATE in kinds else 0.0
    kv_bytes = polynomial(state_bytes, 1e3)
    model = ServingModel(
        {"west": ClusterModel(PREFILL_S, 8, 0.01), "pd": ClusterModel(PREFILL_S, 8, 0.01)}, kv_bytes, 1
    )
    policy = RoutePolicy(True, threshold_tokens, model if is_solved else None)
    caches = None if kinds is None else CacheProfile(BLOCK, {"west": max_blocks, "pd": max_blocks}, kinds)
    return SimulatedDeployment(
        topology, {member.name: profile for member in members}, kv_bytes, policy, TransferTerms(60.0, 30.0),
        caches=caches,
    )  # fmt: skip


def computed(lives: list[Life]) -> list[int]:
    return [life.num_computed_tokens for life in lives]


def test_what_is_held_is_not_computed_again() -> None:
    """A prompt of 2,050 tokens leaves 20 blocks; the next turn computes what is behind them, in that much less time."""
    first, second = ran(deployment(threshold_tokens=10**6), asks(0.0, 2_050), asks(10.0, 2_550))
    assert computed([first, second]) == [2_050, 550]
    assert second.began_s is not None
    assert second.began_s - 10.0 == pytest.approx(PREFILL_S.at(550), abs=0.05)


def test_without_caches_everything_is_computed() -> None:
    """The control of the test before."""
    assert computed(ran(deployment(None, threshold_tokens=10**6), asks(0.0, 2_050), asks(10.0, 2_550))) == [
        2_050,
        2_550,
    ]


def test_an_engine_always_computes_the_last_token() -> None:
    """The same prompt again, a whole number of blocks: the last block is computed."""
    assert computed(ran(deployment(threshold_tokens=10**6), asks(0.0, 2_000), asks(10.0, 2_000))) == [2_000, 100]


def test_a_hybrid_is_hit_only_where_a_state_was_kept() -> None:
    """After 2,050 tokens there is one at 2,000: a prompt that leaves the conversation at 1,000 finds none."""
    made = deployment(HYBRID, threshold_tokens=10**6)
    other = Arrival(20.0, 1_550, 1, blocks=(*asks(0.0, 1_000).blocks, *asks(0.0, 500, "b").blocks))
    assert computed(ran(made, asks(0.0, 2_050), asks(10.0, 2_550), other)) == [2_050, 550, 1_550]
    assert computed(ran(deployment(threshold_tokens=10**6), asks(0.0, 2_050), asks(10.0, 2_550), other))[2] == 550


def test_a_small_cache_forgets_the_oldest() -> None:
    """Room for two prompts: the third drives out the first."""
    made = deployment(max_blocks=40, threshold_tokens=10**6)
    turns = [asks(0.0, 2_050, "a"), asks(10.0, 2_050, "b"), asks(20.0, 2_050, "c"), asks(30.0, 2_050, "a")]
    assert computed(ran(made, *turns)) == [2_050] * 4
    roomy = deployment(threshold_tokens=10**6)
    assert computed(ran(roomy, *turns)) == [2_050, 2_050, 2_050, 50]


def test_a_transfer_leaves_out_what_the_decode_instance_holds() -> None:
    """The first turn crosses whole, the second without its first 2,000 tokens; the state always."""
    first, second = ran(deployment(HYBRID), asks(0.0, 2_050), asks(20.0, 2_550))
    assert [life.route for life in (first, second)] == ["remote", "remote"]
    assert first.kv_bytes == pytest.approx(5e5 + 2_050e3)
    assert second.kv_bytes == pytest.approx(5e5 + 550e3)
    assert (second.num_skipped_tokens, second.num_computed_tokens) == (2_000, 550)


def test_what_was_left_out_and_is_gone_by_then_is_computed() -> None:
    """The decode instance has room for one prompt. Between the second turn's start and its landing another prompt is
    computed there; then the answer still comes, from the prompt computed anew, and costs what that costs."""
    made = deployment(threshold_tokens=2_900)
    made = replace(made, caches=CacheProfile(BLOCK, {"west": 1_000, "pd": 30}, ATTENTION))
    # Above 2,900 uncached tokens prompts leave, so the short ones are computed here.
    first, second, between = ran(made, asks(0.0, 3_050), asks(20.0, 6_050), asks(20.1, 2_850, "b"))
    assert (first.route, second.route, between.route) == ("remote", "remote", "local")
    assert second.num_skipped_tokens == 3_000
    assert not second.is_loaded
    # Of the first prompt's 30 blocks the other one's 28 have left two, those at its root.
    assert second.num_computed_tokens == 6_050 - 2 * BLOCK
    assert (second.outcome, second.fallback) == ("ok", "not_loaded")


def test_a_restarted_engine_holds_nothing_and_the_scheduler_knows() -> None:
    """Its boot id is another; the prompt is computed whole, and no hint says otherwise."""
    died = ((15.0, EnginesDie(("pd-0",))), (16.0, EnginesReturn(("pd-0",))))
    made = deployment(threshold_tokens=10**6)
    assert computed(ran(made, asks(0.0, 2_050), asks(20.0, 2_550), conditions=died)) == [2_050, 2_550]


def test_prompts_go_where_their_prefix_is() -> None:
    """Two instances far away: a conversation's next turn goes to the one that has it, though both are idle."""
    made = deployment(num_west=2, is_solved=True, threshold_tokens=100)
    turns = [asks(0.0, 2_050, "a"), asks(0.1, 2_050, "b"), asks(10.0, 4_050, "b"), asks(14.0, 4_050, "a")]
    lives = ran(made, *turns)
    held = [life for life in lives if life.num_computed_tokens == 2_050]
    assert len(held) == 4, computed(lives)


@pytest.mark.parametrize("choice", ["prfaas", "least_load"])
def test_a_beginning_that_all_prompts_share_draws_nobody(choice: str) -> None:
    """Four conversations with the same first block at once, after one that left it at the first instance: each gets an
    instance of its own, also when prompts are bound as they come."""
    made = deployment(num_west=4, is_solved=True, pd_duty=Duty.DECODE, link_bytes_per_s=1e9)
    if choice != "prfaas":
        made = replace(made, policy=replace(made.policy, choose=POLICIES[choice](0), binds_late=False))
    common = asks(0.0, BLOCK, "common").blocks

    def begins_alike(at_s: float, talk: str) -> Arrival:
        return Arrival(at_s, 4_050, 1, blocks=(*common, *asks(0.0, 3_900, talk).blocks))

    lives = ran(made, begins_alike(0.0, "z"), *(begins_alike(10.0 + n / 1000, talk) for n, talk in enumerate("abcd")))
    prefilled_at = [life.prefill or life.decode for life in lives[1:]]
    assert len(set(prefilled_at)) == 4, prefilled_at
    ttfts_s = [(life.began_s or 0.0) - life.arrival.at_s for life in lives[1:]]
    assert max(ttfts_s) < 2 * PREFILL_S.at(4_050)


def test_a_conversation_waits_for_who_holds_it_if_that_is_sooner() -> None:
    """West-0 has 30,000 tokens of it and half a second left; west-1 is idle, and would compute for 30 s."""
    made = deployment(
        HYBRID, num_west=2, is_solved=True, max_blocks=10_000, pd_duty=Duty.DECODE, link_bytes_per_s=1e9
    )  # fmt: skip
    turns = [asks(0.0, 30_050, "a"), asks(40.0, 30_550, "a"), asks(40.1, 31_050, "a")]
    first, second, third = ran(made, *turns)
    assert first.prefill == second.prefill == third.prefill != ""
    assert third.num_computed_tokens <= 1_050


def test_who_waits_for_a_holder_waits_in_the_queue() -> None:
    """Twenty-five turns of one tenant that west-0 holds, at once; then another tenant's, of the same conversation, that
    is more urgent. West-1 is idle all the time, and would compute for 20 s. The urgent one overtakes all but those that
    are bound."""
    made = deployment(
        HYBRID, num_west=2, is_solved=True, max_blocks=10_000, pd_duty=Duty.DECODE, link_bytes_per_s=1e9
    )  # fmt: skip
    usual = [replace(asks(40.0 + n / 1000, 20_350), tenant="usual") for n in range(25)]
    urgent = replace(asks(40.1, 20_350), tenant="other", priority=-5)
    first, *lives, last = ran(made, asks(0.0, 20_050), *usual, urgent)
    assert {life.prefill for life in (*lives, last)} == {first.prefill}
    sooner = [life for life in lives if (life.began_s or 0.0) <= (last.began_s or 0.0)]
    assert len(sooner) <= 3, [(life.number, life.began_s) for life in sooner]


def test_an_instance_that_returns_while_its_link_is_cut_says_so() -> None:
    """Or the next prompt would be sent over it, and miss its deadline."""
    made = deployment(pd_duty=Duty.BOTH)
    conditions: tuple[tuple[float, Condition], ...] = (
        (10.0, LinkBecomes(*PAIR, 0.0)), (20.0, EnginesDie(("west-0",))), (30.0, EnginesReturn(("west-0",))),
    )  # fmt: skip
    (life,) = ran(made, asks(60.0, 4_050), conditions=conditions)
    assert (life.route, life.fallback) == ("local", "")


def test_kinds_are_read_from_the_size_of_the_cache() -> None:
    """What there is without a token is state; what stops growing, a window."""

    def kinds(curve: Curve) -> set[str]:
        return {str(kind) for kind in kinds_of(curve)}

    assert kinds(polynomial(0.0, 1e3)) == {"full_attention"}
    assert kinds(polynomial(5e5, 1e3)) == {"full_attention", "linear_state"}
    assert kinds(polynomial(0.0, 1e3) + saturating(1e3, 128)) == {"full_attention", "sliding_window"}
    assert kinds(saturating(1e3, 128)) == {"sliding_window"}


def test_conversations_are_held_by_so_many_clients() -> None:
    """Never more requests inside than clients; turns grow by answer and question; the cache holds what came before."""
    made = deployment(threshold_tokens=10**6)
    terms = Conversations(4, think_s=2.0, num_turns=3, shared_tokens=500)
    run = Sessions(
        made, random.Random(5), lambda rng: 400, terms, num_output_tokens=10, num_requests=60, max_tokens=5_000,
        checks=True,
    )  # fmt: skip
    to_end(run)
    lives = sorted(run.ended, key=lambda life: life.number)
    assert len(lives) == 60
    assert max(sample.num_inside for sample in run.samples) <= 4
    of_one = [life.arrival for life in lives if life.arrival.tenant == "client-2"]
    assert [arrival.num_tokens for arrival in of_one[:6]] == [900, 1_310, 1_720] * 2
    assert of_one[1].blocks[: len(of_one[0].blocks)] == of_one[0].blocks
    assert of_one[3].blocks[:5] == of_one[0].blocks[:5], "all begin alike"
    assert of_one[3].blocks[5] != of_one[0].blocks[5]
    # After the first of all, only 400 new tokens, an answer, and what is behind the last whole block.
    assert max(life.num_computed_tokens for life in lives[4:]) <= 400 + 10 + BLOCK + 10


def test_a_conversation_that_would_be_too_long_begins_anew() -> None:
    """No prompt is longer than the model takes."""
    run = Sessions(
        deployment(threshold_tokens=10**6), random.Random(5), lambda rng: 400, Conversations(1, num_turns=100),
        num_output_tokens=10, num_requests=12, max_tokens=1_000,
    )  # fmt: skip
    to_end(run)
    assert [life.arrival.num_tokens for life in run.ended] == [400, 810] * 6


def test_who_is_refused_asks_again_when_it_may() -> None:
    """And not at once, until no requests are left."""
    made = deployment(is_solved=True)
    made = replace(made, policy=replace(made.policy, max_ttft_s=3.0))
    run = Sessions(
        made, random.Random(5), lambda rng: 900, Conversations(10), num_output_tokens=5, num_requests=200,
        max_tokens=1_000,
    )  # fmt: skip
    to_end(run)
    refused = [life for life in run.ended if life.outcome == "unavailable"]
    assert 20 < len(refused) < 180
    starts_s = [life.arrival.at_s for life in run.ended]
    assert max(starts_s) > 10.0
    assert len(run.ended) == 200


def test_clients_of_a_run_are_never_idle_without_thinking() -> None:
    """Closed loop: as one answer ends, the next request comes."""
    made = deployment(threshold_tokens=10**6)
    run: Run = Sessions(
        made, random.Random(5), lambda rng: 400, Conversations(2), num_output_tokens=5, num_requests=20,
        max_tokens=1_000,
    )  # fmt: skip
    to_end(run)
    ends = {life.ended_s for life in run.ended}
    assert all(life.arrival.at_s in ends for life in run.ended if life.number > 2)
