"""Two KV nodes in two processes, on one host or in two network namespaces, and transfers between them."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from prfaas.core.errors import PrfaasError

SOURCE: Final = "source"
SINK: Final = "sink"


class BenchError(PrfaasError):
    """An end of the benchmark failed; the text has what it said."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an end runs: an address to listen on, and what its command line is prefixed with (`ip netns exec NAME`)."""

    host: str = "127.0.0.1"
    prefix: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Moved:
    """One transfer. `cpu_s` is user and system time of both ends together while it ran."""

    num_bytes: int
    seconds: float
    cpu_s: float

    @property
    def gbps(self) -> float:
        return self.num_bytes * 8e-9 / self.seconds

    @property
    def cpu_s_per_gb(self) -> float:
        return self.cpu_s / (self.num_bytes * 1e-9)


class Process:
    """An `endpoint` process. Calls are answered in order; raises BenchError where it says no or has died."""

    def __init__(self, place: Place) -> None:
        self.place = place
        argv = [*place.prefix, sys.executable, "-m", "prfaas.bench.endpoint"]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self.tell(op, **fields)
        return self.answer()

    def tell(self, op: str, **fields: Any) -> None:
        """Send a command; `answer` must be called for it."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"op": op, **fields}) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise BenchError("an end of the benchmark has died; see its output above") from None

    def answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise BenchError("an end of the benchmark has died; see its output above")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise BenchError(answer["error"])
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


@dataclass
class NodeBench:
    """`start`, then `move` as often as wanted, then `stop`. Lanes stay up in between. `tls` maps `source` and `sink` to
    the fields of CredentialFiles; without it lanes are plain."""

    num_bytes: int
    source_place: Place = field(default_factory=Place)
    sink_place: Place = field(default_factory=Place)
    limits: Mapping[str, Any] = field(default_factory=dict)
    tls: Mapping[str, Mapping[str, str]] | None = None
    num_images: int = 1

    def start(self) -> None:
        """Start both nodes and wait for all lanes."""
        room = self.num_images * (self.num_bytes + (1 << 20))
        self._ids = itertools.count()
        self.sink, self.source = Process(self.sink_place), Process(self.source_place)
        common = {"arena_bytes": room, "limits": dict(self.limits)}
        tls = self.tls or {}
        port = self.sink.ask("start", name=SINK, host=self.sink_place.host, tls=tls.get(SINK), **common)["port"]
        peer = [SINK, self.sink_place.host, port]
        self.source.ask("start", name=SOURCE, host=self.source_place.host, peer=peer, tls=tls.get(SOURCE), **common)
        self.source.ask("wait_lanes", peer=SINK, count=1)

    def stop(self) -> None:
        for end in (self.source, self.sink):
            end.close()

    def move(self, num_pieces: int, interval_s: float = 0.0) -> Moved:
        """One image in `num_pieces` layers. The last byte is verified at the receiver when it ends, and the whole image
        is compared afterwards."""
        name, checksum = self.prepare()
        cpu_s = self.sink.ask("look")["cpu_s"]
        sent = self.source.ask("send", transfer_id=name, num_pieces=num_pieces, interval_s=interval_s)
        cpu_s = self.sink.ask("look")["cpu_s"] - cpu_s + sent["cpu_s"]
        if sent["record"]["reason"]:
            raise BenchError(f"the transfer was aborted: {sent['record']['reason']}")
        self.finish(name, checksum)
        return Moved(sent["record"]["num_bytes"], sent["seconds"], cpu_s)

    def prepare(self, num_bytes: int | None = None) -> tuple[str, int]:
        """A transfer that waits for its first layer, and the checksum of its image."""
        name = f"image-{next(self._ids)}"
        reservation = self.sink.ask("reserve", transfer_id=name, num_bytes=num_bytes or self.num_bytes)
        return name, self.source.ask("prepare", transfer_id=name, peer=SINK, reserved=reservation)["checksum"]

    def finish(self, name: str, checksum: int) -> None:
        """Compare and free both ends' memory. Raises BenchError if what came is not what was sent."""
        landing = self.sink.ask("drop", transfer_id=name, verify=True)
        self.source.ask("forget", transfer_id=name)
        if landing != {"state": "landed", "checksum": checksum}:
            raise BenchError(f"{name} is {landing['state']} and does not hold what was sent")
