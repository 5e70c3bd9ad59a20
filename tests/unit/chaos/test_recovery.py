"""When all is as before; what is left over; what a run comes to."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from prfaas.bench.e2e.sent import Sent
from prfaas.chaos.clients import LEAVES_WITHIN_S, leaves
from prfaas.chaos.harm import CannotHarm, allow_writes, check_is_itself, refuse_writes, send
from prfaas.chaos.ledger import Verdict
from prfaas.chaos.recovery import SPARE, STEADY_S, most_in_flight, recovered_s
from prfaas.chaos.report import report_lines, to_json
from prfaas.chaos.run import Phases, Result, RunOptions
from prfaas.launch.state_file import ProcessState


def stays(*spans: tuple[float, float]) -> list[Sent]:
    return [Sent(n, from_s, 1, 1, over_s=to_s) for n, (from_s, to_s) in enumerate(spans)]


def test_it_is_well_when_no_more_are_in_flight_than_before() -> None:
    """For a second without a break, after the faults, and once everybody works."""
    calm = stays(*((0.5 * n, 0.5 * n + 0.8) for n in range(60)))
    assert most_in_flight(calm, 0.0, 5.0) == 2
    jam = [*calm, *stays(*((5.0, 12.05) for _ in range(SPARE + 1)))]
    assert recovered_s(calm, 10.0, 10.0, 20.0, 2) == pytest.approx(10.0)
    assert recovered_s(jam, 10.0, 10.0, 20.0, 2) == pytest.approx(12.1, abs=0.11)
    assert recovered_s(jam, 10.0, 10.0, 12.0, 2) is None
    assert recovered_s(jam, 15.0, 10.0, 20.0, 2) == pytest.approx(15.0)
    assert recovered_s(jam, None, 10.0, 20.0, 2) is None
    assert recovered_s(calm, 10.0, 10.0, 10.0 + STEADY_S / 2, 2) is None
    never = [*calm, *stays(*((5.0, float("nan")) for _ in range(SPARE + 1)))]
    assert recovered_s(never, 10.0, 10.0, 20.0, 2) is None


def result(**more: object) -> Result:
    options = RunOptions(7, (), Phases(1.0, 2.0, 1.0, 9.0), 1.0)
    return Result(options, [], [], Verdict(), 3.0, **{"recovery_s": 0.5, **more})  # type: ignore[arg-type]


def test_what_is_left_or_damaged_or_slow_is_a_problem() -> None:
    """Each is told in words, and the run does not hold."""
    assert result().is_fine
    assert list(report_lines(result()))[-1] == "everything holds"
    for more, kind in (
        ({"held": {"landings at the node a": 1.0}}, "not given back"),
        ({"damage": {"wrong parts of KVCache at a": 2.0}}, "damage"),
        ({"recovery_s": None, "missing": ["a: engine"]}, "not recovered"),
    ):
        bad = result(**more)
        assert [problem.kind for problem in bad.problems] == [kind]
        lines = list(report_lines(bad))
        assert lines[-1] == "1 things do not hold"
        assert any(f"WRONG ({kind})" in line for line in lines)
        told = json.loads(json.dumps(to_json(bad)))
        assert (told["holds"], told["seed"], len(told["problems"])) == (False, 7, 1)


def test_who_leaves_is_drawn_by_the_seed() -> None:
    """About as many as asked for."""
    drawn = leaves(3, range(1, 2001), 0.05)
    assert drawn == leaves(3, range(1, 2001), 0.05) != leaves(4, range(1, 2001), 0.05)
    assert 50 < len(drawn) < 160
    assert all(0 <= after_s <= LEAVES_WITHIN_S for after_s in drawn.values())


def test_no_other_process_is_harmed(tmp_path: Path) -> None:
    """One that has another command line, or that has ended."""
    argv = (sys.executable, "-S", "-c", "import time; time.sleep(600)")
    with subprocess.Popen(argv, process_group=0) as process:
        try:
            state = ProcessState(process.pid, argv, "http://127.0.0.1:1/health")
            _until_itself(state)
            other = ProcessState(process.pid, (*argv, "--other"), state.health_url)
            with pytest.raises(CannotHarm, match="does not run as process"):
                send("gateway", other, signal.SIGKILL)
            assert process.poll() is None
        finally:
            send("gateway", state, signal.SIGKILL)
    with pytest.raises(CannotHarm):
        check_is_itself("gateway", state)


def test_a_full_disk_fails_writes_and_is_emptied_again(tmp_path: Path) -> None:
    """Of the process, which goes on; what it writes before and after is there."""
    out = tmp_path / "log"
    program = (
        "import sys\n"
        f"log = open({str(out)!r}, 'wb', buffering=0)\n"
        "for line in sys.stdin:\n"
        "    try:\n        log.write(line.encode()); print('written', flush=True)\n"
        "    except OSError as error:\n        print(error.strerror, flush=True)\n"
    )
    argv = (sys.executable, "-S", "-c", program)
    with subprocess.Popen(
        argv, process_group=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None

        def write(line: str) -> str:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(f"{line}\n")
            process.stdin.flush()
            return process.stdout.readline().strip()

        assert write("one") == "written"
        state = ProcessState(process.pid, argv, "")
        limits = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
        before = refuse_writes("gateway", state)
        assert write("two") == os.strerror(27)
        allow_writes(before)
        assert resource.prlimit(process.pid, resource.RLIMIT_FSIZE) == limits
        assert write("three") == "written"
        process.stdin.close()
    assert out.read_text() == "one\nthree\n"
    allow_writes(before)  # it has ended: nothing to undo


def _until_itself(state: ProcessState) -> None:
    """Between fork and exec it has the command line of this process."""
    while True:
        try:
            check_is_itself("gateway", state)
            return
        except CannotHarm:
            continue


def test_the_load_lasts_as_long_as_the_faults() -> None:
    """Of a fault that comes when the load is over nothing could be said."""
    phases = Phases(5.0, 10.0, 5.0, 20.0)
    assert phases.until(12.0) == phases
    assert phases.until(100.0) == Phases(5.0, 95.0, 5.0, 20.0)
    assert phases.until(100.0).longest_s == 120.0
