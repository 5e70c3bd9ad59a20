"""Nodes come and go while others run: what is under way ends well, what is new goes where the file says."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from prfaas.core.errors import Refused
from prfaas.launch.addresses import free_ports
from prfaas.testing.node_pair import NodePair, node_pair, wait_until

KINDS = ["tcp", "tcp+tls"]
HERE = {"sink": ("127.0.0.1", 1)}
ELSEWHERE = {"sink": ("127.0.0.1", 2)}
KNOWN = {"sink": "sink"}
TOKENS = 5_000


class HalfSent:
    """A transfer of which half is staged."""

    def __init__(self, pair: NodePair, name: str) -> None:
        self.pair, self.name = pair, name
        memory = pair.stage_open(name, pair.reserve(name, TOKENS))
        self.image = random.Random(name).randbytes(len(memory))
        memory[:] = self.image
        self.half = len(memory) // 2
        pair.source.staged(name, [(0, self.half)])

    def finish(self) -> None:
        """Stage the rest; every byte lands."""
        self.pair.source.staged(self.name, [(self.half, len(self.image))])
        self.pair.source.stage_close(self.name)
        assert self.pair.wait_state(self.name, "landed", "aborted") == "landed"
        assert self.pair.landed_bytes(self.name) == self.image
        self.pair.sink.drop(self.name)


def has_lanes(pair: NodePair) -> bool:
    link = pair.source.links.get("sink")
    return link is not None and link.lanes_up > 0


def nothing_is_held(pair: NodePair) -> bool:
    return all(node.plane.ledgers.extents.num_live == 0 for node in (pair.source, pair.sink))


@pytest.mark.parametrize("kind", KINDS)
def test_a_peer_that_leaves_gets_what_was_on_its_way(tmp_path: Path, kind: str) -> None:
    """Nothing new is sent there, and its lanes are closed when the last transfer is over."""
    with node_pair(tmp_path, kind=kind) as pair:
        wait_until(lambda: has_lanes(pair))
        under_way = HalfSent(pair, "a")
        pair.source.follow({}, {})
        pair.source.tick()
        assert pair.source.links == {}
        with pytest.raises(Refused, match="has no peer 'sink'"):
            pair.stage_open("b", pair.reserve("b", 100))
        pair.sink.drop("b")
        under_way.finish()
        wait_until(lambda: pair.sink.inbound.lanes_from() == {})
        wait_until(lambda: nothing_is_held(pair))


@pytest.mark.parametrize("kind", KINDS)
def test_a_peer_comes_while_a_node_runs(tmp_path: Path, kind: str) -> None:
    """It is dialled and watched like one that was there from the start."""
    with node_pair(tmp_path, kind=kind) as pair:
        wait_until(lambda: has_lanes(pair))
        pair.source.follow({}, {})
        wait_until(lambda: pair.sink.inbound.lanes_from() == {})
        pair.source.follow(HERE, KNOWN)
        wait_until(lambda: has_lanes(pair))
        HalfSent(pair, "a").finish()
        wait_until(lambda: pair.source.link_monitor.states()["sink"].rtt_s is not None)


@pytest.mark.parametrize("kind", KINDS)
def test_a_peer_that_moves_is_another_peer(tmp_path: Path, kind: str) -> None:
    """The old transfer ends over the old lanes, the next one takes the new ones."""
    with node_pair(tmp_path, kind=kind) as pair:
        wait_until(lambda: has_lanes(pair))
        old_link = pair.source.links["sink"]
        old = HalfSent(pair, "a")
        pair.source.follow(ELSEWHERE, KNOWN)
        assert pair.source.links["sink"] is not old_link
        wait_until(lambda: has_lanes(pair))
        new = HalfSent(pair, "b")
        pair.source.tick()
        assert old_link.ledger.num_live == 1
        old.finish()
        new.finish()
        wait_until(lambda: old_link.lanes_up == 0)
        wait_until(lambda: nothing_is_held(pair))


def test_the_same_peers_again_change_nothing(tmp_path: Path) -> None:
    """A comment in the file costs no lane."""
    with node_pair(tmp_path) as pair:
        wait_until(lambda: has_lanes(pair))
        link = pair.source.links["sink"]
        pair.source.follow(HERE, KNOWN)
        assert pair.source.links["sink"] is link
        assert link.lanes_up


def test_a_node_that_is_not_known_any_more_is_not_let_in(tmp_path: Path) -> None:
    """Its transfer ends well first; then its lanes are closed, and new ones are refused with the reason."""
    with node_pair(tmp_path, kind="tcp+tls") as pair:
        wait_until(lambda: has_lanes(pair))
        under_way = HalfSent(pair, "a")
        wait_until(lambda: pair.sink.landing("a").state.value == "receiving")
        pair.sink.follow({}, {"other": "other"})
        pair.sink.tick()
        under_way.finish()
        wait_until(lambda: pair.sink.inbound.lanes_from() == {})
        link = pair.source.links["sink"]
        wait_until(lambda: "knows no source" in (link.refusal or ""))
        pair.sink.follow({}, {"source": "source"})
        wait_until(lambda: has_lanes(pair))


def _endpoint(ports: list[int]) -> str:
    engine, http, lanes = ports
    return f"{{engine: 'http://127.0.0.1:{engine}', kvnode: 'http://127.0.0.1:{http}', lanes: '127.0.0.1:{lanes}'}}"


def _file(path: Path, west: list[int], east: list[list[int]], more: str = "") -> None:
    pd = "".join(f"\n      - {_endpoint(ports)}" for ports in east)
    path.write_text(
        f"model: {{}}\nclusters:\n  west:\n    role: prfaas\n    endpoints:\n      - {_endpoint(west)}\n"
        f"  east:\n    role: pd\n    endpoints:{pd}\ntransfer: {{encryption: none, arena: 1MiB{more}}}\n"
    )


def _peers(port: int) -> dict[str, Any] | None:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            peers: dict[str, Any] = json.loads(answer.read())["peers"]
            return peers
    except OSError:
        return None


def test_nodes_of_a_file_follow_it(tmp_path: Path) -> None:
    """`prfaas kvnode FILE --name NAME` needs nothing else; a new receiver is dialled, a bad file changes nothing."""
    file = tmp_path / "d.yaml"
    ports = free_ports(9)
    west, first, second = ports[0:3], ports[3:6], ports[6:9]
    _file(file, west, [first])
    with ExitStack() as stack:
        nodes = {}

        def start(name: str) -> None:
            argv = [
                sys.executable,
                "-m",
                "prfaas",
                "kvnode",
                str(file),
                "--name",
                name,
                "--socket",
                str(tmp_path / name),
            ]
            log = stack.enter_context((tmp_path / f"{name}.log").open("w"))
            nodes[name] = stack.enter_context(subprocess.Popen(argv, stderr=log))
            stack.callback(nodes[name].kill)

        def connected() -> set[str]:
            return {name for name, peer in (_peers(west[1]) or {}).items() if peer["lanes_up"]}

        def log() -> str:
            return (tmp_path / "west-0.log").read_text()

        start("west-0")
        start("east-0")
        wait_until(lambda: connected() == {"east-0"}, 60)
        file.write_text("clusters: {")
        nodes["west-0"].send_signal(signal.SIGHUP)
        wait_until(lambda: "the deployment file is refused" in log(), 60)
        assert connected() == {"east-0"}
        _file(file, west, [first, second], ", chunk: 1MiB")
        start("east-1")
        wait_until(lambda: connected() == {"east-0", "east-1"}, 60)
        assert "need a restart and stay as they were: transfer.lanes, chunk" in log()
        _file(file, west, [second])
        wait_until(lambda: list(_peers(west[1]) or {}) == ["east-0"], 60)
        # The list is shorter now, so that the name east-0 means the second one, which has another name itself.
        wait_until(lambda: "wrong_node" in str(_peers(west[1])), 60)
        for node in nodes.values():
            node.send_signal(signal.SIGTERM)
        assert [node.wait(30) for node in nodes.values()] == [0, 0, 0]
