"""Whatever decides, or makes what a simulation is about, computes the same bits on every machine: see core/portable_math."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "prfaas"

#: All that a simulation imports, below the command line, and the simulations that are tests.
PORTABLE = (
    "core", "deployment", "profiles", "scenario", "sim", "simulator", "testing/control_world", "testing/scheduling.py",
    "testing/troubled.py", "whole_file.py",
)  # fmt: skip
#: `prfaas profile` measures, and writes down what it found; HiGHS has arithmetic of its own, as docs/simulation.md says.
ELSEWHERE = ("profiles/measure", "core/planning/linear.py")

#: Of `math`, what is exact, or rounded correctly everywhere.
EXACT = {
    "ceil", "comb", "copysign", "factorial", "floor", "frexp", "fsum", "inf", "isfinite", "isinf", "isnan", "isqrt", "ldexp",
    "nan", "nextafter", "pi", "prod", "sqrt", "trunc", "ulp",
}  # fmt: skip
EXACT_STATISTICS = {"median"}
#: They ask `math` for logarithms, or sines.
DRAWS = {
    "betavariate", "binomialvariate", "expovariate", "gammavariate", "gauss", "lognormvariate", "normalvariate",
    "paretovariate", "triangular", "vonmisesvariate", "weibullvariate",
}  # fmt: skip
LIBRARIES = {"cmath", "numpy", "scipy"}


def problems(text: str) -> Iterator[str]:
    """What in a module asks the C library, or may."""
    for node in ast.walk(ast.parse(text)):
        where = f"{getattr(node, 'lineno', 0)}"
        match node:
            case ast.Attribute(value=ast.Name(id="math"), attr=name) if name not in EXACT:
                yield f"{where}: math.{name}; use core/portable_math or core/normal_distribution"
            case ast.Attribute(value=ast.Name(id="statistics"), attr=name) if name not in EXACT_STATISTICS:
                yield f"{where}: statistics.{name}; use core/normal_distribution"
            case ast.Attribute(attr=name) if name in DRAWS:
                yield f"{where}: {name}; use sim/draws"
            case ast.ImportFrom(module="math" | "statistics" as module, names=names):
                exact = EXACT if module == "math" else EXACT_STATISTICS
                yield from (f"{where}: {module}.{name.name}" for name in names if name.name not in exact)
            case ast.Import(names=names):
                yield from (f"{where}: {name.name}" for name in names if name.name.split(".")[0] in LIBRARIES)
                yield from (f"{where}: {name.name} by another name" for name in names
                            if name.name in ("math", "statistics") and name.asname)  # fmt: skip
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in LIBRARIES:
                yield f"{where}: {module}"
            case ast.BinOp(op=ast.Pow(), left=left, right=right) if not (_is_whole(left) and _is_whole(right)):
                yield f"{where}: **; multiply, shift, or use core/portable_math"
            case ast.AugAssign(op=ast.Pow()) | ast.Call(func=ast.Name(id="pow")):
                yield f"{where}: a power; multiply, shift, or use core/portable_math"


def _is_whole(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) is int


def _is_below(name: str, places: tuple[str, ...]) -> bool:
    return any(name == place or name.startswith(f"{place}/") for place in places)


def test_nothing_asks_the_c_library() -> None:
    """Its last bit is another on another machine."""
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        name = path.relative_to(SOURCE).as_posix()
        if _is_below(name, PORTABLE) and not _is_below(name, ELSEWHERE):
            found += [f"{name}:{problem}" for problem in problems(path.read_text(encoding="utf-8"))]
    assert not found, "\n" + "\n".join(found)


def test_a_simulation_imports_nothing_else() -> None:
    """So that no module that feeds it is forgotten above."""
    code = "import sys, prfaas.simulator.command; print(*(m.__file__ for n, m in sys.modules.items() if n[:7] == 'prfaas.'))"
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120).stdout
    names = [Path(file).relative_to(SOURCE).as_posix() for file in told.split()]
    assert len(names) > 50
    assert [name for name in names if not _is_below(name, PORTABLE) or _is_below(name, ELSEWHERE)] == []


@pytest.mark.parametrize(
    "line",
    [
        "math.exp(x)", "math.log(x, 2)", "math.hypot(x, y)", "from math import sin", "import math as m", "x ** 2", "2.0 ** x",
        "2 ** num", "x **= 2", "pow(x, 2)", "rng.expovariate(1.0)", "self._rng.gauss(0.0, 1.0)", "statistics.NormalDist()",
        "from statistics import NormalDist", "import numpy as np", "from numpy import exp",
    ],
)  # fmt: skip
def test_what_is_found(line: str) -> None:
    """Each of these once."""
    assert len(list(problems(line))) == 1


@pytest.mark.parametrize(
    "line", ["math.sqrt(x)", "10**9", "math.fsum(x)", "rng.random()", "statistics.median(x)", "call(**x)", "exp(x)"]
)
def test_what_may_be(line: str) -> None:
    """What IEEE 754 rounds correctly, and whole numbers."""
    assert not list(problems(line))
