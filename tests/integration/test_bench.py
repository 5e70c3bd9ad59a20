"""`prfaas bench transport` on real processes, small."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from prfaas.bench.nodes import BenchError, NodeBench
from prfaas.cli.main import app


def test_both_kinds_are_measured_and_told_as_json() -> None:
    """One object with a row for each kind, every move verified."""
    answer = CliRunner().invoke(
        app, ["bench", "transport", "--size", "8MiB", "--layers", "4", "--rounds", "2", "--json"]
    )
    assert answer.exit_code == 0, answer.output
    report = json.loads(answer.stdout)
    assert set(report["modes"]) == {"encrypted", "plain"}
    for figures in report["modes"].values():
        assert 0 < figures["gbps_min"] <= figures["gbps_median"] <= figures["gbps_max"]
        assert figures["cpu_s_per_gb_median"] > 0


def test_nothing_to_measure_is_refused() -> None:
    """Status 2, and what to do."""
    answer = CliRunner().invoke(app, ["bench", "transport", "--no-plain", "--no-encrypted"])
    assert answer.exit_code == 2
    assert "nothing to measure" in answer.output
    assert CliRunner().invoke(app, ["bench", "transport", "--size", "many"]).exit_code == 2


def test_a_move_that_did_not_arrive_is_no_figure() -> None:
    """The benchmark compares what lies at the receiver with what was sent."""
    bench = NodeBench(1 << 20)
    bench.start()
    try:
        name, checksum = bench.prepare()
        bench.source.ask("send", transfer_id=name, num_pieces=3)
        with pytest.raises(BenchError, match="does not hold what was sent"):
            bench.finish(name, checksum ^ 1)
        assert bench.move(4).num_bytes == 1 << 20
    finally:
        bench.stop()
