"""Whatever happens to a command, it says so in a sentence and with a status, and shows no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CASE = Path(__file__).parents[3] / "examples" / "case-study" / "prfaas.yaml"
SIMULATE = ("simulate", str(CASE), "--num-requests", "50")
PLAN = ("plan", str(CASE))
LONG = "x" * 252 + ".svg"


def ran(*arguments: str, out: Path | None = None, path: Path | None = None) -> tuple[int, str]:
    """Its status, and what it said on standard error, with standard output going to `out`; modules are looked for in
    `path` first."""
    environment = {**os.environ, "PYTHONPATH": f"{path}:{os.environ.get('PYTHONPATH', '')}"} if path else None
    argv = [sys.executable, "-m", "prfaas", *arguments]
    with (out or Path(os.devnull)).open("wb") as stdout:
        done = subprocess.run(
            argv, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=120, check=False, env=environment
        )
    return done.returncode, done.stderr


@pytest.mark.parametrize("module", ["typer", "pydantic", "matplotlib"])
def test_an_interrupt_while_modules_are_imported_is_an_interrupt(tmp_path: Path, module: str) -> None:
    """Those before the command too."""
    (tmp_path / f"{module}.py").write_text("raise KeyboardInterrupt\n", encoding="utf-8")
    status, told = ran(*PLAN, "--plot", str(tmp_path / "p.svg"), path=tmp_path)
    assert (status, told.strip()) == (130, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
@pytest.mark.parametrize(
    "arguments", [SIMULATE, (*SIMULATE, "--json"), PLAN, (*PLAN, "--json"), ("doctor",), ("--help",)]
)
def test_a_full_disk_is_a_sentence(arguments: tuple[str, ...]) -> None:
    """Where results go to standard output."""
    expected = "standard output cannot be written: No space left on device\n"
    assert ran(*arguments, out=Path("/dev/full")) == (1, expected)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
def test_a_full_disk_under_the_requests_is_a_sentence() -> None:
    """And no result is printed."""
    assert ran(*SIMULATE, "--requests", "/dev/full") == (1, "/dev/full cannot be written: No space left on device\n")


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        ((*SIMULATE, "--requests"), "--requests"),
        ((*SIMULATE, "--plot"), "--plot"),
        ((*PLAN, "--plot"), "--plot"),
        (("profile", "http://127.0.0.1:9", "--out"), "--out"),
    ],
)
def test_a_name_that_is_too_long_is_bad_input(tmp_path: Path, arguments: tuple[str, ...], option: str) -> None:
    """Of the file, and of a folder on the way to it."""
    for path in (tmp_path / LONG, tmp_path / LONG / "f.svg"):
        assert ran(*arguments, str(path)) == (2, f"{option} {path}: File name too long\n")
