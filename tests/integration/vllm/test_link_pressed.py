"""The threshold on real engines, nodes and lanes while the link is slowed to a tenth, and is back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.scheduler.real import measure

pytestmark = pytest.mark.vllm


def test_a_slow_link_is_left_and_taken_again(models: Path, record_property: Callable[[str, object], None]) -> None:
    """The solved threshold rises and falls again, and no request fails. How soon, and what clients wait for, is
    measured in docs/benchmarks/scheduler.md."""
    found = measure(models, phase_s=15.0, num_clients=6, slowed=0.05)
    record_property("found", json.dumps(found))
    print(json.dumps(found, indent=2))
    assert found["num_failed"] == 0, found["failures"]
    assert found["threshold_slow"] > 1.2 * found["threshold_usual"]
    assert found["rose_s"] is not None
    assert found["fell_s"] is not None
    phases = found["phases"]
    assert phases["all local"]["offloaded"] == 0.0
