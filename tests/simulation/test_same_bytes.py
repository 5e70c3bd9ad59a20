"""One seed is the same bytes wherever it runs: whatever the processor has, and however a process hashes strings.

Python gives no other processor, but glibc does: told that there is neither FMA nor AVX, it takes other kernels, as it would
on a machine without them.
"""

from __future__ import annotations

import builtins
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from prfaas.simulator.command import SimulateOptions, run
from prfaas.simulator.loads import LoadOptions

FILE = Path(__file__).parents[2] / "examples" / "case-study" / "prfaas.yaml"

OTHER_KERNELS = {"GLIBC_TUNABLES": "glibc.cpu.hwcaps=-FMA,-AVX2,-FMA4,-AVX"}
#: Most results are the same all the same: some of a hundred thousand differ.
MANY_RESULTS = """
import hashlib, math
found = [f(index / 7919) for index in range(1, 100_001) for f in (math.exp, math.log, math.sin, lambda x: 2.0 ** x)]
print(hashlib.sha256(repr(found).encode()).hexdigest())
"""


@dataclass(frozen=True)
class Case:
    """Of a run on the command line."""

    arrivals: str
    num_requests: int
    policies: tuple[str, ...] = ("prfaas",)
    load: float | None = None
    caches: tuple[str, ...] = ()
    happenings: tuple[str, ...] = ()

    def options(self, requests: Path) -> SimulateOptions:
        load = LoadOptions(
            self.num_requests, arrivals=self.arrivals, load=self.load, caches=self.caches, may_fetch=bool(self.caches)
        )
        return SimulateOptions(
            FILE, self.policies, 2, load=load, as_json=True, requests=requests, happenings=self.happenings
        )

    def arguments(self, requests: Path) -> list[str]:
        """The same in words."""
        words = ["--arrivals", self.arrivals, "--num-requests", str(self.num_requests), "--seeds", "2", "--json"]
        words += ["--requests", str(requests)]
        words += [word for name in self.policies for word in ("--policy", name)]
        words += [] if self.load is None else ["--load", str(self.load)]
        words += [word for text in self.caches for word in ("--cache", text)] + (["--fetch"] if self.caches else [])
        return words + [word for text in self.happenings for word in ("--at", text)]


CASES = {
    "Poisson, faults, two policies": Case(
        "poisson", 400, ("prfaas", "two_choices"), load=0.9,
        happenings=("60s link prfaas-west pd-east 2Gbps", "90s die prfaas-west-1", "120s return prfaas-west"),
    ),
    "bursts, a link that varies": Case(
        "bursty 5x 30s 60s", 800, load=0.8, happenings=("5s vary prfaas-west pd-east 30%",)
    ),
    "days, a link that drifts": Case(
        "daily 0.2 200s", 400, load=0.7, happenings=("20s drift prfaas-west pd-east 3Gbps 60s",)
    ),
    "conversations, caches": Case(
        "clients 48 think 5s turns 5 shared 2000", 400, caches=("200000",),
        happenings=("10s vary prfaas-west pd-east 20%",),
    ),
}  # fmt: skip


def told(name: str, folder: Path, **environment: str) -> tuple[str, bytes]:
    """The results but for the seconds that they took, and the requests, of another process."""
    out = folder / "requests.jsonl"
    command = [sys.executable, "-m", "prfaas", "simulate", str(FILE), *CASES[name].arguments(out)]
    done = subprocess.run(command, env={**os.environ, **environment}, check=True, capture_output=True, timeout=300)
    results = json.loads(done.stdout)
    for one in results["runs"]:
        del one["wall_s"]
    return json.dumps(results), out.read_bytes()


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a case gives here; once for all tests."""
    return cache(lambda name: told(name, tmp_path_factory.mktemp("usual"), PYTHONHASHSEED="1"))


@pytest.fixture(scope="module")
def other_kernels() -> dict[str, str]:
    """An environment in which the C library's functions give other last bits."""
    results = {
        subprocess.run(
            [sys.executable, "-c", MANY_RESULTS], env=os.environ | more, check=True, capture_output=True, timeout=120
        ).stdout
        for more in ({}, OTHER_KERNELS)
    }
    if len(results) == 1:
        pytest.skip(
            "here the C library cannot be told to take other kernels: no glibc on x86-64, or nothing to leave out"
        )
    return OTHER_KERNELS


@pytest.mark.parametrize("name", CASES)
def test_on_a_processor_without_fma(name: str, usual: Any, other_kernels: dict[str, str], tmp_path: Path) -> None:
    """Neither results nor requests differ in a byte."""
    assert told(name, tmp_path, PYTHONHASHSEED="1", **other_kernels) == usual(name)


@pytest.mark.parametrize("name", CASES)
def test_with_other_hashes(name: str, usual: Any, tmp_path: Path) -> None:
    """In a process whose sets and dictionaries of names are in another order."""
    found = told(name, tmp_path, PYTHONHASHSEED="2")
    assert found == usual(name)
    assert len(found[1].splitlines()) == CASES[name].num_requests * 2 * len(CASES[name].policies)


@pytest.mark.parametrize("name", CASES)
def test_no_floats_are_summed_as_this_python_does(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From Python 3.12 on `sum` carries what it rounds away, before it did not; `math.fsum` is one for all."""
    found: set[str] = set()
    plain = builtins.sum

    def watched(values: Iterable[Any], /, start: Any = 0) -> Any:
        listed = list(values)
        caller = sys._getframe(1)
        name = caller.f_globals["__name__"]
        if name.startswith("prfaas.") and any(isinstance(value, float) for value in listed):
            found.add(f"{name}:{caller.f_lineno}")
        return plain(listed, start)

    monkeypatch.setattr(builtins, "sum", watched)
    assert run(CASES[name].options(tmp_path / "requests.jsonl")) == 0
    capsys.readouterr()
    assert not found
