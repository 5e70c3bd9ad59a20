"""What every competitor of the transport benchmark offers, and what one move of it cost."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

from benchmarks.transport.wan import Net


@dataclass(frozen=True)
class Sample:
    """One move. `cpu_s`: user and system time of both ends together, during the move only.

    What the kernel does for a receiver in the name of another process (here: the WAN emulator) is in nobody's `cpu_s`.
    """

    num_bytes: int
    seconds: float
    cpu_s: float

    @property
    def gbit_per_s(self) -> float:
        """Payload over time, 10^9 bits per second."""
        return self.num_bytes * 8e-9 / self.seconds

    @property
    def cpu_s_per_gb(self) -> float:
        """CPU seconds per 10^9 bytes."""
        return self.cpu_s / (self.num_bytes * 1e-9)


class Mover(Protocol):
    """Moves the same bytes over and over between two ends that stay up. `start`, any number of `move`, `stop`."""

    @property
    def name(self) -> str: ...

    def available(self) -> str | None:
        """Why it cannot run on this machine; None when it can."""

    def start(self, net: Net, num_bytes: int, num_pieces: int) -> None:
        """Bring up both ends, connected, with `num_bytes` at A in equal pieces ("layers")."""

    def move(self) -> Sample:
        """All pieces from A to B, once."""

    def stop(self) -> None:
        """End both ends; also after a failure, and twice. Raises when B does not hold what A sent last."""


def process_cpu_s(pid: int) -> float:
    """User and system time of a running process with all its threads, ended ones too, to the nanosecond."""
    return time.clock_gettime((~pid << 3) | 2)  # how clock_getcpuclockid(3) names the clock of a process
