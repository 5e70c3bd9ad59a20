"""Nothing that a supervisor starts outlives it, and nothing ends unnoticed."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from prfaas.launch.addresses import free_ports
from prfaas.launch.guard import groups_left
from prfaas.launch.plan import ProcessSpec
from prfaas.launch.supervisor import TELL_AFTER_S, NotHealthy, ProcessDied, Supervisor, describe_end

CHILD = Path(__file__).with_name("child.py")

#: A supervisor in a process of its own: starts what the arguments name, says `ready`, and waits.
OWNER = """
import sys, time
from pathlib import Path
from prfaas.launch.plan import ProcessSpec
from prfaas.launch.supervisor import Supervisor
logs, url, *argv = sys.argv[1:]
with Supervisor(Path(logs), grace_s=60) as supervisor:
    supervisor.start([ProcessSpec("child", tuple(argv), {}, url)])
    supervisor.wait_healthy(30)
    print("ready", flush=True)
    time.sleep(600)
"""


def child_spec(folder: Path, name: str = "child", *modes: str, needs_engine: bool = False) -> ProcessSpec:
    """The spec of `child.py`, which writes its own child's process id to folder/NAME.pid."""
    (port,) = free_ports(1)
    argv = (sys.executable, str(CHILD), str(port), str(folder / f"{name}.pid"), *modes)
    return ProcessSpec(name, argv, {}, f"http://127.0.0.1:{port}/health", needs_engine)


def runs(pid: int) -> bool:
    """Is the process there, and not a zombie that nobody has reaped yet?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Wait for what another process does."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def grandchild(folder: Path, name: str = "child") -> int:
    until(lambda: (folder / f"{name}.pid").exists() and (folder / f"{name}.pid").read_text() != "")
    return int((folder / f"{name}.pid").read_text())


def test_a_process_leads_a_group_in_our_session(tmp_path: Path) -> None:
    """So that it can be ended with its children, and the kernel still gives all of them the cores in turn."""
    with Supervisor(tmp_path) as supervisor:
        supervisor.start([child_spec(tmp_path)])
        pid = supervisor.processes["child"].pid
        assert (os.getpgid(pid), os.getsid(pid)) == (pid, os.getsid(0))


def test_starts_waits_and_stops_whole_groups(tmp_path: Path) -> None:
    """Children and their children end, in order and with their logs kept."""
    with Supervisor(tmp_path / "logs") as supervisor:
        supervisor.start([child_spec(tmp_path, "one"), child_spec(tmp_path, "two")])
        supervisor.wait_healthy(20)
        pids = [supervisor.processes[name].pid for name in ("one", "two")]
        pids += [grandchild(tmp_path, "one"), grandchild(tmp_path, "two")]
        assert all(running.healthy for running in supervisor.processes.values())
        assert all(runs(pid) for pid in pids)
    assert not any(runs(pid) for pid in pids)
    assert "ended in order" in (tmp_path / "logs" / "one.log").read_text()


def test_a_child_that_dies_is_reported_with_its_status_and_last_lines(tmp_path: Path) -> None:
    """And everything else is stopped by leaving the block."""
    with Supervisor(tmp_path) as supervisor:
        supervisor.start([child_spec(tmp_path, "good"), child_spec(tmp_path, "bad", "dies")])
        good = supervisor.processes["good"].pid
        with pytest.raises(ProcessDied) as error:
            supervisor.wait_healthy(20)
    assert "bad ended with status 1" in str(error.value)
    assert "the reason why" in str(error.value)
    assert not runs(good)


def test_a_killed_child_is_reported_once_and_not_restarted(tmp_path: Path) -> None:
    """kill -9 from outside; what it left in its group ends with the rest."""
    with Supervisor(tmp_path) as supervisor:
        supervisor.start([child_spec(tmp_path)])
        supervisor.wait_healthy(20)
        running = supervisor.processes["child"]
        left = grandchild(tmp_path)
        os.kill(running.pid, signal.SIGKILL)
        until(lambda: not running.is_alive)
        assert [one.spec.name for one in supervisor.newly_ended()] == ["child"]
        assert supervisor.newly_ended() == []
        assert describe_end(running).startswith("child was killed by signal 9")
        assert runs(left)
    assert not runs(left)


def test_a_name_can_be_started_again_and_leaves_nothing_of_the_first(tmp_path: Path) -> None:
    """The group of the ended process is cleared first."""
    with Supervisor(tmp_path) as supervisor:
        spec = child_spec(tmp_path)
        supervisor.start([spec])
        supervisor.wait_healthy(20)
        left = grandchild(tmp_path)
        os.kill(supervisor.processes["child"].pid, signal.SIGKILL)
        until(lambda: not supervisor.processes["child"].is_alive)
        supervisor.start([spec])
        supervisor.wait_healthy(20)
        assert not runs(left)


def test_late_health_names_the_process_and_its_log(tmp_path: Path) -> None:
    """A process that never answers is not waited for without end."""
    with Supervisor(tmp_path) as supervisor:
        supervisor.start([child_spec(tmp_path, "silent", "mute")])
        with pytest.raises(NotHealthy, match=r"silent is not healthy after 0\.5 s"):
            supervisor.wait_healthy(0.5)


def test_a_node_is_healthy_only_when_its_engine_has_registered(tmp_path: Path) -> None:
    """`needs_engine` looks into the answer."""
    with Supervisor(tmp_path) as supervisor:
        supervisor.start([child_spec(tmp_path, "plain"), child_spec(tmp_path, "node", needs_engine=True)])
        supervisor.wait_healthy(20, ["plain"])
        supervisor.probe()
        assert not supervisor.processes["node"].healthy


def test_what_ignores_polite_signals_is_killed(tmp_path: Path) -> None:
    """SIGINT, SIGTERM, then SIGKILL, each after its grace."""
    with Supervisor(tmp_path, grace_s=0.2) as supervisor:
        supervisor.start([child_spec(tmp_path, "child", "stubborn")])
        supervisor.wait_healthy(20)
        pids = [supervisor.processes["child"].pid, grandchild(tmp_path)]
    until(lambda: not any(runs(pid) for pid in pids))


def owner(folder: Path, *modes: str) -> tuple[subprocess.Popen[str], list[int]]:
    """A supervisor in its own process, and the child and grandchild that it started."""
    spec = child_spec(folder, "child", *modes)
    argv = [sys.executable, "-c", OWNER, str(folder / "logs"), spec.health_url, *spec.argv]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    left = grandchild(folder)
    return process, [int(Path(f"/proc/{left}/stat").read_text().rpartition(")")[2].split()[1]), left]


def test_ctrl_c_leaves_no_process(tmp_path: Path) -> None:
    """One interrupt ends the supervisor, the child and the grandchild."""
    process, pids = owner(tmp_path)
    with process:
        process.send_signal(signal.SIGINT)
        assert process.wait(20) != 0
    assert not any(runs(pid) for pid in pids)


def test_a_second_ctrl_c_kills_at_once(tmp_path: Path) -> None:
    """Nobody waits two minutes of grace for a stubborn child."""
    process, pids = owner(tmp_path, "stubborn")
    with process:
        process.send_signal(signal.SIGINT)
        until((tmp_path / "child.pid.interrupted").exists)
        assert runs(pids[0])
        process.send_signal(signal.SIGINT)
        process.wait(30)
    until(lambda: not any(runs(pid) for pid in pids))


def test_kill_9_of_the_supervisor_leaves_no_process(tmp_path: Path) -> None:
    """Not even a grandchild that ignores polite signals."""
    process, pids = owner(tmp_path, "stubborn")
    with process:
        process.kill()
    until(lambda: not any(runs(pid) for pid in pids))


def test_the_guard_knows_what_is_left() -> None:
    """Groups that ended are not touched: their numbers may be somebody else's by now."""
    assert groups_left([]) == set()
    assert groups_left(["+10\n", "+11\n", "-10\n", "+12\n"]) == {11, 12}
    assert groups_left(["+10\n", "+11"]) == {10}


