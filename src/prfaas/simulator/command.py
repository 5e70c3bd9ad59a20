"""`prfaas simulate`: a deployment file, policies and seeds in; a table, a JSON object, a line for each request out."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import IO, Final, get_args

from prfaas.core.control.lifecycle import TransferTerms
from prfaas.core.errors import PrfaasError
from prfaas.core.planning.scenario import Scenario
from prfaas.core.planning.solution import Solution
from prfaas.core.planning.solve import solve
from prfaas.deployment.contradictions import contradictions
from prfaas.deployment.document import DeploymentError, Document
from prfaas.deployment.load import read_deployment
from prfaas.deployment.model import Deployment, Policy
from prfaas.scenario.build import scenario_of
from prfaas.sim.conditions import Condition
from prfaas.sim.deployment import SimulatedDeployment, planned_deployment
from prfaas.sim.hindsight import Hindsight, Judged, way_of
from prfaas.sim.observed import Observer
from prfaas.sim.policies import POLICIES
from prfaas.sim.runs import Run, to_end
from prfaas.sim.simulation import Life
from prfaas.simulator.happenings import happenings
from prfaas.simulator.loads import Load, LoadOptions, cache_profile, check_load, load_of, trace_block_tokens
from prfaas.simulator.notes import notes_of
from prfaas.simulator.results import WARM_UP, Results, results_of
from prfaas.simulator.watched import check_outputs, watched, written
from prfaas.whole_file import CannotWrite

KINDS: Final = tuple(get_args(Policy.model_fields["kind"].annotation))
#: What `--policy` takes: the kinds of a deployment file, and how others choose.
NAMES: Final = (*KINDS, *POLICIES)
ALL: Final = "all"


class BadSimulation(PrfaasError):
    """The command line asks for something that cannot be; the text says what to write instead."""


@dataclass(frozen=True, slots=True)
class SimulateOptions:
    """What the command line says."""

    file: Path
    policies: tuple[str, ...] = ()
    num_seeds: int = 1
    first_seed: int = 0
    load: LoadOptions = field(default_factory=LoadOptions)
    as_json: bool = False
    requests: Path | None = None
    happenings: tuple[str, ...] = ()
    plot: Path | None = None
    chrome_trace: Path | None = None
    num_judged: int = 0


@dataclass(frozen=True, slots=True)
class _Case:
    policy: str
    scenario: Scenario
    solution: Solution
    deployment: SimulatedDeployment
    tpot_slo_s: float | None
    conditions: tuple[tuple[float, Condition], ...]

    def seeded(self, seed: int) -> SimulatedDeployment:
        """What others choose may depend on a seed."""
        choose = POLICIES.get(self.policy)
        if choose is None:
            return self.deployment
        policy = replace(self.deployment.policy, choose=choose(seed), binds_late=False, max_ttft_s=None)
        return replace(self.deployment, policy=policy)


def run(options: SimulateOptions) -> int:
    """Returns 0; 2 after saying on standard error what is wrong with the input, 1 if a file cannot be written to its
    end. No file is touched then."""
    try:
        _check(options)
        deployment, document = read_deployment(options.file)
        _check_outputs(options, _named_files(deployment, options.file.parent))
        asked = options.policies or (deployment.policy.kind,)
        kinds = dict.fromkeys(name for one in asked for name in (NAMES if one == ALL else (one,)))
        section = deployment.workload.input_tokens.trace if deployment.workload is not None else None
        block_tokens = trace_block_tokens(None if section is None else section.block_tokens)
        cases = _cases(deployment, document, list(kinds), options, block_tokens)
        first = cases[0]
        load = load_of(options.load, first.scenario, first.solution.system_rps, first.scenario.policy, block_tokens)
        results = _simulated(options, cases, load)
    except CannotWrite as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except PrfaasError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    notes = notes_of([c.scenario for c in cases], load, options.happenings, options.num_judged, results)
    sys.stderr.write("".join(f"note: {note}\n" for note in notes))
    if options.as_json:
        told = {"load": load.words, "notes": notes, "runs": [r.to_json() for r in results]}
        sys.stdout.write(json.dumps(told, indent=2) + "\n")
    else:
        from prfaas.simulator.report import print_results

        print_results(options.file.stem, load.words, results)
    return 0


def _check(options: SimulateOptions) -> None:
    for kind in options.policies:
        if kind not in (*NAMES, ALL):
            raise BadSimulation(f"--policy {kind}: there is {', '.join(NAMES)}, and {ALL}")
    if options.num_judged and not hasattr(os, "fork"):
        raise BadSimulation("--hindsight: it copies processes, and this system cannot; leave it out")
    check_load(options.load)
    if options.load.trace is not None and (options.num_seeds > 1 or options.first_seed):
        raise BadSimulation("--trace: its requests are the same for every seed; leave --seeds and --first-seed out")
    _check_outputs(options)


def _check_outputs(options: SimulateOptions, named: Iterable[Path] = ()) -> None:
    outputs = {"--requests": options.requests, "--plot": options.plot, "--chrome-trace": options.chrome_trace}
    check_outputs(outputs, (options.file, options.load.trace, *named))


def _named_files(deployment: Deployment, folder: Path) -> Iterator[Path]:
    """Those that are read because the deployment file says so. What is built in is no file there."""
    model, workload = deployment.model, deployment.workload
    if workload is not None and workload.input_tokens.trace is not None:
        yield folder / workload.input_tokens.trace.file
    if model.path is not None:
        yield folder / model.path / "config.json"
    for name in (model.hf_config, model.profile, *(cluster.profile for cluster in deployment.clusters.values())):
        if name is not None:
            yield folder / name


def _cases(
    deployment: Deployment, document: Document, names: Sequence[str], options: SimulateOptions, block_tokens: int
) -> list[_Case]:
    """Of all of them; where `all` was asked for and some cannot be, it says which can."""
    found, failed = [], None
    for name in names:
        try:
            found.append(_case(deployment, document, name, options, block_tokens))
        except (BadSimulation, DeploymentError) as error:
            if ALL not in options.policies:
                raise
            failed = failed or error
    if failed is not None:
        can = ", ".join(case.policy for case in found) or "none of them"
        raise BadSimulation(f"{failed}\n--policy {ALL}: this file can run {can}")
    return found


def _case(deployment: Deployment, document: Document, name: str, options: SimulateOptions, block_tokens: int) -> _Case:
    """Of a kind, or of how others choose: with the clusters as `prfaas` would have them."""
    kind = "prfaas" if name in POLICIES else name
    if kind != deployment.policy.kind:
        # Others have no use for it, and shall be compared all the same.
        max_ttft = deployment.policy.max_ttft if kind == "prfaas" else None
        policy = deployment.policy.model_copy(update={"kind": kind, "max_ttft": max_ttft})
        deployment = deployment.model_copy(update={"policy": policy})
        problems = [document.problem(field, text) for field, text in contradictions(deployment)]
        if problems:
            raise BadSimulation("\n".join(f"--policy {kind}: {problem}" for problem in problems))
    try:
        scenario = scenario_of(deployment, document)
        solution = solve(scenario)
    except DeploymentError:
        raise
    except PrfaasError as error:
        raise BadSimulation(f"{document.path}: policy {kind}: {error}") from None
    if not solution.system_rps > 0:
        text = "no request can be served; check instances, duties, prefill_instances and links"
        raise BadSimulation(f"{document.path}: policy {kind}: {text}")
    terms = TransferTerms(deployment.transfer.deadline, deployment.transfer.lease)
    rtts_s = {(link.from_, link.to): link.rtt for link in deployment.links if link.rtt is not None}
    simulated = planned_deployment(
        scenario, solution, terms=terms, rtts_s=rtts_s, tpot_slo_s=deployment.slo.tpot,
        gateway_rtts_s={name: cluster.rtt for name, cluster in deployment.clusters.items()},
        max_ttft_s=deployment.policy.max_ttft, cool_down_s=deployment.policy.cool_down,
        convertible=[name for name, cluster in deployment.clusters.items() if cluster.convertible],
    )  # fmt: skip
    clusters = [cluster.name for cluster in simulated.topology.clusters]
    caches = cache_profile(options.load, scenario, clusters, block_tokens)
    simulated = replace(simulated, caches=caches, policy=replace(simulated.policy, may_fetch=options.load.may_fetch))
    conditions = happenings(options.happenings, simulated.topology)
    return _Case(name, scenario, solution, simulated, deployment.slo.tpot, conditions)


def _simulated(options: SimulateOptions, cases: list[_Case], load: Load) -> list[Results]:
    results = []
    with ExitStack() as stack:
        watch = stack.enter_context(
            watched(
                options.plot, options.chrome_trace, said=options.happenings, num_runs=len(cases) * options.num_seeds,
                title=f"{options.file.stem}: {load.words}",
            )
        )  # fmt: skip
        lines = None if options.requests is None else stack.enter_context(written("--requests", options.requests))
        for case in cases:
            for seed in range(options.first_seed, options.first_seed + options.num_seeds):
                progress = _Progress(f"{case.policy}, seed {seed}", load.num_requests)
                began_s = time.perf_counter()
                run = load.begin(case.seeded(seed), seed)
                run.keeps_lives = False
                run.simulation.keeps_options = lines is not None
                hindsight = Hindsight(_judged(load.num_requests, options.num_judged))
                kept = None if lines is None else _Lines(lines, case.policy, seed, hindsight.found)
                run.on_end = None if kept is None else kept.take
                done = _ended(run, case, options, progress, watch.observer(case.policy), hindsight)
                wall_s = time.perf_counter() - began_s
                progress.clear()
                results.append(
                    results_of(
                        done, policy=case.policy, seed=seed, planned_rps=case.solution.system_rps,
                        tpot_slo_s=case.tpot_slo_s, wall_s=wall_s,
                        judged=hindsight.found.values(),
                    )
                )  # fmt: skip
                watch.keep(done, results[-1])
                if kept is not None:
                    kept.finish()
                del run, done  # or two runs would be in memory during the next
    return results


def _ended(
    run: Run, case: _Case, options: SimulateOptions, progress: _Progress, observer: Observer | None,
    hindsight: Hindsight,
) -> Run:  # fmt: skip
    if options.num_judged:
        hindsight.on_copy = partial(_silence, run, progress)
        hindsight.on_judged = lambda: progress.show(run.outcomes.num_ended)
        hindsight.follow(run.simulation)
    try:
        return to_end(run, case.conditions, progress.show, observer)
    finally:
        hindsight.leave()


def _silence(run: Run, progress: _Progress) -> None:
    run.on_end, progress.is_silent = None, True


def _judged(num_requests: int, num_judged: int) -> Callable[[int], bool]:
    """So many numbers of all, evenly, none of the warm-up."""
    first = int(num_requests * WARM_UP) + 1
    num = min(num_judged, num_requests - first + 1)
    numbers = {first + index * (num_requests - first + 1) // num for index in range(num)}
    return numbers.__contains__


class _Lines:
    """One run's requests in a file, in the order in which they came: who ends sooner waits for those before it."""

    def __init__(self, file: IO[bytes], policy: str, seed: int, judged: Mapping[int, Judged]) -> None:
        self._file, self._policy, self._seed, self._judged = file, policy, seed, judged
        self._waiting: dict[int, bytes] = {}
        self._next = 1

    def take(self, life: Life) -> None:
        """It has ended."""
        line = {"policy": self._policy, "seed": self._seed, **request_line(life)}
        judged = self._judged.get(life.number)
        if judged is not None:
            line |= {"hindsight": [asdict(one) for one in judged.tried], "regret_s": judged.regret_s}
        self._waiting[life.number] = json.dumps(line).encode() + b"\n"
        while (text := self._waiting.pop(self._next, None)) is not None:
            self._file.write(text)
            self._next += 1

    def finish(self) -> None:
        """The run is over."""
        for number in sorted(self._waiting):
            self._file.write(self._waiting[number])
        self._waiting.clear()


