"""The gateway and `prfaas up` know kinds of engines by their dialects and launches alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import prfaas
from prfaas.deployment.model import Endpoint, EngineSection
from prfaas.engines.kinds import dialect_of, launch_of

SOURCE = Path(prfaas.__file__).parent
#: Words of one kind of engine.
WORDS = ("vllm", "kv_transfer_params", "do_remote", "num_requests_running")


def words(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of every name and string that is not a docstring."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    told = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        and node.body and isinstance(node.body[0], ast.Expr)
    }  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes)) and id(node) not in told:
            yield node.lineno, str(node.value)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
            yield node.lineno, " ".join(modules)
        else:
            for field in ("id", "attr", "arg", "name"):
                if isinstance(getattr(node, field, None), str):
                    yield getattr(node, "lineno", 0), getattr(node, field)


@pytest.mark.parametrize("package", ["gateway", "launch"])
def test_no_word_of_one_engine_stands_outside_its_dialect(package: str) -> None:
    """Comments and docstrings may name an engine, code may not."""
    found = [
        f"{path.relative_to(SOURCE)}:{line}: {text[:80]}"
        for path in sorted((SOURCE / package).rglob("*.py"))
        for line, text in words(path)
        if any(word in text.lower() for word in WORDS)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("module", ["prfaas.gateway.server", "prfaas.launch.up", "prfaas.engines.node_client"])
def test_importing_it_imports_no_engine(module: str) -> None:
    """A gateway's machine needs neither torch nor vLLM, and would wait seconds for them."""
    program = f"import sys, {module}; print(sorted({{'torch', 'vllm', 'transformers'}} & set(sys.modules)))"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert told.stdout.strip() == "[]"


def test_every_kind_that_a_file_may_name_has_a_dialect_and_a_launch() -> None:
    """What the deployment file accepts can be served and started."""
    kinds = {
        str(kind) for model in (Endpoint, EngineSection) for kind in _choices(model.model_fields["kind"].annotation)
    }
    assert kinds
    for kind in kinds:
        assert set(dialect_of(kind).paths) == {"completions", "chat"}
        assert launch_of(kind).package


def _choices(annotation: object) -> tuple[object, ...]:
    choices: tuple[object, ...] = getattr(annotation, "__args__", ())
    return choices
