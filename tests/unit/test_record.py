"""Records are fixed for the type checker, and compare and hash by value."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import prfaas
from prfaas.core.record import record


@record
class _Pair:
    left: int
    right: int = 0


def test_equal_records_are_one_key() -> None:
    """As those of a frozen dataclass are."""
    assert {_Pair(1): "a"}[_Pair(1, 0)] == "a"
    assert _Pair(1) != _Pair(2)


def test_the_type_checker_refuses_to_change_one(tmp_path: Path) -> None:
    """Nothing else does."""
    text = Path(__file__).read_text(encoding="utf-8").split("def test_", 1)[0]
    (tmp_path / "changes.py").write_text(text + "pair = _Pair(1)\nprint(pair.left)\npair.left = 2\n", encoding="utf-8")
    argv = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path / "cache"), "changes.py"]
    env = {**os.environ, "MYPYPATH": str(Path(prfaas.__file__).parents[1])}
    told = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False, env=env).stdout
    refused = [line for line in told.splitlines() if ": error: " in line]
    assert len(refused) == 1, told
    assert refused[0].endswith('Property "left" defined in "_Pair" is read-only  [misc]')
