"""Two KV nodes in one process, joined by TCP on loopback or by in-process socket pairs, and an engine's view of each.

Public: connectors and tests of other projects drive these instead of processes. The same suite passes on both kinds.
"""

from __future__ import annotations

import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from prfaas.certs.throwaway import issue_throwaway
from prfaas.core.model.layout import KVGroup, KVGroupKind, KVLayout
from prfaas.core.transfer.landings import ClaimKey
from prfaas.core.wire.messages import Open
from prfaas.core.wire.node_api import Reservation, Reserved
from prfaas.kvnode.config import KVNodeConfig
from prfaas.kvnode.node import KVNode
from prfaas.transport.arena import Arena
from prfaas.transport.credentials import CredentialFiles, Credentials
from prfaas.transport.limits import LaneLimits
from prfaas.transport.outbound import Dial
from prfaas.transport.secure import LaneSecurity

T = TypeVar("T")

SMALL_LAYOUT = KVLayout(
    model="test",
    groups=(
        KVGroup(KVGroupKind.LINEAR_STATE, (0, 1), 0, 0, 4096, 0, "float32"),
        KVGroup(KVGroupKind.FULL_ATTENTION, (2,), 16, 16 * 512, 0, 0, "bfloat16"),
    ),
    block_tokens=16,
    align_tokens=16,
    max_model_tokens=65_536,
)

#: Faster than what ships, and slow enough that a machine which is busy with other things is not taken for a dead link.
FAST_LIMITS = LaneLimits(
    chunk_bytes=64 << 10, credit_bytes=1 << 20, heartbeat_s=0.2, lane_dead_after_s=2.5, peer_lost_after_s=2.5
)


def reservation(
    transfer_id: str, num_prompt_tokens: int, *, skip_tokens: int = 0, lease_s: float = 30.0
) -> Reservation:
    """Of a prompt that nobody will show."""
    return Reservation(
        transfer_id=transfer_id,
        num_prompt_tokens=num_prompt_tokens,
        token_digest="0" * 64,
        claim_secret="a secret that all tests share",
        skip_tokens=skip_tokens,
        lease_s=lease_s,
    )


def claim_key(num_prompt_tokens: int) -> ClaimKey:
    """What opens a landing of `reservation`."""
    asked = reservation("any", num_prompt_tokens)
    return ClaimKey(num_prompt_tokens, asked.token_digest, asked.claim_secret)


