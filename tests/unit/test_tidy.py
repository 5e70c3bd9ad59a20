"""Style as a test: what is banned here, and what to use instead."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from prfaas.observe.metrics import TABLE

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
EVERYTHING = sorted([*SOURCES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")])

#: Longer modules do more than one thing; longer functions do not fit a screen.
MAX_MODULE_LINES = 600
MAX_FUNCTION_LINES = 70

#: module: what to use instead. Both run code that a peer or a file chooses.
BANNED_IMPORTS = {
    "pickle": "msgspec, for everything that crosses a process",
    "marshal": "msgspec, for everything that crosses a process",
    "shelve": "a file format with a schema",
    "requests": "aiohttp in services, urllib in tools",
    "httpx": "aiohttp: measured 3 to 5 times faster on the gateway's path",
}
BANNED_CALLS = {"eval": "a parser", "exec": "a module"}
BANNED_FILES = {
    "utils.py": "the noun it is about",
    "helpers.py": "the noun it is about",
    "common.py": "its owner's name",
}

#: Words that begin as metrics do: results of a plan, a route's reason.
NOT_METRICS = {"prfaas_prefill", "prfaas_rps", "prfaas_unhealthy"}

#: Commands talk on standard output; everything else logs. `testing` and `__main__` blocks are commands of their own.
MAY_PRINT = ("src/prfaas/cli/", "src/prfaas/observe/metrics.py")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def each(paths: list[Path], kind: type[ast.AST]) -> Iterator[tuple[str, ast.AST]]:
    """(path:line, node) of every node of a kind."""
    for path in paths:
        for node in ast.walk(tree(path)):
            if isinstance(node, kind):
                yield f"{relative(path)}:{getattr(node, 'lineno', 1)}", node


def told(problems: list[str]) -> None:
    assert not problems, "\n" + "\n".join(problems)


def test_modules_are_short() -> None:
    """Split by noun when one grows past the ceiling."""
    lengths = {relative(path): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    told(
        [
            f"{name}: {count} lines; at most {MAX_MODULE_LINES}"
            for name, count in lengths.items()
            if count > MAX_MODULE_LINES
        ]
    )


def test_functions_fit_a_screen() -> None:
    """Tests too."""
    problems = []
    for where, node in each(EVERYTHING, ast.AST):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            count = (node.end_lineno or node.lineno) - node.lineno + 1
            if count > MAX_FUNCTION_LINES:
                problems.append(f"{where}: {node.name} has {count} lines; at most {MAX_FUNCTION_LINES}")
    told(problems)


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []


def test_banned_imports() -> None:
    """No pickle above all: a peer must never choose what runs here."""
    problems = [
        f"{where}: imports {name}; use {BANNED_IMPORTS[name.split('.')[0]]}"
        for where, node in each(EVERYTHING, ast.AST)
        for name in imported(node)
        if name.split(".")[0] in BANNED_IMPORTS
    ]
    told(problems)


def test_banned_calls() -> None:
    """Neither eval nor exec, and print only where a person reads it."""
    problems = []
    for where, node in each(SOURCES, ast.Call):
        assert isinstance(node, ast.Call)
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name in BANNED_CALLS:
            problems.append(f"{where}: calls {name}; use {BANNED_CALLS[name]}")
        if name == "print" and not where.startswith(MAY_PRINT):
            problems.append(f"{where}: prints; use logging, or rich in a command")
    told(problems)


def test_a_metrics_help_stands_in_the_table_only() -> None:
    """No call outside it is given the name of a metric and a text, so that docs/metrics.md says what is served."""
    problems = []
    for where, node in each(SOURCES, ast.Call):
        assert isinstance(node, ast.Call)
        words = [argument.value for argument in [*node.args, *(keyword.value for keyword in node.keywords)]
                 if isinstance(argument, ast.Constant) and isinstance(argument.value, str)]  # fmt: skip
        named = [word for word in words if word.startswith("prfaas_")]
        if named and any(" " in word for word in words) and not where.startswith("src/prfaas/observe/metrics.py"):
            problems.append(f"{where}: {named[0]} with a text of its own; use spec() of prfaas.observe.metrics")
    told(problems)


def test_metrics_are_named_as_in_the_table() -> None:
    """A name that begins like a metric's and is none is a slip of the pen."""
    known = {row.name for row in TABLE} | NOT_METRICS
    problems = [
        f"{where}: {node.value} is not in the table of prfaas.observe.metrics"
        for where, node in each(SOURCES, ast.Constant)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"prfaas_[a-z_]+", node.value)
        and node.value not in known
    ]
    told(problems)


def test_nothing_listens_everywhere() -> None:
    """Who wants all interfaces writes so in the deployment file; it is never our default."""
    problems = [
        f"{where}: {node.value!r}; use 127.0.0.1 as a default"
        for where, node in each(EVERYTHING, ast.Constant)
        if isinstance(node, ast.Constant)
        and node.value in ("0.0." + "0.0", "::", b"0.0." + b"0.0")
        and not where.startswith("tests/unit/test_tidy.py")
    ]
    told(problems)


def test_names_of_files_say_what_is_in_them() -> None:
    """A drawer for everything fills up with everything."""
    problems = [
        f"{relative(path)}: name it after {BANNED_FILES[path.name]}" for path in EVERYTHING if path.name in BANNED_FILES
    ]
    told(problems)


def test_every_module_says_what_it_is() -> None:
    """One docstring at the top; style.md rule: state the law there."""
    told(
        [
            f"{relative(path)}: no docstring"
            for path in SOURCES
            if path.stat().st_size and not ast.get_docstring(tree(path))
        ]
    )


def test_every_test_says_what_is_true() -> None:
    """In one sentence."""
    problems = [
        f"{where}: {node.name} has no docstring"
        for where, node in each(sorted((ROOT / "tests").rglob("test_*.py")), ast.FunctionDef)
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and not ast.get_docstring(node)
    ]
    told(problems)


@pytest.mark.parametrize("word", ["TODO", "FIXME", "XXX", "HACK"])
def test_no_promises_in_comments(word: str) -> None:
    """An issue can be found and closed; a comment cannot."""
    pattern = re.compile(rf"#.*\b{word}\b")
    told([
        f"{relative(path)}:{number}: {word}; open an issue"
        for path in SOURCES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if pattern.search(line)
    ])  # fmt: skip
