"""Two KV nodes, of which one sends to the other: as processes of `prfaas kvnode`, or the fakes in a thread of this one."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import mmap
import os
import secrets
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prfaas.core.model.layout import KVLayout
from prfaas.core.wire.engine import VERSION, Attach, Claim, StageClose, Staged, StageOpen
from prfaas.core.wire.node_api import VERSION_HEADER
from prfaas.engines.node_client import NodeClient
from prfaas.launch.addresses import free_ports
from prfaas.testing.fake_kvnode import FakeKVNode, fake_layout
from prfaas.testing.node_pair import wait_until

LAYOUT = fake_layout()
DIGEST = "d" * 64
SECRET = "s" * 32
KINDS = ("process", "fake")


@dataclass(frozen=True)
class Answer:
    """What a node answered."""

    status: int
    headers: dict[str, str]
    body: Any

    @property
    def error(self) -> tuple[str, str]:
        """(code, message) of a refusal."""
        assert self.body.keys() == {"error"}, self.body
        assert self.body["error"].keys() == {"code", "message"}, self.body
        return self.body["error"]["code"], self.body["error"]["message"]


@dataclass
class Nodes:
    """`sink` receives what `source` sends; each is (control's URL, path of the engines' socket). An engine is attached
    to either, as scheduler and worker."""

    kind: str
    sink: tuple[str, str]
    source: tuple[str, str]
    decode: NodeClient = field(init=False)
    prefill: NodeClient = field(init=False)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.decode, self.prefill = engine(self.sink[1], "decode"), engine(self.source[1], "prefill")

    def new_id(self) -> str:
        """Of a transfer that nobody has used."""
        return f"t{next(self._numbers)}-{secrets.token_hex(4)}"

    def ask(
        self, method: str, path: str, body: object = None, *, url: str = "", raw: bytes | None = None,
        version: str | None = None,
    ) -> Answer:  # fmt: skip
        """One request to the receiving node, or to the one at `url`."""
        data = json.dumps(body).encode() if raw is None and body is not None else raw
        headers = {"content-type": "application/json", **({} if version is None else {VERSION_HEADER: version})}
        request = urllib.request.Request((url or self.sink[0]) + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return Answer(reply.status, _lower(reply.headers), _decoded(reply.read()))
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, _lower(error.headers), _decoded(error.read()))

    def reserve(self, transfer_id: str, **other: object) -> Any:
        """The answer to a good reservation of 100 tokens."""
        answer = self.ask("POST", "/v1/landings", {**reservation(transfer_id), **other})
        assert answer.status == 201, answer
        return answer.body

    def record(self, transfer_id: str, query: str = "") -> Any:
        """The landing's record."""
        answer = self.ask("GET", f"/v1/landings/{transfer_id}{query}")
        assert answer.status == 200, answer
        return answer.body

    def ship(self, transfer_id: str, reserved: dict[str, Any], **other: Any) -> bytes:
        """What the prefill engine does; returns the image."""
        wanted = {"token": reserved["token"], "num_bytes": reserved["num_bytes"], "deadline_s": 30.0, **other}
        opened = self.prefill.stage_open(StageOpen(transfer_id=transfer_id, peer="sink-0", **wanted))
        image = secrets.token_bytes(opened.num_bytes)
        with arena(self.prefill) as memory:
            memory[opened.arena_offset : opened.arena_offset + len(image)] = image
        middle = len(image) // 2
        self.prefill.staged(Staged(transfer_id=transfer_id, ranges=((0, middle), (middle, len(image)))))
        self.prefill.stage_close(StageClose(transfer_id=transfer_id))
        return image

    def landed(self, **other: object) -> tuple[str, bytes]:
        """A landing that is whole: its id and image."""
        transfer_id = self.new_id()
        image = self.ship(transfer_id, self.reserve(transfer_id, **other))
        record = self.record(transfer_id, "?wait_s=30&until=landed")
        assert record["state"] == "landed", record
        return transfer_id, image


def reservation(transfer_id: str) -> dict[str, object]:
    """A good one, with every field."""
    return {
        "transfer_id": transfer_id, "num_prompt_tokens": 100, "skip_tokens": 0, "lease_s": 30.0,
        "token_digest": DIGEST, "claim_secret": SECRET,
    }  # fmt: skip


def claim(transfer_id: str) -> Claim:
    """What opens a landing of `reservation`."""
    return Claim(transfer_id=transfer_id, num_prompt_tokens=100, token_digest=DIGEST, claim_secret=SECRET)


def engine(socket_path: str, name: str, layout: KVLayout | None = LAYOUT) -> NodeClient:
    """A worker's connection; deadlines are hang-guards."""
    return NodeClient(socket_path, Attach(version=VERSION, engine_id=name, boot_id=name, layout=layout), 60.0)


@contextlib.contextmanager
def arena(client: NodeClient) -> Iterator[memoryview]:
    """The node's memory, as its engine maps it."""
    attached = client.attach()
    descriptor = os.open(attached.arena_path, os.O_RDWR)
    try:
        with mmap.mmap(descriptor, attached.arena_bytes) as mapped, memoryview(mapped) as view:
            yield view
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def nodes(kind: str, directory: Path) -> Iterator[Nodes]:
    """Both nodes with their engines, the link between them up."""
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(_processes(directory) if kind == "process" else _fakes())
        pair = Nodes(kind, *made)
        for client in (pair.decode, pair.prefill):
            stack.callback(client.close)
            client.attach()
        wait_until(lambda: pair.ask("GET", "/health", url=pair.source[0]).body["peers"]["sink-0"]["lanes_up"] == 4)
        yield pair


@contextlib.contextmanager
def _processes(directory: Path) -> Iterator[tuple[tuple[str, str], tuple[str, str]]]:
    ports = free_ports(4)
    with contextlib.ExitStack() as stack:
        made = []
        for name, http_port, lanes_port, peers in (
            ("sink-0", ports[0], ports[1], []),
            ("source-0", ports[2], ports[3], ["--peer", f"sink-0=127.0.0.1:{ports[1]}"]),
        ):
            path = str(directory / f"{name}.sock")
            argv = [sys.executable, "-m", "prfaas", "kvnode", "--name", name, "--http", f"127.0.0.1:{http_port}",
                    "--lanes", f"127.0.0.1:{lanes_port}", "--socket", path, "--arena", "8MiB", "--plain", *peers]  # fmt: skip
            log = stack.enter_context((directory / f"{name}.log").open("wb"))
            process = subprocess.Popen(argv, stdout=log, stderr=log)
            stack.callback(_end, process)
            made.append((f"http://127.0.0.1:{http_port}", path))
        for url, _ in made:
            wait_until(lambda url=url: _answers(url), 60.0)  # type: ignore[misc]
        yield made[0], made[1]


@contextlib.contextmanager
def _fakes() -> Iterator[tuple[tuple[str, str], tuple[str, str]]]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    sink = FakeKVNode("sink-0")
    source = FakeKVNode("source-0", peers={"sink-0": sink})
    for node in (sink, source):
        node.has_engine = False
        asyncio.run_coroutine_threadsafe(node.start(), loop).result(60)
    try:
        yield (sink.url, sink.socket_path), (source.url, source.socket_path)
    finally:
        for node in (source, sink):
            asyncio.run_coroutine_threadsafe(node.__aexit__(None, None, None), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(60)
        loop.close()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    process.wait(60)


def _lower(headers: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _decoded(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        return raw.decode(errors="replace")