def test_what_serves_clients_stops_before_what_it_needs(tmp_path: Path) -> None:
    """A gateway that ends its streams still has its engines, and is told first."""
    gateway, engine = tmp_path / "gateway.py", tmp_path / "engine.py"
    wait = "import pathlib, signal, sys, time, os\n"
    engine.write_text(wait + "pathlib.Path('engine.pid').write_text(str(os.getpid()))\ntime.sleep(600)\n")
    gateway.write_text(
        wait + "def stop(*_):\n"
        "    time.sleep(1.0)\n"
        "    pid = int(pathlib.Path('engine.pid').read_text())\n"
        "    try:\n        os.kill(pid, 0); told = 'runs'\n    except ProcessLookupError:\n        told = 'gone'\n"
        "    pathlib.Path('told').write_text(told)\n    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, stop)\npathlib.Path('ready').write_text('')\ntime.sleep(600)\n"
    )
    told: list[str] = []
    with Supervisor(tmp_path / "logs", tell=told.append) as supervisor:
        for script, stops_first_s in ((engine, 0.0), (gateway, 60.0)):
            code = f"import os, runpy; os.chdir({str(tmp_path)!r}); runpy.run_path({str(script)!r})"
            argv = (sys.executable, "-c", code)
            supervisor.start([ProcessSpec(script.stem, argv, {}, "http://127.0.0.1:1/", stops_first_s=stops_first_s)])
        until(lambda: (tmp_path / "ready").exists() and (tmp_path / "engine.pid").exists())
    assert (tmp_path / "told").read_text() == "runs"


def test_a_terminal_that_goes_does_not_end_the_orderly_stop(tmp_path: Path) -> None:
    """What would be told there is told to nobody, and the gateway has its time."""
    gateway = tmp_path / "gateway.py"
    gateway.write_text(
        "import pathlib, signal, sys, time\n"
        "def stop(*_):\n"
        f"    time.sleep({2 * TELL_AFTER_S})\n"
        "    pathlib.Path('finished').write_text('')\n    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, stop)\npathlib.Path('ready').write_text('')\ntime.sleep(600)\n"
    )
    owner = tmp_path / "owner.py"
    owner.write_text(
        "import sys, time\nfrom pathlib import Path\n"
        "from prfaas.launch.plan import ProcessSpec\nfrom prfaas.launch.supervisor import Supervisor\n"
        "from prfaas.launch.up import stop_on_sigterm\n"
        "stop_on_sigterm()\n"
        "def tell(text):\n    print(text, file=sys.stderr, flush=True)\n"
        "with Supervisor(Path('logs'), tell=tell) as supervisor:\n"
        "    argv = (sys.executable, 'gateway.py')\n"
        "    supervisor.start([ProcessSpec('gateway', argv, {}, 'http://127.0.0.1:1/', stops_first_s=60.0)])\n"
        "    Path('started').write_text('')\n"
        "    time.sleep(600)\n"
    )
    ours, theirs = os.openpty()

    def lead() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    with subprocess.Popen(
        [sys.executable, owner.name], cwd=tmp_path, stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=lead
    ) as process:
        os.close(theirs)
        until(lambda: (tmp_path / "ready").exists() and (tmp_path / "started").exists())
        os.close(ours)
        process.wait(60)
    assert (tmp_path / "finished").exists()
