"""Two invariants of the lane parser, plain and encrypted.

- Whatever comes, it returns frames or raises RemoteProtocolError, and never asks for more than its limits.
- What a peer sent and someone damaged, cut, repeated, reordered or replayed on the way is never delivered as good.

`python -m fuzz.frames [--inputs N] [--seed S] [--processes P]`: noise, nearly legal conversations, and legal ones with
one thing changed, in turn.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import sys
import time
from dataclasses import dataclass, field
from functools import partial

from prfaas.core.errors import RemoteProtocolError
from prfaas.core.wire.frames import (
    MAX_CONTROL_BYTES,
    TRAILER_BYTES,
    FrameType,
    checksum,
    data_trailer,
    sum_of_header,
)
from prfaas.core.wire.lane import LaneProtocol, LaneState, Received
from prfaas.core.wire.messages import Abort, Hello, Open, Welcome
from prfaas.core.wire.seal import TAG_BYTES, LaneSeals, lane_seals

MAX_CHUNK = 4096
_SHARES = bytes(32), bytes(range(32))


@dataclass
class Delivered:
    """What a receiver took as good, in order: control frames by content, chunks by place and bytes."""

    frames: list[tuple[object, ...]] = field(default_factory=list)
    rejected: bool = False
    nacked: int = 0


def seals_of(encrypted: bool, *, dialer: bool) -> LaneSeals | None:
    """Keys of the one lane that is fuzzed."""
    return lane_seals(*_SHARES, dialer=dialer) if encrypted else None


class Sender:
    """Makes the frames of a conversation, as the dialing end does."""

    def __init__(self, rng: random.Random, encrypted: bool) -> None:
        self.rng = rng
        self.protocol = LaneProtocol(dialer=True, max_chunk_bytes=MAX_CHUNK, seals=seals_of(encrypted, dialer=True))
        self.frames = [self.protocol.send_message(Hello("a", "b", "c", 0, "sha256", "s", ""))]
        self.protocol.state = LaneState.SENDER

    def add(self) -> None:
        """One more frame of any kind that a dialer may send, and now and then one that it may not."""
        rng, protocol = self.rng, self.protocol
        choice = rng.randrange(6)
        if choice == 0:
            self.frames.append(protocol.send_message(Open("t", "x", rng.randrange(1 << 40), "f")))
        elif choice == 1:
            self.frames.append(protocol.send_message(Abort("t", "", "c", "m" * rng.randrange(100))))
        elif choice == 2:
            kind = rng.choice([FrameType.PING, FrameType.PONG])
            self.frames.append(protocol.send_signal(kind))
        else:
            self.frames.append(self._data(rng.randbytes(rng.randrange(1, 200))))

    def add_illegal(self) -> None:
        """A frame that only the other end sends."""
        self.frames.append(self.protocol.send_message(Welcome("n", "b", 1, 1)))

    def _data(self, payload: bytes) -> bytes:
        header = self.protocol.send_data_header(self.rng.randrange(4), self.rng.randrange(4096), len(payload))
        if not self.protocol.is_sealed:
            return header + payload + data_trailer(checksum(payload, sum_of_header(header)))
        out = bytearray(len(payload) + TAG_BYTES)
        self.protocol.seal_segment(memoryview(payload), memoryview(out))
        return header + bytes(out)


def receive(data: bytes, encrypted: bool) -> Delivered:
    """Feed a stream as a shell would, and keep what was delivered."""
    protocol = LaneProtocol(dialer=False, max_chunk_bytes=MAX_CHUNK, seals=seals_of(encrypted, dialer=False))
    found, position = Delivered(), 0
    try:
        while protocol.state is not LaneState.CLOSED:
            count = protocol.wanted_bytes()
            assert 0 <= count <= MAX_CONTROL_BYTES + TAG_BYTES
            if position + count > len(data):
                return found
            frame = protocol.receive(data[position : position + count])
            position += count
            if frame is None:
                continue
            if frame.header.type is not FrameType.DATA:
                found.frames.append((frame.header.type, frame.message))
                continue
            taken = _take_data(protocol, frame, data[position:], found)
            if taken is None:
                return found
            position += taken
    except RemoteProtocolError:
        found.rejected = True
    return found


def _take_data(protocol: LaneProtocol, frame: Received, rest: bytes, found: Delivered) -> int | None:
    """Bytes of the payload and what follows it; None if they have not all come."""
    header = frame.header
    assert 0 < header.length <= MAX_CHUNK
    behind = TAG_BYTES if protocol.is_sealed else TRAILER_BYTES
    if len(rest) < header.length + behind:
        return None
    payload = bytearray(header.length)
    if protocol.is_sealed:
        protocol.open_segment(memoryview(rest)[: header.length + behind], memoryview(payload))
        good = True
    else:
        payload[:] = rest[: header.length]
        good = protocol.data_received(
            checksum(payload, protocol.data_sum()), rest[header.length : header.length + behind]
        )
    if good:
        found.frames.append((header.type, header.handle, header.offset, bytes(payload)))
    else:
        found.nacked += 1
    return header.length + behind


def noise(rng: random.Random, encrypted: bool) -> None:
    """Anything, from random bytes to a conversation with several things wrong."""
    sender = Sender(rng, encrypted)
    for _ in range(rng.randrange(4)):
        sender.add()
    if rng.random() < 0.2:
        sender.add_illegal()
    if rng.random() < 0.3:
        rng.shuffle(sender.frames)
    data = bytearray(b"".join(sender.frames))
    for _ in range(rng.randrange(3)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    if rng.random() < 0.2:
        data = bytearray(rng.randbytes(rng.randrange(1, 300)))
    receive(bytes(data[: rng.randrange(1, len(data) + 1)]), encrypted)


def attack(rng: random.Random, encrypted: bool) -> None:
    """A good conversation with one change. What is delivered is what was sent up to the change, and on a plain lane,
    where only the damaged chunk is refused, what followed it; a replayed or forged frame never is."""
    sender = Sender(rng, encrypted)
    for _ in range(rng.randrange(2, 6)):
        sender.add()
    whole = receive(b"".join(sender.frames), encrypted)
    assert not whole.rejected
    assert len(whole.frames) == len(sender.frames)
    frames, at = list(sender.frames), rng.randrange(len(sender.frames))
    kind = rng.choice(["flip", "cut", "repeat", "swap", "drop", "insert"])
    if kind == "flip":
        changed = bytearray(frames[at])
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        frames[at] = bytes(changed)
    elif kind == "cut":
        frames[at] = frames[at][: rng.randrange(len(frames[at]))]
    elif kind == "repeat":
        frames.insert(rng.randrange(at + 1, len(frames) + 1), frames[at])
    elif kind == "swap":
        other = (at + 1) % len(frames)
        frames[at], frames[other] = frames[other], frames[at]
    elif kind == "drop":
        del frames[at]
    else:
        frames.insert(at, rng.randbytes(rng.randrange(1, 100)))
    found = receive(b"".join(frames), encrypted)
    _judge(whole, found, kind)


def _judge(whole: Delivered, found: Delivered, kind: str) -> None:
    """Delivered is a subsequence of what was sent: nothing twice, nothing changed, nothing out of its order."""
    sent = iter(whole.frames)
    assert all(frame in sent for frame in found.frames), f"{kind}: delivered what was not sent in this order"
    missing = len(whole.frames) - len(found.frames)
    if kind in ("flip", "cut", "drop", "swap"):
        assert missing or found.rejected, f"{kind}: not noticed"
    assert found.nacked <= 1


def run(seed: int, inputs: int) -> int:
    """Returns how many inputs were tried; raises at the first that breaks an invariant, which its seed repeats."""
    rng = random.Random(seed)
    for index in range(inputs):
        state = rng.getstate()
        try:
            (attack if index % 2 else noise)(rng, bool(index & 2))
        except Exception:
            sys.stderr.write(f"seed {seed}: broken at input {index}; the generator's state was {hash(state)}\n")
            raise
    return inputs


def main() -> None:
    """Command-line entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--processes", type=int, default=multiprocessing.cpu_count())
    arguments = parser.parse_args()
    parts = arguments.processes
    sys.stdout.write(f"seeds {arguments.seed} to {arguments.seed + parts - 1}\n")
    sys.stdout.flush()
    with multiprocessing.Pool(parts) as pool:
        seeds = range(arguments.seed, arguments.seed + parts)
        done = sum(pool.map(partial(run, inputs=-(-arguments.inputs // parts)), seeds))
    sys.stdout.write(f"{done} inputs, both invariants held\n")


if __name__ == "__main__":
    main()
