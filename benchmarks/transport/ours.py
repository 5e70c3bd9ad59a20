"""PrfaaS's own transport as a mover: two KV nodes, as `prfaas bench transport` runs them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.transport.wan import Net
from prfaas.bench.nodes import SINK, SOURCE, Moved, NodeBench, Place
from prfaas.certs.throwaway import issue_throwaway


class Prfaas:
    """Lanes stay up between moves and are not paused, as they would be taken for dead; idle they send a ping a second.

    Every move is verified: each chunk by its checksum or seal, and the whole image against the sender's.
    """

    def __init__(self, name: str, *, encrypted: bool, limits: Mapping[str, Any] | None = None) -> None:
        self.name = name
        self._encrypted = encrypted
        self._limits = dict(limits or {})
        self._directory: str | None = None
        self.bench: NodeBench | None = None

    def available(self) -> str | None:
        """Always."""
        return None

    def start(self, net: Net, num_bytes: int, num_pieces: int) -> None:
        """Both nodes, all lanes up."""
        self._num_pieces = num_pieces
        tls = None
        if self._encrypted:
            self._directory = tempfile.mkdtemp(prefix="prfaas-bench-")
            tls = issue_throwaway(Path(self._directory), (SOURCE, SINK))
        places = Place(net.a_address, net.a_prefix), Place(net.b_address, net.b_prefix)
        self.bench = NodeBench(num_bytes, *places, limits=self._limits, tls=tls)
        self.bench.start()

    def move(self) -> Moved:
        """One image in layers that are all ready at once."""
        assert self.bench, "start() comes first"
        return self.bench.move(self._num_pieces)

    def stop(self) -> None:
        """End both nodes."""
        if self.bench is not None:
            self.bench.stop()
            self.bench = None
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None
