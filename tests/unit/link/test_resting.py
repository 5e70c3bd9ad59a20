"""Lanes that use cubic rest on BBR, so that a pause does not cost them their window."""

from __future__ import annotations

import dataclasses

from prfaas.core.link.controller import LinkController, LinkPlan
from prfaas.core.link.estimate import LaneSample
from prfaas.core.link.pacing import MIN_RTT_S
from prfaas.core.link.resting import RestingLanes

TICK_S = 0.1
#: A heartbeat's header of every lane, with those of TCP and IP.
HEARTBEAT_BYTES = 100


class Link:
    """Two lanes, one of each kind, whose orders are carried out as the shell does."""

    def __init__(self) -> None:
        self.lanes = RestingLanes()
        self.samples = {
            connection: LaneSample(0.08, 0.08, 0, 0, 0, 0, False, 0, congestion=name)
            for connection, name in ((1, "bbr"), (2, "cubic"))
        }

    def look(self, sent: int, *, unsent: int = 0, is_paced: bool = True) -> dict[int, str]:
        """After each lane has sent so many bytes; returns the orders."""
        for connection, before in self.samples.items():
            self.samples[connection] = dataclasses.replace(
                before, bytes_sent=before.bytes_sent + sent, unsent_bytes=unsent
            )
        orders = self.lanes.look(self.samples, TICK_S, is_paced=is_paced)
        for connection, name in orders.items():
            self.samples[connection] = dataclasses.replace(self.samples[connection], congestion=name)
        return orders

    def rested(self) -> None:
        """Loaded once, then idle until it rests."""
        self.look(1 << 20)
        self.look(1 << 20)
        assert self.look(0) == {2: "bbr"}


def test_a_lane_rests_at_once_and_returns_with_the_load() -> None:
    """One order each way; a heartbeat is no load, bytes that wait in a socket are."""
    link = Link()
    link.rested()
    for _ in range(50):
        assert link.look(HEARTBEAT_BYTES) == {}
    assert link.look(0, unsent=1) == {2: "cubic"}
    assert link.look(1 << 20) == {}
    assert link.look(0) == {2: "bbr"}
    assert link.look(1 << 20) == {2: "cubic"}


def test_a_loaded_lane_is_left_alone() -> None:
    """Also while its bytes only wait for acknowledgements."""
    link = Link()
    assert [link.look(1 << 20) for _ in range(20)] == [{}] * 20
    assert link.look(0, unsent=1 << 19) == {}


def test_nothing_rests_without_a_rate() -> None:
    """BBR would look for the link's limit by itself."""
    link = Link()
    link.look(1 << 20)
    assert [link.look(0, is_paced=False) for _ in range(5)] == [{}] * 5


def test_a_lane_that_was_dialled_again_is_not_told_to_return() -> None:
    """Its connection is another one, with what it was dialled with."""
    link = Link()
    link.rested()
    link.samples[3] = dataclasses.replace(link.samples.pop(2), congestion="cubic", bytes_sent=0)
    assert link.look(1 << 20) == {}
    assert link.look(1 << 20) == {}
    assert link.look(0) == {3: "bbr"}


def idle_after_load(plan: LinkPlan, rtt_s: float) -> set[str]:
    """What the controller of a link with one cubic lane orders in the second after ten of load that it pushed back."""
    controller, orders = LinkController(plan), {}
    sample = LaneSample(rtt_s, rtt_s, 0, 0, 0, 0, False, 0, congestion="cubic")
    for look in range(110):
        moved = 1_000_000 if look < 100 else 0
        sample = dataclasses.replace(
            sample,
            rtt_s=rtt_s * (1.5 if 50 < look < 55 else 1.0),
            bytes_sent=sample.bytes_sent + moved,
            bytes_acked=sample.bytes_acked + moved,
            unsent_bytes=moved // 4,
            busy_s=sample.busy_s + TICK_S,
        )
        orders = dict(controller.look({7: sample}, 1, look * TICK_S).congestion_by_lane) | orders
    return set(orders.values())


def test_the_controller_lets_lanes_rest_where_it_may_choose() -> None:
    """Not on a short link, and not where the operator has named the congestion control."""
    plan = LinkPlan(1, 1, 16 << 20, 1, trial=("bbr", "cubic"))
    assert idle_after_load(plan, 0.08) == {"bbr"}
    assert idle_after_load(plan, MIN_RTT_S / 2) == set()
    assert idle_after_load(dataclasses.replace(plan, trial=None, congestion="cubic"), 0.08) == set()