class PairListener:
    """A listener whose connections are in-process socket pairs: same bytes, no network."""

    def __init__(self) -> None:
        self._waiting: list[socket.socket] = []
        self._wake = threading.Condition()
        self._closed = False

    def connect(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        with self._wake:
            if self._closed:
                raise ConnectionRefusedError("listener is closed")
            self._waiting.append(theirs)
            self._wake.notify()
        return ours

    def accept(self) -> tuple[socket.socket, str]:
        """As socket.accept: blocks for the next connection."""
        with self._wake:
            while not self._waiting and not self._closed:
                self._wake.wait()
            if self._closed:
                raise OSError("listener is closed")
            return self._waiting.pop(0), "in-process"

    def getsockname(self) -> tuple[str, int]:
        """No address worth the name."""
        return "in-process", 0

    def shutdown(self, how: int) -> None:
        """Wake whoever accepts."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()

    def close(self) -> None:
        self.shutdown(socket.SHUT_RDWR)


@dataclass
class NodePair:
    """`source` sends to `sink`. `dials` counts connections so that tests can reach into them."""

    source: KVNode
    sink: KVNode
    layout: KVLayout
    sockets: list[socket.socket] = field(default_factory=list)

    def reserve(self, transfer_id: str, num_prompt_tokens: int, lease_s: float = 30.0) -> Reserved:
        """What the gateway does first."""
        return self.sink.reserve(reservation(transfer_id, num_prompt_tokens, lease_s=lease_s))

    def stage_open(self, transfer_id: str, reserved: Reserved, deadline_s: float = 30.0) -> memoryview:
        """What the prefill engine's scheduler does; returns the staging memory."""
        message = Open(transfer_id, reserved.token, reserved.num_bytes, self.layout.fingerprint)
        reply = self.source.stage_open("engine", message, "sink", deadline_s)
        start = reply.arena_offset
        return self.source.arena.view[start : start + reserved.num_bytes]

    def landed_bytes(self, transfer_id: str) -> bytes:
        """The landing's content."""
        return bytes(self.sink.plane.memory(self.sink.landing(transfer_id).extent))

    def wait_state(self, transfer_id: str, *states: str, timeout_s: float = 30.0) -> str:
        """Wait until the landing is in one of `states`."""
        return wait_until(lambda: s if (s := self.sink.landing(transfer_id).state.value) in states else None, timeout_s)


def wait_until(probe: Callable[[], T | None], timeout_s: float = 30.0) -> T:
    """Poll until `probe` gives something true. Raises TimeoutError; the limit is a hang-guard, not a speed test."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        value = probe()
        if value:
            return value
        time.sleep(0.005)
    raise TimeoutError(f"nothing within {timeout_s} s")


def issue_credentials(directory: Path) -> dict[str, CredentialFiles]:
    """Throw-away files of both nodes."""
    return {name: CredentialFiles(**files) for name, files in issue_throwaway(directory, ("source", "sink")).items()}


def _node(
    name: str,
    directory: Path,
    arena_bytes: int,
    listener: object,
    limits: LaneLimits,
    dial: Dial | None,
    files: CredentialFiles | None,
    on_change: Callable[[str], None],
) -> KVNode:
    arena = Arena(str(directory / f"{name}-{secrets.token_hex(4)}.arena"), arena_bytes, create=True)
    peers = {"sink": ("127.0.0.1", 1)} if dial else {}
    config = KVNodeConfig(name, "127.0.0.1", 0, "127.0.0.1", 0, "", arena_bytes, peers, limits)
    dials = {"sink": dial} if dial else {}
    other = "source" if name == "sink" else "sink"
    security = LaneSecurity(Credentials(files), {other: other}) if files else None
    return KVNode(config, arena, listener, dials=dials, security=security, on_change=on_change)  # type: ignore[arg-type]


@contextmanager
def node_pair(
    directory: Path,
    *,
    kind: str = "tcp",
    layout: KVLayout = SMALL_LAYOUT,
    limits: LaneLimits = FAST_LIMITS,
    arena_bytes: int = 8 << 20,
    wrap_dial: Callable[[Dial], Dial] = lambda dial: dial,
    credentials: Mapping[str, CredentialFiles] | None = None,
    on_change: Callable[[str], None] = lambda transfer_id: None,
) -> Iterator[NodePair]:
    """Two started nodes with an attached engine each. `kind` is `tcp`, `inproc`, or either with `+tls`, for which
    `credentials` may replace those of `issue_credentials`; `wrap_dial` may add faults; `on_change` hears of both."""
    if kind.endswith("+tls") and credentials is None:
        credentials = issue_credentials(directory / "certs")
    files = credentials or {}
    listener: socket.socket | PairListener
    dial: Dial
    if kind.startswith("tcp"):
        listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        dial = partial(socket.create_connection, listener.getsockname())
    else:
        listener = PairListener()
        dial = listener.connect
    sockets: list[socket.socket] = []

    def recording() -> socket.socket:
        sock = wrap_dial(dial)()
        sockets.append(sock)
        return sock

    own = socket.create_server(("127.0.0.1", 0))
    sink = _node("sink", directory, arena_bytes, listener, limits, None, files.get("sink"), on_change)
    source = _node("source", directory, arena_bytes, own, limits, recording, files.get("source"), on_change)
    pair = NodePair(source, sink, layout, sockets)
    for node in (sink, source):
        node.attach("engine", "engine", layout)
        node.start()
    try:
        yield pair
    finally:
        source.stop()
        sink.stop()
        source.arena.close()
        sink.arena.close()


def wait_for_few_threads(most: int) -> None:
    """Raises TimeoutError that names them."""
    try:
        wait_until(lambda: threading.active_count() < most)
    except TimeoutError as error:
        names = sorted(thread.name for thread in threading.enumerate())
        raise TimeoutError(f"{len(names)} threads, of {most} at most: {', '.join(names)}") from error
