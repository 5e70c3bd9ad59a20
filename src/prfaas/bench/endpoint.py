"""One end of a transport benchmark: a real KV node in a process of its own, driven by JSON lines.

`python -m prfaas.bench.endpoint` reads one command a line from standard input and answers each with one line. It is the
node that serves, without HTTP and engines: what they would do (reserve, stage, free) the commands do.
"""

from __future__ import annotations

import json
import os
import resource
import secrets
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from prfaas.core.model.layout import KVGroup, KVGroupKind, KVLayout
from prfaas.core.wire.contract import to_values
from prfaas.core.wire.frames import checksum
from prfaas.core.wire.messages import Open
from prfaas.core.wire.node_api import Reservation, TransferRecord
from prfaas.kvnode.config import KVNodeConfig
from prfaas.kvnode.node import KVNode
from prfaas.kvnode.server import arena_path, lanes_address
from prfaas.transport.arena import Arena
from prfaas.transport.credentials import CredentialFiles, Credentials
from prfaas.transport.limits import LaneLimits
from prfaas.transport.secure import LaneSecurity

BLOCK_TOKENS: Final = 16
_PAGE_BYTES: Final = 1 << 16
#: A transfer that takes longer has stalled.
_DEADLINE_S: Final = 600.0


def bench_layout() -> KVLayout:
    """An image is as long as its tokens: 4 KiB each, in blocks of 16."""
    group = KVGroup(KVGroupKind.FULL_ATTENTION, (0,), BLOCK_TOKENS, _PAGE_BYTES, 0, 0, "bfloat16")
    return KVLayout("bench", (group,), BLOCK_TOKENS, BLOCK_TOKENS, 1 << 30)


