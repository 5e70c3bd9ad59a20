"""Faults by seed against a small emulated deployment, each seed with its ledger.

    python -m benchmarks.chaos.seeds [--seeds 200] [--first-seed 0] [--out seeds.jsonl] [--keep FOLDER]

One deployment serves all seeds; after a seed that does not hold it is started anew, so that each is judged alone. A
line per seed goes to --out, logs of seeds that do not hold to --keep. Ends with a table by kind of fault, and with
status 1 if a seed does not hold. Seconds are real ones of this machine; engines run five times as fast as those that
they stand for.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import uvloop

from prfaas.chaos.answers import answers_of
from prfaas.chaos.command import planned_rps
from prfaas.chaos.draw import drawn_faults
from prfaas.chaos.faults import Kind
from prfaas.chaos.records import Outcome
from prfaas.chaos.report import to_json
from prfaas.chaos.run import Phases, Result, RunOptions, run_once
from prfaas.chaos.site import site_of
from prfaas.core.errors import PrfaasError
from prfaas.testing.up_site import harmed_document, running_up

#: Three seconds to know what is usual, five with faults, at least two to see that it is usual again.
PHASES = Phases(3.0, 5.0, 2.0, 20.0)
LOAD = 0.4


class Deployment:
    """Started when it is needed, and again after `stop`."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._up: tuple[Path, Path] | None = None

    def paths(self) -> tuple[Path, Path]:
        """File and logs."""
        if self._up is None:
            self._up = self._stack.enter_context(running_up(harmed_document()))
        return self._up

    def stop(self) -> None:
        self._up = None
        self._stack.close()


def run_seed(seed: int, paths: tuple[Path, Path], load: float) -> Result:
    """Raises what `run_once` raises."""
    site = site_of(*paths)
    faults = drawn_faults(site.menu, seed, PHASES.before_s, PHASES.faults_s)
    options = RunOptions(seed, faults, PHASES, load * planned_rps(site))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run_once(site, options, answers_of(site)))


def table(results: list[Result]) -> Iterator[str]:
    """By kind of fault. A seed of several kinds counts in each of them."""
    by_kind: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        for kind in {fault.kind for fault in result.options.faults}:
            by_kind[_name(kind)].append(result)
    outcomes = list(Outcome)
    yield "| fault | faults | seeds | hold | requests | " + " | ".join(outcomes) + " | as before: median | longest |"
    yield "|---|" + "---:|" * (6 + len(outcomes))
    for name, some in [*sorted(by_kind.items()), ("all", results)]:
        kinds = [_name(fault.kind) for result in some for fault in result.options.faults]
        num_faults = len(kinds) if name == "all" else kinds.count(name)
        times_s = [result.recovery_s for result in some if result.recovery_s is not None]
        cells = [name, num_faults, len(some), sum(result.is_fine for result in some)]
        cells += [sum(result.verdict.sent for result in some)]
        cells += [sum(result.verdict.outcomes[outcome] for result in some) for outcome in outcomes]
        told = [f"{statistics.median(times_s):.1f} s", f"{max(times_s):.1f} s"] if times_s else ["–", "–"]
        yield f"| {' | '.join(map(str, [*cells, *told]))} |"


def _name(kind: Kind) -> str:
    return kind.value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--load", type=float, default=LOAD, help="share of the plan")
    parser.add_argument("--out", type=Path, help="a JSON line for each seed, added to what is there")
    parser.add_argument("--keep", type=Path, help="folder for the logs of seeds that do not hold")
    asked = parser.parse_args()
    deployment, results, bad = Deployment(), list[Result](), list[int]()
    try:
        for seed in range(asked.first_seed, asked.first_seed + asked.seeds):
            paths = deployment.paths()
            began_s = time.monotonic()
            told: dict[str, object]
            try:
                result = run_seed(seed, paths, asked.load)
            except (PrfaasError, ExceptionGroup) as error:
                bad.append(seed)
                told = {"seed": seed, "holds": False, "error": repr(error)}
                print(f"seed {seed}: {error!r}", flush=True)
            else:
                results.append(result)
                told = to_json(result)
                tell(seed, result, time.monotonic() - began_s)
                if not result.is_fine:
                    bad.append(seed)
            if asked.out is not None:
                with asked.out.open("a", encoding="utf-8") as out:
                    out.write(json.dumps(told) + "\n")
            if bad and bad[-1] == seed:
                if asked.keep is not None:
                    shutil.copytree(paths[1], asked.keep / str(seed), dirs_exist_ok=True)
                deployment.stop()
    finally:
        deployment.stop()
    print("\n".join(["", *table(results)]))
    print(f"\nseeds that do not hold: {', '.join(map(str, bad)) or 'none'}")
    sys.exit(1 if bad else 0)


def tell(seed: int, result: Result, took_s: float) -> None:
    faults = "; ".join(fault.text for fault in result.options.faults)
    verdict = result.verdict
    counts = ", ".join(f"{number} {outcome}" for outcome, number in verdict.outcomes.items())
    back = "not as before" if result.recovery_s is None else f"as before after {result.recovery_s:.1f} s"
    print(f"seed {seed}: {faults}: {counts}; {back}; {took_s:.0f} s", flush=True)
    for problem in result.problems:
        print(f"  WRONG ({problem.kind}): {problem.text}", flush=True)


if __name__ == "__main__":
    main()
