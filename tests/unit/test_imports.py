"""The import rules of pyproject.toml catch what they forbid: a rule that names a module that has moved catches nothing."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CONTRACTS: list[dict[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"][
    "importlinter"
]["contracts"]


def sins() -> list[tuple[str, str]]:
    """(importer, imported): one for every module that a contract forbids, and one up every step of its layers."""
    found = []
    for contract in CONTRACTS:
        if contract["type"] == "forbidden":
            importers = contract["source_modules"]
            found += [(importers[-1], name) for name in contract["forbidden_modules"]]
            found += [(importer, contract["forbidden_modules"][0]) for importer in importers]
        else:
            rows = [row.split(" | ") for row in contract["layers"]]
            found += [(below[0], above[0]) for above, below in itertools.pairwise(rows)]
            found += [(row[0], row[1]) for row in rows if len(row) > 1]
    return found


def path_of(source: Path, module: str) -> Path:
    folder = source.joinpath(*module.split("."))
    return folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """import-linter over the copy in `folder`."""
    program = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"
    return subprocess.run(
        [sys.executable, "-c", program, "--no-cache"], cwd=folder, capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(folder / "src"), "COLUMNS": "200"},
    )  # fmt: skip


def test_every_forbidden_import_is_caught(tmp_path: Path) -> None:
    """In a copy with all of them, every contract is broken, and each import is named."""
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for importer, imported in sins():
        with path_of(tmp_path / "src", importer).open("a", encoding="utf-8") as stream:
            stream.write(f"\nimport {imported}\n")
    told = lint(tmp_path)
    assert told.returncode == 1, told.stderr
    assert f"Contracts: 0 kept, {len(CONTRACTS)} broken." in told.stdout
    missed = [
        f"{importer} -> {imported}" for importer, imported in sins() if f"{importer} -> {imported}" not in told.stdout
    ]
    assert missed == [], told.stdout
