"""`prfaas up` secures lanes without being asked, says how, and leaves no key behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from prfaas.launch.addresses import free_ports
from prfaas.launch.state_file import STATE_FILE, NotUp, UpState, read_state


def deployment(folder: Path, transfer: str) -> Path:
    """Two nodes on this machine, whose engines somebody else starts."""
    (folder / "config.json").write_text("{}")
    ports = free_ports(4)
    clusters = [
        f'{name}: {{role: {role}, endpoints: [{{engine: "http://127.0.0.1:1{number}", kvnode: "http://127.0.0.1:{http}", lanes: "127.0.0.1:{lanes}"}}]}}'
        for number, (name, role, http, lanes) in enumerate(
            [("up-west", "prfaas", *ports[:2]), ("up-east", "pd", *ports[2:])]
        )
    ]
    text = f"model: {{name: m, path: ., max_model_tokens: 64}}\nclusters:\n  {clusters[0]}\n  {clusters[1]}\n"
    file = folder / "deployment.yaml"
    file.write_text(f"{text}transfer: {{arena: 1MiB, {transfer}}}\n", encoding="utf-8")
    return file


def up(file: Path, *options: str) -> subprocess.Popen[str]:
    argv = [
        sys.executable,
        "-m",
        "prfaas",
        "up",
        str(file),
        "--no-gateway",
        "--logs",
        str(file.parent / "logs"),
        *options,
    ]
    return subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)


def test_throwaway_certificates_end_with_the_nodes(tmp_path: Path) -> None:
    """In a folder of their own, also if sockets go to one that stays."""
    sockets = tmp_path / "s"
    with up(deployment(tmp_path, ""), "--sockets", str(sockets)) as process:
        assert process.stderr is not None
        told = ""
        while told.count("is up after") < 2:
            line = process.stderr.readline()
            assert line, told
            told += line
        found = re.search(r"lanes are encrypted, with throw-away certificates in (\S+)", told)
        assert found is not None
        directory = Path(found[1])
        assert directory.stat().st_mode & 0o077 == 0
        assert (directory / "up-east.key").is_file()
        assert not list(sockets.glob("**/*.key"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert not directory.exists()


def when_up(process: subprocess.Popen[str]) -> list[int]:
    """Wait until both nodes are up; their process ids."""
    assert process.stderr is not None
    told = ""
    while told.count("is up after") < 2:
        line = process.stderr.readline()
        assert line, told
        told += line
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children if b"kvnode" in Path(f"/proc/{child}/cmdline").read_bytes()]


def until_ended(pid: int) -> None:
    """A signal is sent before it has worked, and a process has ended when its last thread has."""
    deadline = time.monotonic() + 20
    while (
        "Z" not in Path(f"/proc/{pid}/stat").read_text().split() or len(list(Path(f"/proc/{pid}/task").iterdir())) > 1
    ):
        assert time.monotonic() < deadline, "it did not end"
        time.sleep(0.01)


@pytest.mark.parametrize("at_once", [True, False])
def test_every_death_is_told_also_the_last(tmp_path: Path, at_once: bool) -> None:
    """With how it ended and the end of its log; when nobody is left the status is 1."""
    with up(deployment(tmp_path, "encryption: none")) as process:
        assert process.stderr is not None
        first, second = when_up(process)
        os.kill(first, signal.SIGKILL)
        told = "" if at_once else process.stderr.readline()
        os.kill(second, signal.SIGKILL)
        told += process.stderr.read()
        assert process.wait(30) == 1
    for name in ("up-west", "up-east"):
        assert (
            told.count(f"kvnode-{name}-0 was killed by signal 9; the end of {tmp_path}/logs/kvnode-{name}-0.log:") == 1
        )
        assert f"node {name}-0: control on" in told
    assert told.rstrip().endswith("every process has ended on its own")


def test_a_death_before_sigterm_is_in_the_status(tmp_path: Path) -> None:
    """Who starts us again must learn that something was wrong; also of what ended just before the signal."""
    with up(deployment(tmp_path, "encryption: none")) as process:
        assert process.stderr is not None
        killed = when_up(process)[0]
        process.send_signal(signal.SIGSTOP)  # so that it does not notice before the next signal comes
        os.kill(killed, signal.SIGKILL)
        until_ended(killed)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGCONT)
        told = process.stderr.read()
        assert process.wait(30) == 1
    assert told.count("was killed by signal 9") == 1


@pytest.mark.parametrize(
    ("transfer", "expected"),
    [
        ("tls: {ca: ca.pem, cert: '{cluster}.pem', key: k}", "kvnode-up-west-0: there is no file {folder}/ca.pem; see transfer.tls"),
        ("tls: {ca: config.json, cert: '{cluster}.pem', key: k}", "kvnode-up-west-0: there is no file {folder}/up-west.pem; see transfer.tls"),
    ],
)  # fmt: skip
def test_missing_certificates_are_told_before_anything_starts(tmp_path: Path, transfer: str, expected: str) -> None:
    """Status 2, as for everything else in the file."""
    with up(deployment(tmp_path, transfer)) as process:
        _, told = process.communicate(timeout=30)
    assert process.returncode == 2
    assert told.startswith(expected.format(folder=tmp_path))
    assert not (tmp_path / "logs").exists()


def test_with_restart_the_dead_come_back_and_others_can_find_them(tmp_path: Path) -> None:
    """`processes.json` has the new number; the log goes on; the status is 0, for nothing is down in the end."""
    logs, file = tmp_path / "logs", deployment(tmp_path, "encryption: none")
    name = "kvnode-up-west-0"
    with up(file, "--restart") as process:
        assert process.stderr is not None
        when_up(process)
        deadline = time.monotonic() + 60
        while not (logs / STATE_FILE).exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        before = read_state(logs, file)
        assert (before.supervisor, before.restarts, set(before.processes)) == (
            process.pid, True, {name, "kvnode-up-east-0"},
        )  # fmt: skip
        argv = before.processes[name].argv
        assert Path(f"/proc/{before.processes[name].pid}/cmdline").read_bytes().split(b"\0")[-2].decode() == argv[-1]
        os.kill(before.processes[name].pid, signal.SIGKILL)
        told = ""
        while f"started again: {name}" not in told:
            line = process.stderr.readline()
            assert line, told
            told += line
        assert "was killed by signal 9" in told
        assert "it is started again in 1 s" in told
        while (after := read_state(logs, file)).processes[name].pid == before.processes[name].pid:
            time.sleep(0.05)
        while f"{name} is up after" not in told:
            line = process.stderr.readline()
            assert line, told
            told += line
        assert after.processes[name].argv == argv
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert (logs / f"{name}.log").read_text().count(": control on") == 2
    assert not (logs / STATE_FILE).exists()


def test_who_looks_for_a_deployment_that_is_not_up_is_told_why(tmp_path: Path) -> None:
    """Nothing there, another file, or one that has ended."""
    file = tmp_path / "deployment.yaml"
    with pytest.raises(NotUp, match="start the deployment with 'prfaas up'"):
        read_state(tmp_path, file)
    state = UpState(str(file.resolve()), 1, True, {})
    (tmp_path / STATE_FILE).write_bytes(msgspec.json.encode(state))
    assert read_state(tmp_path, file) == state
    with pytest.raises(NotUp, match=r"is of .*deployment\.yaml, not of .*other\.yaml"):
        read_state(tmp_path, tmp_path / "other.yaml")
    ended = subprocess.Popen([sys.executable, "-S", "-c", ""])
    ended.wait()
    (tmp_path / STATE_FILE).write_bytes(msgspec.json.encode(msgspec.structs.replace(state, supervisor=ended.pid)))
    with pytest.raises(NotUp, match="has ended"):
        read_state(tmp_path, file)
    (tmp_path / STATE_FILE).write_text("[")
    with pytest.raises(NotUp, match="cannot be read"):
        read_state(tmp_path, file)
