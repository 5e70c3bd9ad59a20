"""`prfaas up` secures lanes without being asked, says how, and leaves no key behind."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest


def free_ports(count: int) -> list[int]:
    holders = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(holder.getsockname()[1]) for holder in holders]
    for holder in holders:
        holder.close()
    return ports


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
