"""`prfaas wan` and `prfaas link` where there is nothing to emulate, or nobody to ask."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from prfaas.cli.main import app
from prfaas.testing.deployed import endpoint, free_ports

EXAMPLE = Path(__file__).parents[3] / "examples" / "two-datacenters" / "deployment.yaml"


def write(tmp_path: Path, first_port: int) -> Path:
    """A file with one emulated link."""
    west, east = (endpoint(free_ports(3)) for _ in range(2))
    file = tmp_path / "d.yaml"
    file.write_text(
        f"""model: {{name: m, path: ., max_model_tokens: 2048}}
clusters: {{west: {{role: prfaas, endpoints: [{west}]}}, east: {{role: pd, endpoints: [{east}]}}}}
links: [{{from: west, to: east, bandwidth: 1Gbps, emulated_at: "127.0.0.1:{first_port}"}}]
""",
        encoding="utf-8",
    )
    return file


@pytest.mark.parametrize("command", ["wan", "link"])
def test_a_file_without_emulated_links_is_refused(command: str) -> None:
    """With what to add."""
    done = CliRunner().invoke(app, [command, str(EXAMPLE)])
    assert done.exit_code == 2
    assert "no link has emulated_at; add it" in done.output


def test_nobody_who_answers_and_bad_arguments_are_told(tmp_path: Path) -> None:
    """1 if `prfaas wan` does not run, 2 for what cannot be meant."""
    file = str(write(tmp_path, free_ports(1)[0]))
    done = CliRunner().invoke(app, ["link", file])
    assert done.exit_code == 1
    assert "does 'prfaas wan' run?" in done.output
    for arguments, expected in ((["west"], "give both ends"), (["west", "east", "fast"], "is not SETTING=VALUE")):
        done = CliRunner().invoke(app, ["link", file, *arguments])
        assert done.exit_code == 2
        assert expected in done.output
    assert CliRunner().invoke(app, ["wan", file, "--control", "here"]).exit_code == 2


def test_a_front_that_is_taken_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Status 1, and the field to change."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert CliRunner().invoke(app, ["wan", str(write(tmp_path, port))]).exit_code == 1
    assert f"links.*.emulated_at: 127.0.0.1:{port}: Address already in use" in caplog.text
