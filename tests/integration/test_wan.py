"""Faults that only a network makes: loss, a longer path, a cut. Real nodes in two namespaces; needs root, else skipped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from benchmarks.transport.link import nodes
from benchmarks.transport.wan import WanNet, WanSettings, available, wan
from prfaas.bench.nodes import SINK, NodeBench
from prfaas.testing.node_pair import wait_until

if reason := available():
    pytest.skip(f"no emulated WAN here: {reason}", allow_module_level=True)

NUM_BYTES = 64 << 20
#: A cut that heals before the peer counts as lost; longer than any lane may be silent.
CUT_S = 2.0


@pytest.fixture
def net() -> Iterator[WanNet]:
    """500 Mbit/s, 20 ms."""
    with wan(WanSettings(rate_mbit=500, one_way_ms=10, queue_ms=20)) as link:
        yield link


@pytest.fixture
def bench(net: WanNet) -> Iterator[NodeBench]:
    """Two nodes on it."""
    with nodes(net, NUM_BYTES, max_lanes=4) as pair:
        yield pair


def held(bench: NodeBench) -> dict[str, Any]:
    """Arena and descriptors of both ends, once all lanes are up."""
    bench.source.ask("wait_lanes", peer=SINK, count=4)
    looks = {"source": bench.source.ask("look"), "sink": bench.sink.ask("look")}
    return {name: (look["free_bytes"], look["descriptors"]) for name, look in looks.items()}


def cut(net: WanNet) -> None:
    """Nothing passes for a while."""
    net.set(loss_percent=100)
    time.sleep(CUT_S)  # this is the fault itself, not a wait for something
    net.set(loss_percent=0)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(lambda net: net.set(loss_percent=5), id="5% loss"),
        pytest.param(lambda net: net.set(one_way_ms=60), id="100 ms more"),
        pytest.param(lambda net: net.set(rate_mbit=50), id="a tenth of the rate"),
        pytest.param(cut, id="cut"),
    ],
)
def test_a_transfer_outlives_the_network(net: WanNet, bench: NodeBench, fault: Callable[[WanNet], None]) -> None:
    """What was under way arrives whole, and memory and descriptors are what they were before."""
    before = held(bench)
    name, checksum = bench.prepare()
    bench.source.ask("stage", transfer_id=name, num_pieces=16)
    wait_until(lambda: bench.source.ask("record", transfer_id=name)["bytes_acked"])
    fault(net)
    record = bench.source.ask("finished", transfer_ids=[name])[name]
    assert (record["state"], record["reason"]) == ("committed", None)
    assert record["bytes_acked"] == record["num_bytes"]
    bench.finish(name, checksum)
    net.set(rate_mbit=500, one_way_ms=10, loss_percent=0)
    wait_until(lambda: held(bench) == before)
