"""What every competitor of the transport benchmark offers, and what one move of it cost.

What the kernel does for a receiver in the name of another process (here: the WAN emulator) is in nobody's CPU time.
"""

from __future__ import annotations

import time
from typing import Protocol

from benchmarks.transport.wan import Net
from prfaas.bench.nodes import Moved


class Mover(Protocol):
    """Moves the same bytes over and over between two ends that stay up. `start`, any number of `move`, `stop`."""

    @property
    def name(self) -> str: ...

    def available(self) -> str | None:
        """Why it cannot run on this machine; None when it can."""

    def start(self, net: Net, num_bytes: int, num_pieces: int) -> None:
        """Bring up both ends, connected, with `num_bytes` at A in equal pieces ("layers")."""

    def move(self) -> Moved:
        """All pieces from A to B, once."""

    def stop(self) -> None:
        """End both ends; also after a failure, and twice. Raises when B does not hold what A sent last."""


def process_cpu_s(pid: int) -> float:
    """User and system time of a running process with all its threads, ended ones too, to the nanosecond."""
    return time.clock_gettime((~pid << 3) | 2)  # how clock_getcpuclockid(3) names the clock of a process
