"""The short form of `make case-study`: the same path, fewer requests, one of the three deployments."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_the_naive_deployment_goes_through_all_columns(tmp_path: Path) -> None:
    """Every request is answered, everything crosses the link, no byte is wrong, and the table has its figures. How
    fast it is, is this machine's affair."""
    few = ("--time-scale", "0.5", "--warm-up", "0.1", "--minutes", "0.4", "--clients", "20", "--policy", "naive")
    command = [sys.executable, "-m", "benchmarks.case_study.table", *few, "--folder", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr
    assert "| **Naive heterogeneous PD: 32 H200, 64 H20** |" in done.stdout
    found = json.loads((tmp_path / "figures.json").read_text())["policies"]["naive"]
    system = found["system"]
    assert set(system["outcomes"]) == set(system["loaded"]["outcomes"]) == {"ok"}
    assert system["saturated"]["offload_fraction"] == system["loaded"]["offload_fraction"] == 1.0
    assert system["egress_bytes_per_s"] > 0
    assert system["num_wrong"] == 0
    assert system["duties"] == found["simulation"]["duties"] == [0, 8]
