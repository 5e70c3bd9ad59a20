"""Invariant: the lane parser returns frames or raises RemoteProtocolError, and never asks for more than its limits.

`python -m fuzz.frames [--inputs N] [--seed S]`: noise, damaged frames and reordered conversations.
"""

from __future__ import annotations

import argparse
import random
import sys
import time

from prfaas.core.errors import RemoteProtocolError
from prfaas.core.wire.frames import MAX_CONTROL_BYTES, FrameType
from prfaas.core.wire.lane import LaneProtocol, LaneState
from prfaas.core.wire.messages import Abort, Hello, Open, Welcome

MAX_CHUNK = 4096


def one_input(rng: random.Random) -> bytes:
    """Something between noise and a nearly legal conversation."""
    dialer = LaneProtocol(dialer=True)
    frames = [dialer.send_message(Hello("a", "b", "c", 0, "sha256", "s", ""))]
    dialer.state = LaneState.SENDER
    for _ in range(rng.randrange(4)):
        choice = rng.randrange(5)
        if choice == 0:
            frames.append(dialer.send_message(Open("t", "x", rng.randrange(1 << 40), "f")))
        elif choice == 1:
            frames.append(dialer.send_message(Abort("t", "", "c", "m" * rng.randrange(100))))
        elif choice == 2:
            frames.append(dialer.send_message(Welcome("n", "b", 1, 1)))
        elif choice == 3:
            frames.append(dialer.send_data_header(1, 0, rng.randrange(1, MAX_CHUNK), 0) + rng.randbytes(9))
        else:
            frames.append(dialer.send_signal(rng.choice([FrameType.PING, FrameType.ACK, FrameType.NACK])))
    if rng.random() < 0.3:
        rng.shuffle(frames)
    data = bytearray(b"".join(frames))
    for _ in range(rng.randrange(3)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    if rng.random() < 0.2:
        data = bytearray(rng.randbytes(rng.randrange(1, 300)))
    return bytes(data[: rng.randrange(1, len(data) + 1)])


def parse(data: bytes) -> None:
    """Feed one input as a shell would."""
    protocol = LaneProtocol(dialer=False, max_chunk_bytes=MAX_CHUNK)
    position = 0
    while protocol.state is not LaneState.CLOSED:
        count = protocol.wanted_bytes()
        assert 0 <= count <= MAX_CONTROL_BYTES
        if position + count > len(data):
            return
        frame = protocol.receive(data[position : position + count])
        position += count
        if frame is not None and frame.header.type is FrameType.DATA:
            assert 0 < frame.header.length <= MAX_CHUNK
            position += frame.header.length
            protocol.data_received(0)


def run(inputs: int, seed: int) -> int:
    """Returns how many inputs were parsed; raises at the first that breaks the invariant, which its seed repeats."""
    rng = random.Random(seed)
    for _ in range(inputs):
        data = one_input(rng)
        try:
            parse(data)
        except RemoteProtocolError:
            pass
        except Exception:
            sys.stderr.write(f"seed {seed}: broken by {data.hex()}\n")
            raise
    return inputs


def main() -> None:
    """Command-line entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    sys.stdout.write(f"seed {arguments.seed}\n")
    sys.stdout.write(f"{run(arguments.inputs, arguments.seed)} inputs, invariant held\n")


if __name__ == "__main__":
    main()
