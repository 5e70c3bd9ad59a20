"""Link sense from the kernel's counters to the node's answers, on real sockets."""

from __future__ import annotations

import asyncio
import itertools
import random
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from prfaas.core.link.controller import LinkController
from prfaas.core.link.verdict import LinkVerdict
from prfaas.kvnode.http import Changes, Control
from prfaas.kvnode.metrics import NodeMetrics
from prfaas.observe.metrics import TABLE
from prfaas.testing.node_pair import NodePair, node_pair, wait_until
from prfaas.transport.limits import LaneLimits
from prfaas.transport.link_monitor import LinkMonitor
from prfaas.transport.outbound import Dial, PeerLink, link_plan
from prfaas.transport.tcp_info import tcp_info

#: From linux/socket.h; Python does not name it.
SO_MAX_PACING_RATE = 47
#: Of each of four lanes; the link of these tests gives 20 MB/s.
LANE_BYTES_PER_S = 5_000_000
LIMITS = LaneLimits(chunk_bytes=256 << 10, credit_bytes=16 << 20, short_link_senders=4)


def paced(dial: Dial) -> Dial:
    """A dialer whose connections send no faster than a lane's share."""

    def connect() -> socket.socket:
        sock = dial()
        sock.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, LANE_BYTES_PER_S)
        return sock

    return connect


def send(pair: NodePair, name: str, num_prompt_tokens: int) -> int:
    """Move a random image and forget it; returns its bytes."""
    memory = pair.stage_open(name, pair.reserve(name, num_prompt_tokens))
    memory[:] = random.Random(name).randbytes(len(memory))
    pair.source.staged(name, [(0, len(memory))])
    pair.source.stage_close(name)
    pair.wait_state(name, "landed")
    pair.sink.drop(name)
    return len(memory)


def acknowledged(link: PeerLink) -> int:
    """Bytes of all lanes, by the kernel."""
    return sum(info.bytes_acked for sock in link.live_sockets().values() if (info := tcp_info(sock)) is not None)


async def answers(pair: NodePair) -> tuple[dict[str, Any], str]:
    """GET /v1/links and GET /metrics of the sending node."""
    control = Control(pair.source, Changes(asyncio.get_running_loop()), NodeMetrics(pair.source))
    async with TestClient(TestServer(control.application())) as client:
        links = await (await client.get("/v1/links")).json()
        return links, await (await client.get("/metrics")).text()


def test_capacity_becomes_known_and_is_told(tmp_path: Path) -> None:
    """A loaded link of 20 MB/s is known to carry that, is pressed while it does, and both pages say so."""
    with node_pair(tmp_path, limits=LIMITS, arena_bytes=96 << 20, wrap_dial=paced) as pair:
        link = pair.source.links["sink"]
        wait_until(lambda: link.lanes_up == 4)
        before, _ = asyncio.run(answers(pair))
        assert before["links"]["sink"]["capacity_bytes_per_s"] is None
        num_bytes = send(pair, "a", 65_000)
        state = pair.source.link_monitor.states()["sink"]
        assert state.capacity_bytes_per_s == pytest.approx(4 * LANE_BYTES_PER_S, rel=0.2)
        assert state.verdict is not LinkVerdict.CLEAR
        assert (
            num_bytes
            <= wait_until(lambda: acked if (acked := acknowledged(link)) >= num_bytes else None)
            <= 1.01 * num_bytes
        )
        assert pair.source.plane.counters["bytes_sent", "sink"] == num_bytes
        links, metrics = asyncio.run(answers(pair))
        assert links["node"] == "source"
        told = links["links"]["sink"]
        assert told["lanes_up"] == 4
        assert told["verdict"] in ("pressed", "congested")
        assert told["capacity_bytes_per_s"] == pytest.approx(4 * LANE_BYTES_PER_S, rel=0.2)
        for row in TABLE:
            if row.name.startswith("prfaas_link_"):
                assert f'\n{row.name}{{peer="sink"}} ' in metrics, row.name
                assert f"# HELP {row.name} {row.help}\n" in metrics
        wait_until(lambda: pair.source.link_monitor.states()["sink"].verdict is LinkVerdict.CLEAR)
        assert pair.source.link_monitor.states()["sink"].capacity_bytes_per_s is not None


