"""Mooncake's Transfer Engine over TCP: batches of synchronous writes, as vLLM's and SGLang's connectors use it.

A lane waits for the acknowledgement of a piece before its next: over a WAN many small pieces cost a round trip each.

Either `mooncake-transfer-engine` (needs CUDA's libraries) or `mooncake-transfer-engine-non-cuda`, and libibverbs.
"""

from __future__ import annotations

from benchmarks.transport.ends import EndsMover


class Mooncake(EndsMover):
    """`lanes`: connections that are kept and shared; None leaves the library's defaults."""

    def __init__(self, python: str, lanes: int | None = None) -> None:
        env = {"MC_FORCE_TCP": "1", "GLOG_minloglevel": "1"}
        if lanes is not None:
            env |= {"MC_TCP_ENABLE_CONNECTION_POOL": "1", "MC_TCP_LANES_PER_PEER": str(lanes)}
        name = "Mooncake" if lanes is None else f"Mooncake {lanes} lanes"
        super().__init__(name, python, "benchmarks.transport.mooncake_end", "mooncake.engine", env)