def num_tokens(num_bytes: int) -> int:
    """Tokens whose image has at least this many bytes."""
    return -(-num_bytes // _PAGE_BYTES) * BLOCK_TOKENS


class Endpoint:
    """The commands. Every method takes and returns what JSON can say."""

    def __init__(self) -> None:
        self._node: KVNode | None = None
        self._arena: Arena | None = None
        self._ended = threading.Condition()
        self._memory: dict[str, memoryview] = {}

    @property
    def node(self) -> KVNode:
        assert self._node is not None, "start comes first"
        return self._node

    def start(
        self,
        *,
        name: str,
        host: str,
        arena_bytes: int,
        limits: dict[str, Any],
        peer: list[Any] | None = None,
        tls: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """Start the node; `peer` is [name, host, port]. Returns the port of its lanes."""
        self._arena = Arena(arena_path(name), arena_bytes, create=True)
        lanes = lanes_address(host, 0)
        lanes.listen()
        listener = lanes.sockets[0]
        peers = {str(peer[0]): (str(peer[1]), int(peer[2]))} if peer else {}
        config = KVNodeConfig(name, host, 0, host, 0, "", arena_bytes, peers, LaneLimits(**limits))
        security = LaneSecurity(Credentials(CredentialFiles(**tls)), None) if tls else None
        self._node = KVNode(config, self._arena, listener, security=security, on_change=self._changed)
        self._node.attach("bench", "bench", bench_layout())
        self._node.start()
        return {"port": listener.getsockname()[1]}

    def stop(self) -> dict[str, Any]:
        if self._node is not None:
            self._node.stop()
        if self._arena is not None:
            self._memory.clear()
            self._arena.close()
        self._node = self._arena = None
        return {}

    def wait_lanes(self, *, peer: str, count: int) -> dict[str, Any]:
        """Until so many lanes to `peer` are up."""
        link = self.node.links[peer]
        self._wait(lambda: link.lanes_up >= count, lambda: f"{link.lanes_up} of {count} lanes to {peer} are up")
        return {}

    def reserve(self, *, transfer_id: str, num_bytes: int) -> dict[str, Any]:
        """A landing at this node."""
        asked = Reservation(
            transfer_id=transfer_id,
            num_prompt_tokens=num_tokens(num_bytes),
            token_digest="0" * 64,
            claim_secret=secrets.token_urlsafe(),
            skip_tokens=0,
            lease_s=_DEADLINE_S,
        )
        return to_values(self.node.reserve(asked))

    def prepare(self, *, transfer_id: str, peer: str, reserved: dict[str, Any]) -> dict[str, Any]:
        """Open the transfer and fill its staging with bytes that differ from place to place. Returns their checksum."""
        message = Open(transfer_id, reserved["token"], reserved["num_bytes"], reserved["fingerprint"])
        reply = self.node.stage_open("bench", message, peer, _DEADLINE_S)
        start = reply.arena_offset
        memory = self.node.arena.view[start : start + message.num_bytes]
        piece = os.urandom(1 << 20)
        for index, offset in enumerate(range(0, len(memory), len(piece))):
            end = min(offset + len(piece), len(memory))
            memory[offset:end] = piece[: end - offset]
            memory[offset : offset + 8] = index.to_bytes(8, "little")
        self._memory[transfer_id] = memory
        return {"checksum": checksum(memory)}

    def send(self, *, transfer_id: str, num_pieces: int, interval_s: float = 0.0) -> dict[str, Any]:
        """Stage the image in `num_pieces` layers, one every `interval_s`; returns when the receiver has verified all.

        `seconds` counts from the start of the first layer's computation, `num_pieces * interval_s` before the last is
        staged.
        """
        started_s, cpu_s = time.perf_counter(), cpu_seconds()
        self.stage(transfer_id=transfer_id, num_pieces=num_pieces, interval_s=interval_s)
        self.finished(transfer_ids=[transfer_id])
        seconds = time.perf_counter() - started_s
        return {"seconds": seconds, "cpu_s": cpu_seconds() - cpu_s, "record": to_values(self._sent(transfer_id))}

    def stage(self, *, transfer_id: str, num_pieces: int, interval_s: float = 0.0) -> dict[str, Any]:
        """As `send`, without waiting for the end."""
        num_bytes = len(self._memory[transfer_id])
        started_s = time.perf_counter()
        for index in range(num_pieces):
            if interval_s:
                time.sleep(max(0.0, started_s + (index + 1) * interval_s - time.perf_counter()))
            start, end = (num_bytes * i // num_pieces for i in (index, index + 1))
            self.node.staged(transfer_id, [(start, end)])
        return {}

    def record(self, *, transfer_id: str) -> dict[str, Any]:
        """A transfer's record, under way or ended."""
        return to_values(self.node.transfer_record(transfer_id))

    def finished(self, *, transfer_ids: list[str]) -> dict[str, Any]:
        """Wait for all of these; returns their records."""

        def pending() -> list[str]:
            return [name for name in transfer_ids if self.node.sent.get(name) is None]

        self._wait(lambda: not pending(), lambda: f"transfers {', '.join(pending())} have not ended")
        return {name: to_values(self._sent(name)) for name in transfer_ids}

    def _sent(self, transfer_id: str) -> TransferRecord:
        record = self.node.sent.get(transfer_id)
        assert record is not None, "it was waited for"
        return record

    def forget(self, *, transfer_id: str) -> dict[str, Any]:
        """The sender's staging is free again."""
        self._memory.pop(transfer_id).release()
        self.node.stage_close(transfer_id)
        return {}

    def drop(self, *, transfer_id: str, verify: bool = False) -> dict[str, Any]:
        """Free the landing; with `verify` returns its state and checksum first."""
        landing = self.node.landing(transfer_id)
        found = {"state": landing.state.value}  # before dropping changes it
        crc = checksum(self.node.plane.memory(landing.extent)) if verify else None
        self.node.drop(transfer_id)
        return {**found, "checksum": crc}

    def look(self) -> dict[str, Any]:
        """CPU seconds, links, counters, open descriptors, resident bytes."""
        return {
            "cpu_s": cpu_seconds(),
            "links": to_values(self.node.link_reports())["links"],
            "paced": self.node.link_monitor.paced_bytes_per_s(),
            "counters": {"/".join(key): value for key, value in self.node.plane.counters.items()},
            "descriptors": len(os.listdir("/proc/self/fd")),
            "free_bytes": self.node.plane.ledgers.extents.free_bytes,
        }

    def _changed(self, transfer_id: str) -> None:
        with self._ended:
            self._ended.notify_all()

    def _wait(self, probe: Callable[[], bool], missing: Callable[[], str]) -> None:
        """`missing` says what has not come. Raises TimeoutError."""
        deadline_s = time.monotonic() + _DEADLINE_S
        with self._ended:
            while not probe():
                self._ended.wait(0.01)  # lanes that come up tell nobody
                if time.monotonic() > deadline_s:
                    raise TimeoutError(f"{missing()} after {_DEADLINE_S:g} s; is the link cut?")


def cpu_seconds() -> float:
    """User and system time of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Serve commands until standard input ends."""
    endpoint = Endpoint()
    try:
        for line in sys.stdin:
            command = json.loads(line)
            try:
                answer = getattr(endpoint, command.pop("op"))(**command)
            except Exception as error:  # whatever it is, the driver must hear of it
                answer = {"error": f"{type(error).__name__}: {error}"}
            sys.stdout.write(json.dumps(answer, default=str) + "\n")
            sys.stdout.flush()
    except (KeyboardInterrupt, BrokenPipeError, OSError):
        pass
    finally:
        endpoint.stop()


if __name__ == "__main__":
    main()
