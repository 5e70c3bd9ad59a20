"""A node checks its own ledgers while nothing is under way; a broken one is told and counted, and the node goes on."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import pytest

from prfaas.core.transfer.extents import ALIGN_BYTES
from prfaas.kvnode.metrics import NodeMetrics
from prfaas.testing.node_pair import FAST_LIMITS, NodePair, node_pair, wait_until


def faults(pair: NodePair) -> int:
    """As the receiving node counts them."""
    return pair.sink.plane.counters["ledger_faults", ""]


def move(pair: NodePair, name: str) -> None:
    """A transfer lands whole."""
    wait_until(lambda: pair.source.links["sink"].lanes_up == FAST_LIMITS.num_lanes)
    memory = pair.stage_open(name, pair.reserve(name, 1000))
    memory[:] = image = random.Random(name).randbytes(len(memory))
    pair.source.staged(name, [(0, len(memory))])
    pair.source.stage_close(name)
    assert pair.wait_state(name, "landed", "aborted") == "landed"
    assert pair.landed_bytes(name) == image


def test_whole_ledgers_stay_silent(tmp_path: Path) -> None:
    """With landings and records of transfers in them."""
    with node_pair(tmp_path, kind="inproc") as pair:
        move(pair, "a")
        wait_until(lambda: not pair.source.links["sink"].ledger.live())
        for node in (pair.source, pair.sink):
            node.check_ledgers()
            assert node.plane.counters["ledger_faults", ""] == 0


def test_a_lost_extent_is_told_and_costs_no_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log has the extent that nobody owns, the metric grows with every check, and transfers land."""
    with node_pair(tmp_path, kind="inproc") as pair, caplog.at_level(logging.ERROR):
        with pair.sink.plane.lock:
            lost = pair.sink.plane.ledgers.extents.allocate(ALIGN_BYTES)
        pair.sink.check_ledgers()
        assert faults(pair) == 1
        assert str(lost) in caplog.text
        assert b"\nprfaas_ledger_faults_total 1.0\n" in NodeMetrics(pair.sink).render()
        move(pair, "a")
        pair.sink.check_ledgers()
        assert faults(pair) == 2


def test_a_node_at_work_is_not_held_up(tmp_path: Path) -> None:
    """While a landing is being received nothing is checked."""
    with node_pair(tmp_path, kind="inproc") as pair:
        pair.stage_open("a", pair.reserve("a", 1000))
        wait_until(lambda: pair.sink.landing("a").state.value == "receiving")
        with pair.sink.plane.lock:
            pair.sink.plane.ledgers.extents.allocate(ALIGN_BYTES)
        pair.sink.check_ledgers()
        assert faults(pair) == 0
