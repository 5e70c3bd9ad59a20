"""An end of Mooncake's Transfer Engine over TCP; `mooncake.py` runs two. A writes into B's memory, a batch per move."""

from __future__ import annotations

import time
from typing import Any

from mooncake.engine import TransferEngine  # type: ignore[import-not-found, unused-ignore]

from benchmarks.transport.answers import Handler, Memory, serve


class MooncakeEnd:
    """One engine and the memory registered with it."""

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {"open": self.open, "connect": self.connect, "move": self.move}
        serve(self._handlers)

    def open(self, address: str, sends: bool, num_bytes: int, num_pieces: int) -> dict[str, Any]:
        """Memory and engine up; answers how the other end reaches it."""
        self._memory = Memory(num_bytes, num_pieces)
        self._handlers |= self._memory.handlers()
        self._engine = TransferEngine()
        _check("initialize", self._engine.initialize(address, "P2PHANDSHAKE", "tcp", ""))
        _check("register_memory", self._engine.register_memory(self._memory.address, num_bytes))
        return {"host": f"{address}:{self._engine.get_rpc_port()}", "address": self._memory.address}

    def connect(self, target: dict[str, Any]) -> dict[str, Any]:
        """Remember the target; the engine connects with the first move."""
        self._host = target["host"]
        self._there = self._memory.addresses(target["address"])
        self._here = self._memory.addresses(self._memory.address)
        self._lengths = [self._memory.piece_bytes] * len(self._here)
        return {}

    def move(self) -> dict[str, Any]:
        """All pieces in one synchronous batch."""
        started_s = time.perf_counter()
        code = self._engine.batch_transfer_sync_write(self._host, self._here, self._there, self._lengths)
        seconds = time.perf_counter() - started_s
        _check("batch_transfer_sync_write", code)
        return {"num_bytes": self._memory.num_bytes, "seconds": seconds}


def _check(what: str, code: int) -> None:
    if code:
        raise RuntimeError(f"{what} returned {code}")


if __name__ == "__main__":
    MooncakeEnd()
