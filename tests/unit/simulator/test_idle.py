"""Idle time costs next to nothing, and leaving it out changes nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from prfaas.sim.kernel import Kernel
from prfaas.sim.link_telemetry import LinkTelemetry
from prfaas.simulator.command import SimulateOptions, run
from prfaas.simulator.loads import LoadOptions

CASE = Path(__file__).parents[3] / "examples" / "case-study" / "prfaas.yaml"
CHANGES = (
    "500s link prfaas-west pd-east 200Mbps",
    "900s die prfaas-west-0",
    "1500s link prfaas-west pd-east 100Gbps",
    "2000s return prfaas-west-0",
)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> list[Kernel]:
    """Of the simulations that are made."""
    made: list[Kernel] = []
    before = Kernel.__init__

    def keeps(self: Kernel) -> None:
        made.append(self)
        before(self)

    monkeypatch.setattr(Kernel, "__init__", keeps)
    return made


def outcome(capsys: pytest.CaptureFixture[str], options: SimulateOptions, out: Path) -> tuple[object, bytes]:
    """Everything but the time that it took."""
    assert run(replace(options, as_json=True, requests=out)) == 0
    found = json.loads(capsys.readouterr().out)
    for one in found["runs"]:
        one["wall_s"] = 0
    return found, out.read_bytes()


@pytest.mark.parametrize(
    "load",
    [
        LoadOptions(num_requests=30, rate_rps=0.01),
        LoadOptions(num_requests=30, arrivals="clients 1 think 100s turns 3", caches=("100000",)),
    ],
)
def test_nothing_but_the_number_of_events_is_another(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kernels: list[Kernel], tmp_path: Path,
    load: LoadOptions,
) -> None:  # fmt: skip
    """While links become slow and engines die, too."""
    options = SimulateOptions(CASE, load=load, happenings=CHANGES)
    at_rest = outcome(capsys, options, tmp_path / "a.jsonl")
    monkeypatch.setattr(LinkTelemetry, "_is_at_rest", lambda self: False)
    assert outcome(capsys, options, tmp_path / "b.jsonl") == at_rest
    assert kernels[0].num_events < kernels[1].num_events - 500


def test_events_are_those_of_requests(
    capsys: pytest.CaptureFixture[str], kernels: list[Kernel], tmp_path: Path
) -> None:
    """A request in three hours, for four days: at one event a second there would be 360,000. What is left beside the
    requests is what a run is sampled for, every second at first and in the end every 32."""
    outcome(capsys, SimulateOptions(CASE, load=LoadOptions(num_requests=40, rate_rps=1e-4)), tmp_path / "a.jsonl")
    assert kernels[0].now_s > 300_000
    assert kernels[0].num_events < 100_000