def request_line(life: Life) -> dict[str, object]:
    """One request, as docs/simulation.md lists the keys."""
    return {
        "request": life.number,
        "arrival_s": life.arrival.at_s,
        "input_tokens": life.arrival.num_tokens,
        "computed_tokens": life.num_computed_tokens,
        "skipped_tokens": life.num_skipped_tokens,
        "fetched_tokens": life.num_fetched_tokens,
        "output_tokens": life.arrival.num_output_tokens,
        "route": life.route,
        "reason": life.reason,
        "prefill_instance": life.prefill or None,
        "decode_instance": life.decode or None,
        "fallback_reason": life.fallback or None,
        "outcome": life.outcome,
        "kv_bytes": round(life.kv_bytes),
        "first_token_s": life.began_s,
        "end_s": life.ended_s,
        "options": [
            {"way": way_of(option), "expected_s": option.finish_s, "cost_s": option.cost_s} for option in life.options
        ],
    }


class _Progress:
    """A line on a terminal's standard error, with an estimate of the time left."""

    def __init__(self, name: str, num_requests: int) -> None:
        self._name = name
        self._num_requests = num_requests
        self._began_s = time.perf_counter()
        self._is_shown = False
        self.is_silent = not sys.stderr.isatty()

    def show(self, num_ended: int) -> None:
        elapsed_s = time.perf_counter() - self._began_s
        if elapsed_s < 1.0 or not num_ended or self.is_silent:
            return
        self._is_shown = True
        left_s = elapsed_s * max(0, self._num_requests - num_ended) / num_ended
        sys.stderr.write(f"\r{self._name}: {num_ended} of {self._num_requests} requests, about {left_s:.0f} s left ")
        sys.stderr.flush()

    def clear(self) -> None:
        if self._is_shown:
            sys.stderr.write("\r\x1b[K")
