"""An end of NIXL with its UCX backend; `nixl.py` runs two. A writes into B's memory, one request per move."""

from __future__ import annotations

import base64
import os
import time
from typing import Any

from nixl_cu12 import nixl_agent, nixl_agent_config  # type: ignore[import-not-found, unused-ignore]

from benchmarks.transport.answers import Handler, Memory, serve


class NixlEnd:
    """One agent and the memory registered with it.

    Both ends spin, as UCX over TCP does here: A in the loop that waits, B in the agent's progress thread. With such a
    thread at A too, two cores are fewer than the spinning threads, and NIXL was 40% slower.
    """

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {"open": self.open, "connect": self.connect, "move": self.move}
        serve(self._handlers)

    def open(self, address: str, sends: bool, num_bytes: int, num_pieces: int) -> dict[str, Any]:
        """Memory and agent up; answers how the other end reaches it."""
        self._memory = Memory(num_bytes, num_pieces)
        self._handlers |= self._memory.handlers()
        config = nixl_agent_config(backends=["UCX"], enable_prog_thread=not sends)
        self._agent = nixl_agent(f"end-{os.getpid()}", config)
        self._registered = self._agent.register_memory([(self._memory.address, num_bytes, 0, "")], "DRAM")
        metadata = base64.b64encode(self._agent.get_agent_metadata()).decode()
        return {"metadata": metadata, "address": self._memory.address}

    def connect(self, target: dict[str, Any]) -> dict[str, Any]:
        """Learn the target and prepare the request, which is then posted once per move."""
        peer = self._agent.add_remote_agent(base64.b64decode(target["metadata"]))
        peer = peer.decode() if isinstance(peer, bytes) else peer
        self._agent.make_connection(peer)
        here, there = self._pieces(self._memory.address), self._pieces(target["address"])
        self._request = self._agent.initialize_xfer("WRITE", here, there, peer)
        return {}

    def move(self) -> dict[str, Any]:
        """Post the request and spin until it is done: every look also moves it on."""
        started_s = time.perf_counter()
        state = self._agent.transfer(self._request)
        while state == "PROC":
            state = self._agent.check_xfer_state(self._request)
        seconds = time.perf_counter() - started_s
        if state != "DONE":
            raise RuntimeError(f"the transfer ended as {state}")
        return {"num_bytes": self._memory.num_bytes, "seconds": seconds}

    def _pieces(self, base: int) -> Any:
        pieces = [(address, self._memory.piece_bytes, 0) for address in self._memory.addresses(base)]
        return self._agent.get_xfer_descs(pieces, "DRAM")


if __name__ == "__main__":
    NixlEnd()
