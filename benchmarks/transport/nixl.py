"""NIXL with its UCX backend over TCP. The package `nixl-cu12`; installed with --no-deps it needs only NumPy."""

from __future__ import annotations

from benchmarks.transport.ends import EndsMover
from benchmarks.transport.wan import Net


class Nixl(EndsMover):
    """UCX is held to TCP on the one device of the net."""

    def __init__(self, python: str) -> None:
        env = {"UCX_TLS": "tcp", "NIXL_LOG_LEVEL": "ERROR"}
        super().__init__("NIXL", python, "benchmarks.transport.nixl_end", "nixl_cu12", env)

    def env_for(self, net: Net) -> dict[str, str]:
        """Also the device."""
        return self._env | {"UCX_NET_DEVICES": net.device}
