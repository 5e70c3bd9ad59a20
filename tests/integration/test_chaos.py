"""Faults by seed in a running deployment: every request is accounted for, and everything is given back."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from prfaas.chaos.answers import Answers
from prfaas.chaos.command import planned_rps
from prfaas.chaos.draw import drawn_faults
from prfaas.chaos.faults import Kind, read_faults
from prfaas.chaos.records import Outcome
from prfaas.chaos.report import report_lines
from prfaas.chaos.run import Phases, RunOptions, run_once
from prfaas.chaos.site import Site, site_of
from prfaas.testing.up_site import harmed_document, running_up
from prfaas.wan import client as wan

pytestmark = pytest.mark.slow

#: Recovery is a hang guard: machines that are busy with other tests start a process in half a minute.
PHASES = Phases(1.0, 2.0, 0.5, 120.0)
LOAD = 0.25
#: Together they have every kind of fault, and kill a gateway, a node and a decode engine.
SEEDS = (1, 3, 4, 5, 44)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with running_up(harmed_document()) as paths:
        yield site_of(*paths)


@pytest.fixture(scope="module")
def answers(site: Site) -> Answers:
    return Answers(site)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_seed_holds(site: Site, answers: Answers, seed: int) -> None:
    """The ledger's laws, right answers, nothing held, nothing damaged, and all as it was before."""
    faults = drawn_faults(site.menu, seed, PHASES.before_s, PHASES.faults_s)
    options = RunOptions(seed, faults, PHASES, LOAD * planned_rps(site))
    result = asyncio.run(run_once(site, options, answers, print))
    assert result.is_fine, "\n".join(report_lines(result))
    assert len(result.happened) == len(faults)
    verdict = result.verdict
    counted = sum(verdict.outcomes[outcome] for outcome in Outcome if outcome is not Outcome.UNREACHED)
    assert verdict.accepted == counted > 0
    assert verdict.checked_answers == verdict.outcomes[Outcome.COMPLETED] > 0


def test_the_seeds_have_every_kind_of_fault(site: Site) -> None:
    """Else a law of theirs would not be tried."""
    faults = [fault for seed in SEEDS for fault in drawn_faults(site.menu, seed, PHASES.before_s, PHASES.faults_s)]
    assert {fault.kind for fault in faults} == set(Kind)
    killed = {fault.target.partition("-")[0] for fault in faults if fault.kind is Kind.KILL}
    assert killed == {"gateway", "engine", "kvnode"}


def test_the_command_undoes_its_faults_when_it_is_interrupted(site: Site) -> None:
    """Status 130; the link is as it was. Before, it lists what it can do, and repeats its plan."""
    argv = [sys.executable, "-m", "prfaas", "chaos", str(site.file), "--logs", str(site.logs)]
    listed = subprocess.run([*argv, "--list"], capture_output=True, text=True, check=True, timeout=120).stdout
    assert [line for line in listed.splitlines() if line] == site.menu.lines()
    dry = subprocess.run([*argv, "--seed", "9", "--dry-run"], capture_output=True, text=True, check=True, timeout=120)
    planned = [line.split("'")[1] for line in dry.stdout.splitlines() if "--fault" in line]
    assert read_faults(planned, site.menu, 0.0) == drawn_faults(site.menu, 9, 5.0, 10.0)
    control = site.control
    assert control is not None
    with subprocess.Popen([*argv, "--fault", "0s cut west east 100s"], stdout=subprocess.PIPE, text=True) as process:
        until(lambda: wan.links(control)[0]["cut"] == "silent")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert wan.links(control)[0]["cut"] is None


def test_the_command_refuses_what_it_cannot_undo(site: Site, tmp_path: Path) -> None:
    """A deployment that is not up, and one whose killed processes nobody would start again."""
    argv = [sys.executable, "-m", "prfaas", "chaos", str(site.file), "--fault", "kill gateway", "--logs"]
    nowhere = subprocess.run([*argv, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert (nowhere.returncode, nowhere.stdout) == (1, "")
    assert "start the deployment with 'prfaas up'" in nowhere.stderr
    state = json.loads((site.logs / "processes.json").read_bytes())
    (tmp_path / "processes.json").write_text(json.dumps({**state, "restarts": False}))
    alone = subprocess.run([*argv, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert alone.returncode == 2
    assert "'prfaas up --restart'" in alone.stderr


def until(condition: object) -> None:
    """A hang guard, no limit."""
    assert callable(condition)
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
