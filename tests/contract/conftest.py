"""One pair of nodes per kind and module: starting two processes takes seconds."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.nodes import KINDS, Nodes, nodes


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest) -> Iterator[Nodes]:
    """The real node as a process, and the shipped fake: what is true of one is true of the other."""
    # Not pytest's own folder: a Unix socket's path may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="prfaas-") as directory, nodes(request.param, Path(directory)) as made:
        yield made
