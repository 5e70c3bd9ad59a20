"""Clusters that are not beside the gateway: what the way there and back adds, and what it must not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from prfaas.core.control import actions as a
from prfaas.core.control import events as e
from prfaas.core.control.prefill_work import PrefillWork
from prfaas.core.control.route import Option
from prfaas.core.control.router import RoutePolicy
from prfaas.core.control.scheduler import Scheduler
from prfaas.core.model.curve import polynomial
from prfaas.core.model.serving_model import ClusterModel, ServingModel
from prfaas.core.topology import Cluster, Duty, Instance, Link, Role, Topology, complete_links
from tests.unit.control.driving import BLOCK, TERMS

NEAR_S, FAR_S, WEST_S, LINK_S = 0.04, 0.44, 0.2, 0.1
#: Of 1,000 tokens, everywhere.
PREFILL_S = 0.1


def deployed(near_s: float = NEAR_S, far_s: float = FAR_S, *, has_west: bool = False) -> Topology:
    """Two PD clusters of one instance each, and perhaps a PrfaaS cluster that both are linked to."""
    names = (*(("west",) if has_west else ()), "near", "far")
    clusters = {
        "west": Cluster("west", Role.PRFAAS, rtt_s=WEST_S),
        "near": Cluster("near", Role.PD, rtt_s=near_s),
        "far": Cluster("far", Role.PD, rtt_s=far_s),
    }
    duty = {"west": Duty.PREFILL}
    instances = tuple(
        Instance(f"{n}-0", n, duty.get(n, Duty.BOTH), f"http://{n}", f"http://{n}/node", f"{n}:1") for n in names
    )
    links = tuple(Link("west", name, 1e9, LINK_S) for name in names if name != "west") if has_west else ()
    mine = tuple(clusters[name] for name in names)
    return Topology(mine, instances, complete_links(mine, links))


class Gate:
    """A scheduler whose instances have been seen."""

    def __init__(self, topology: Topology) -> None:
        prefill_s = polynomial(0.0, PREFILL_S / 1_000)
        model = ServingModel(
            {c.name: ClusterModel(prefill_s, 64, 0.01) for c in topology.clusters}, polynomial(0, 1), 8
        )
        self.now_s = 100.0
        self.scheduler = Scheduler(topology, RoutePolicy(True, 100, model), TERMS)
        for instance in topology.instances:
            self.feed(e.EngineSeen(instance.name, True))
            self.feed(e.NodeSeen(instance.name, True, BLOCK, "life-1", ("full_attention",)))

    def feed(self, event: e.Event, after_s: float = 0.0) -> list[a.Action]:
        self.now_s += after_s
        actions = self.scheduler.handle(event, self.now_s)
        self.scheduler.check()
        return actions

    def options(self, num_tokens: int = 1_000) -> dict[tuple[str, str], Option]:
        """By where a prompt of which nothing is held is prefilled, and where it is answered."""
        assert self.scheduler.dispatch is not None
        found = self.scheduler.dispatch.options_of(num_tokens, self.now_s)
        return {(option.prefill_cluster, option.decode_cluster): option for option in found}

    def answers(self, name: str, num_tokens: int = 1_000) -> str:
        """Which instance a request is sent to of which nothing is held."""
        self.feed(e.RequestArrived(name, f"{name}/t", num_tokens))
        actions = self.feed(e.PromptCounted(name, num_tokens, {}))
        (decode,) = [action for action in actions if isinstance(action, a.Decode)]
        return decode.instance


def test_the_nearest_is_taken_while_nothing_waits() -> None:
    """The round trip is a part of what a way takes."""
    gate = Gate(deployed())
    found = gate.options()
    assert [found[name, name].rtt_s for name in ("near", "far")] == [NEAR_S, FAR_S]
    assert found["far", "far"].finish_s == pytest.approx(PREFILL_S + FAR_S)
    assert gate.answers("r") == "near-0"


def test_the_far_one_is_taken_when_the_near_ones_queue_is_longer_than_the_difference() -> None:
    """Every prompt takes 0.1 s, the difference is just below or above 0.4 s: four wait, or five."""
    gate = Gate(deployed(far_s=NEAR_S + 0.399))
    assert [gate.answers(f"r{index}") for index in range(5)] == ["near-0"] * 4 + ["far-0"]
    gate = Gate(deployed(far_s=NEAR_S + 0.401))
    assert [gate.answers(f"r{index}") for index in range(6)] == ["near-0"] * 5 + ["far-0"]


def test_equally_far_is_as_if_all_were_here() -> None:
    """What all ways have in common decides nothing."""
    far, here = Gate(deployed(0.3, 0.3)), Gate(deployed(0.0, 0.0))
    assert [far.answers(f"r{index}") for index in range(6)] == [here.answers(f"r{index}") for index in range(6)]


def test_whoever_prefills_for_another_is_half_its_round_trip_away() -> None:
    """The prompt goes there first; the answer comes from the cluster that decodes."""
    found = Gate(deployed(has_west=True)).options()
    assert found["west", "far"].rtt_s == pytest.approx(FAR_S + WEST_S / 2)
    beside = Gate(replace(deployed(0.0, 0.0, has_west=True), clusters=tuple(
        replace(cluster, rtt_s=0.0) for cluster in deployed(has_west=True).clusters))).options()  # fmt: skip
    assert found["west", "far"].transfer_s == beside["west", "far"].transfer_s
    assert beside["west", "far"].rtt_s == 0.0


def test_another_round_trip_counts_from_the_next_request_on() -> None:
    """As a file that is read again says."""
    gate = Gate(deployed())
    gate.feed(e.TopologyChanged(deployed(near_s=0.6)))
    assert gate.options()["near", "near"].rtt_s == 0.6
    assert gate.answers("r") == "far-0"


def test_a_round_trip_is_not_taken_for_slowness() -> None:
    """Prompts that take as long as expected, and are heard of a round trip later, leave the factor at one."""
    gate = Gate(deployed(near_s=FAR_S))
    for index in range(40):
        name = gate.answers(f"r{index}").removesuffix("-0")
        gate.feed(e.AnswerBegan(f"r{index}", 1), PREFILL_S + FAR_S)
        gate.feed(e.AnswerEnded(f"r{index}", "ok", 200))
        assert gate.scheduler.dispatch is not None
        assert gate.scheduler.dispatch.estimates.factor(name) == pytest.approx(1.0, abs=1e-6)


def test_work_far_away_is_seen_a_round_trip_late() -> None:
    """A prompt of 1 s, half a second away there and back, sent at 0: done by what is sent at 1, late from 1.5 on."""
    work = PrefillWork(0.5)
    work.add("a", 1.0, 0.0)
    assert [work.remaining_s(at_s) for at_s in (0.0, 0.5, 1.0, 1.5)] == [1.0, 0.5, 0.0, 0.0]
    assert work.remaining_s(3.0) == pytest.approx(1.0)  # late by 1.5 s half a round trip ago, and so again
    work.add("b", 2.0, 1.2)
    assert work.remove("a", 1.5) == pytest.approx(1.0)
    # Its turn came when it was sent, not when the first was done.
    assert work.remaining_s(1.5) == pytest.approx(1.7)
    assert work.remove("b", 3.7) == pytest.approx(2.0)
