"""A KV node is killed and started again: the first transfer after that is not for nothing, on either side."""

from __future__ import annotations

import json
import mmap
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from prfaas.core.errors import Refused
from prfaas.core.wire.engine import VERSION, Attach, Claim, Consumed, StageClose, Staged, StageOpen
from prfaas.engines.node_client import NodeClient, NodeUnavailable
from prfaas.launch.addresses import free_ports
from prfaas.testing.node_pair import SMALL_LAYOUT, wait_until

NUM_TOKENS = 1000
CLAIM: dict[str, Any] = {"num_prompt_tokens": NUM_TOKENS, "token_digest": "d" * 64, "claim_secret": "s" * 32}


def claim(transfer_id: str) -> Claim:
    """Of a landing that `transfer` reserved."""
    return Claim(transfer_id=transfer_id, **CLAIM)


class Node:
    """One `prfaas kvnode`, and the two connections of the engine beside it."""

    def __init__(self, folder: Path, name: str, http: int, lanes: int, peer: str = "") -> None:
        self.url = f"http://127.0.0.1:{http}"
        self._socket = str(folder / f"{name}.sock")
        self._log = folder / f"{name}.log"
        self._argv = [sys.executable, "-m", "prfaas", "kvnode", "--name", name, "--http", f"127.0.0.1:{http}"]
        self._argv += ["--lanes", f"127.0.0.1:{lanes}", "--socket", self._socket, "--arena", "8MiB", "--plain"]
        self._argv += ["--peer", peer] if peer else []
        who = Attach(version=VERSION, engine_id=name, boot_id=f"boot-{name}", layout=None)
        self.scheduler = NodeClient(self._socket, who, 30.0)
        self.worker = NodeClient(self._socket, msgspec.structs.replace(who, layout=SMALL_LAYOUT), 30.0)
        self.start()

    def start(self) -> None:
        """And wait until the engine's worker has attached, which asks again and again."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._argv, stderr=log)
        wait_until(self._worker_attached)

    def restart(self) -> None:
        """After kill -9. The engine's scheduler only talks to its node when a request comes."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(30)
        self.start()

    def end(self) -> None:
        self.scheduler.close()
        self.worker.close()
        self._process.terminate()
        self._process.wait(30)

    def http(self, path: str, body: Any = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(self.url + path, data), timeout=30) as answer:
            found: dict[str, Any] = json.loads(answer.read())
            return found

    def arena(self) -> mmap.mmap:
        """As the engine's worker maps it."""
        attached = self.worker.attach()
        with open(attached.arena_path, "r+b") as file:
            return mmap.mmap(file.fileno(), attached.arena_bytes)

    def _worker_attached(self) -> bool:
        try:
            self.worker.ping()
        except NodeUnavailable:
            return False
        return True


@contextmanager
def two_nodes(folder: Path) -> Iterator[tuple[Node, Node]]:
    """West sends to east; one lane at least is up."""
    ports = free_ports(4)
    with ExitStack() as stack:
        east = Node(folder, "east-0", ports[0], ports[1])
        stack.callback(east.end)
        west = Node(folder, "west-0", ports[2], ports[3], f"east-0=127.0.0.1:{ports[1]}")
        stack.callback(west.end)
        wait_lanes(west)
        yield west, east


def wait_lanes(west: Node) -> None:
    """What the gateway waits for: /health of the sending node."""
    wait_until(lambda: west.http("/health")["peers"]["east-0"]["lanes_up"] > 0)


def transfer(west: Node, east: Node, name: str) -> dict[str, Any]:
    """One offloaded request, in the order in which gateway and engines do it. Returns the landing's final record."""
    asked = {"transfer_id": name, "skip_tokens": 0, "lease_s": 60.0, **CLAIM}
    landing = east.http("/v1/landings", asked)
    wanted = {"token": landing["token"], "num_bytes": landing["num_bytes"], "deadline_s": 60.0}
    opened = west.scheduler.stage_open(StageOpen(transfer_id=name, peer="east-0", **wanted))
    start, size = opened.arena_offset, opened.num_bytes
    content = os.urandom(size)
    west.arena()[start : start + size] = content
    west.worker.staged(Staged(transfer_id=name, ranges=((0, size),)))
    west.worker.stage_close(StageClose(transfer_id=name))
    landed = east.http(f"/v1/landings/{name}?wait_s=30&until=landed")
    assert landed["state"] == "landed", landed
    start = east.scheduler.claim(claim(name)).arena_offset
    assert east.arena()[start : start + size] == content
    east.worker.consumed(Consumed(transfer_id=name, loaded=NUM_TOKENS - 1, recomputed=1))
    return east.http(f"/v1/landings/{name}?wait_s=30&until=final")


@pytest.mark.parametrize("killed", ["west", "east"])
def test_the_first_transfer_after_a_restart_is_loaded(tmp_path: Path, killed: str) -> None:
    """A scheduler's connection ended with the node, which nobody has noticed: it must not cost the transfer that does."""
    with two_nodes(tmp_path) as (west, east):
        assert transfer(west, east, "before")["tokens_loaded"] == NUM_TOKENS - 1
        (west if killed == "west" else east).restart()
        wait_lanes(west)
        record = transfer(west, east, "after")
        assert (record["state"], record["tokens_loaded"]) == ("consumed", NUM_TOKENS - 1)


def test_a_refusal_of_the_new_node_is_a_refusal(tmp_path: Path) -> None:
    """The call is asked again once, and its answer is the new node's; with no node there it ends soon."""
    with two_nodes(tmp_path) as (west, east):
        assert transfer(west, east, "before")["state"] == "consumed"
        east.restart()
        with pytest.raises(Refused):
            east.scheduler.claim(claim("before"))