def test_lanes_that_are_no_tcp_and_lost_lanes_are_no_trouble(tmp_path: Path) -> None:
    """In-process pairs have no TCP_INFO: every figure stays unknown, and bytes move all the same."""
    with node_pair(tmp_path, kind="inproc") as pair:
        wait_until(lambda: pair.source.links["sink"].lanes_up == 4)
        send(pair, "a", 1000)
        pair.source.link_monitor.stop()
        pair.source.link_monitor.sample()
        state = pair.source.link_monitor.states()["sink"]
        assert (state.capacity_bytes_per_s, state.rtt_s, state.verdict) == (None, None, LinkVerdict.CLEAR)


def test_a_redialled_lane_is_another_connection(tmp_path: Path) -> None:
    """Counters of a new connection are never compared with those of the old one: what it has sent before it is first
    looked at counts for nothing, what it sends after that counts."""
    with node_pair(tmp_path) as pair:
        link = pair.source.links["sink"]
        pair.source.link_monitor.stop()
        ticks = itertools.count()
        link.controller = LinkController(link_plan(pair.source.config.limits))
        monitor = LinkMonitor(pair.source.links, lambda: next(ticks) / 10)
        wait_until(lambda: link.lanes_up == 4)
        monitor.sample()
        old = link.live_sockets()
        for sock in old.values():
            sock.shutdown(socket.SHUT_RDWR)
        wait_until(lambda: len(new := link.live_sockets()) == 4 and not set(new) & set(old))
        num_bytes = send(pair, "a", 1000)
        wait_until(lambda: acknowledged(link) >= num_bytes)
        monitor.sample()
        assert monitor.states()["sink"].delivered_bytes_per_s == 0
        before = acknowledged(link)
        num_bytes = send(pair, "b", 1000)
        wait_until(lambda: acknowledged(link) >= before + num_bytes)
        monitor.sample()
        assert monitor.states()["sink"].delivered_bytes_per_s > 0


def sensing() -> list[threading.Thread]:
    """Threads of this process that look at links."""
    return [thread for thread in threading.enumerate() if thread.name == "prfaas-link-sense"]


def test_a_node_without_peers_has_no_thread(tmp_path: Path) -> None:
    """Sensing costs nothing where nothing is sent, and a node ends its thread with itself."""
    with node_pair(tmp_path) as pair:
        assert pair.sink.link_monitor.states() == {}
        assert len(sensing()) == 1
    assert sensing() == []


def test_what_waits_for_a_link_is_told(tmp_path: Path) -> None:
    """All bytes of a transfer from its opening on, also those that no engine has computed yet; nothing once it ended."""
    with node_pair(tmp_path) as pair:
        wait_until(lambda: pair.source.links["sink"].lanes_up == 4)
        memory = pair.stage_open("a", pair.reserve("a", 1000))
        links, metrics = asyncio.run(answers(pair))
        told = links["links"]["sink"]
        assert (told["queued_bytes"], told["num_transfers"]) == (len(memory), 1)
        assert f'\nprfaas_link_queued_bytes{{peer="sink"}} {float(len(memory))}\n' in metrics
        half = len(memory) // 2
        pair.source.staged("a", [(0, half)])
        wait_until(lambda: pair.source.links["sink"].snapshot().queued_bytes == len(memory) - half)
        pair.source.staged("a", [(half, len(memory))])
        pair.source.stage_close("a")
        pair.wait_state("a", "landed")
        wait_until(lambda: pair.source.links["sink"].snapshot().num_transfers == 0)
        assert pair.source.links["sink"].snapshot().queued_bytes == 0
