"""The simulator beside AISimulate, NVIDIA's: the same requests, the same engines, in both.

`python -m benchmarks.simulator.peer --peer-python /path/to/venv/bin/python [--trace FILE] [--rounds N]`. The other
interpreter has the package `aisimulate`, as a wheel with its engine:
`pip install --pre --only-binary :all: aisimulate`.
`--trace`: a trace in Mooncake's format, for one more workload and for the speed of whole processes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from benchmarks.simulator.peer_end import NO_PACKAGE
from prfaas.core.control.lifecycle import TransferTerms
from prfaas.core.control.router import RoutePolicy
from prfaas.core.model.curve import polynomial
from prfaas.core.model.serving_model import ClusterModel, ServingModel
from prfaas.core.planning.workload import TruncatedLogNormal
from prfaas.core.topology import Cluster, Duty, Instance, Role, Topology
from prfaas.sim.arrivals import Arrival, lengths_of
from prfaas.sim.deployment import SimulatedDeployment
from prfaas.sim.engine import Engine, EngineProfile
from prfaas.sim.engine import Sequence as Answer
from prfaas.sim.kernel import Kernel
from prfaas.sim.policies import round_robin
from prfaas.sim.runs import Run
from prfaas.sim.simulation import Life
from prfaas.simulator.results import percentile

PEER_END: Final = Path(__file__).with_name("peer_end.py")
CASE_STUDY: Final = Path(__file__).parents[2] / "examples" / "case-study" / "prfaas.yaml"
#: AISimulate's built-in `polynomial` timing: seconds of a prefill step with so many tokens. The first workload, whose
#: requests never meet, would show any other numbers.
PREFILL_S: Final = polynomial(16.50142e-3, 1.518344e-5, 4.209989e-10)
FOR_EVER: Final = TransferTerms(deadline_s=1e9, lease_s=1e9)
PROMPTS: Final = TruncatedLogNormal(8.5, 1.0, 128, 131_072)
ANSWERS: Final = TruncatedLogNormal(5.0, 0.8, 2, 2_048)
#: What is compared, and how far apart it may be.
FIGURES: Final = (
    ("throughput, requests/s", 0.02), ("TTFT mean, s", 0.05), ("TTFT p50, s", 0.05), ("TTFT p99, s", 0.05),
    ("TPOT mean, ms", 0.05),
)  # fmt: skip
TRACE_BLOCK_TOKENS: Final = 512


@dataclass(frozen=True)
class Case:
    """Requests for `num_pairs` prefill and as many decode instances. `clients`: so many send one after the other, and
    times of arrivals do not count. `is_as_shipped`: our scheduler chooses as it does, AISimulate in turn as ever."""

    name: str
    num_pairs: int
    arrivals: Sequence[Arrival]
    max_batch: int = 64
    step_s: float = 0.02
    clients: int | None = None
    is_as_shipped: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """What came of one, in either: times in seconds since the run's start. `decode`: the number of the instance that
    decoded it, known of theirs."""

    number: int
    arrival_s: float
    prefilled_s: float
    first_s: float
    end_s: float
    num_output_tokens: int
    decode: int = 0

    @property
    def ttft_s(self) -> float:
        return self.first_s - self.arrival_s


class Clients(Run):
    """So many send the next of the requests when their last one has ended."""

    def __init__(self, deployment: SimulatedDeployment, arrivals: Sequence[Arrival], num_clients: int) -> None:
        super().__init__(deployment)
        self._left = iter(arrivals)
        self._num_clients = num_clients

    def begin(self) -> None:
        """Now."""
        for _ in range(self._num_clients):
            self._submit()

    def _submit(self) -> None:
        arrival = next(self._left, None)
        if arrival is not None:
            now_s = self.simulation.kernel.now_s
            self.simulation.submit(Arrival(now_s, arrival.num_tokens, arrival.num_output_tokens))

    def _end(self, life: Life) -> None:
        super()._end(life)
        self._submit()


def deployment_of(case: Case) -> SimulatedDeployment:
    """KVCache never crosses a link. In turn: each pair is a PD cluster, requests go from one to the next. As shipped:
    one PD cluster, whose instances get requests by load."""
    num_clusters = 1 if case.is_as_shipped else case.num_pairs
    clusters = [f"pd{index}" for index in range(num_clusters)]
    instances = [
        Instance(f"{name}-{duty}{index}", name, duty, f"sim://{name}-{duty}{index}/engine",
                 f"sim://{name}-{duty}{index}/node", f"sim://{name}-{duty}{index}")
        for name in clusters
        for duty in (Duty.PREFILL, Duty.DECODE)
        for index in range(case.num_pairs // num_clusters)
    ]  # fmt: skip
    nothing = polynomial(0.0)
    policy = RoutePolicy(offload=False, threshold_tokens=0)
    if not case.is_as_shipped:
        cluster = ClusterModel(PREFILL_S, case.max_batch, case.step_s)
        mean_output = statistics.fmean(arrival.num_output_tokens for arrival in case.arrivals)
        model = ServingModel(dict.fromkeys(clusters, cluster), nothing, mean_output)
        policy = RoutePolicy(False, 0, model, choose=round_robin(0), binds_late=False)
    topology = Topology(tuple(Cluster(name, Role.PD) for name in clusters), tuple(instances), ())
    profile = EngineProfile(PREFILL_S, case.max_batch, case.step_s)
    profiles = {instance.name: profile for instance in instances}
    return SimulatedDeployment(topology, profiles, nothing, policy, FOR_EVER, is_layer_wise=False)


def ours(case: Case) -> tuple[list[Request], float]:
    """Every request, and how long it took."""
    deployment = deployment_of(case)
    run = Run(deployment) if case.clients is None else Clients(deployment, case.arrivals, case.clients)
    simulation = run.simulation
    began_s = time.perf_counter()
    if isinstance(run, Clients):
        run.begin()
    else:
        simulation.follow(iter(case.arrivals))
    while simulation.kernel.step():
        pass
    took_s = time.perf_counter() - began_s
    assert {life.outcome for life in run.ended} == {"ok"}, case.name
    return [_request(life, case.step_s) for life in sorted(run.ended, key=lambda life: life.number)], took_s


def _request(life: Life, step_s: float) -> Request:
    """The first token comes one step after the prefill's end, if the batch has a place."""
    began_s, ended_s = life.began_s or 0.0, life.ended_s or 0.0
    arrival = life.arrival
    return Request(life.number, arrival.at_s, began_s - step_s, began_s, ended_s, arrival.num_output_tokens)


def theirs(case: Case, python: str, folder: Path) -> tuple[list[Request], float]:
    """Every request, and how long the replay took, without the start of its interpreter."""
    trace = folder / "workload.jsonl"
    write_trace(case.arrivals, trace)
    job, out = folder / "job.json", folder / "out.json"
    job.write_text(json.dumps(job_of(case, trace)))
    subprocess.run([python, str(PEER_END), "run", str(job), str(out)], check=True, capture_output=True)
    told = json.loads(out.read_text())
    return [Request(**request) for request in told["requests"]], told["engine_s"]


def job_of(case: Case, trace: Path) -> dict[str, object]:
    return {
        "num_prefill": case.num_pairs, "num_decode": case.num_pairs, "max_batch": case.max_batch,
        "step_ms": case.step_s * 1e3, "concurrency": case.clients, "trace": str(trace),
    }  # fmt: skip


def write_trace(arrivals: Sequence[Arrival], path: Path) -> None:
    """In Mooncake's format; prompts share no block."""
    block = itertools.count()
    with path.open("w") as lines:
        for arrival in arrivals:
            blocks = [next(block) for _ in range(math.ceil(arrival.num_tokens / TRACE_BLOCK_TOKENS))]
            line = {
                "timestamp": arrival.at_s * 1e3, "input_length": arrival.num_tokens,
                "output_length": arrival.num_output_tokens, "hash_ids": blocks,
            }  # fmt: skip
            lines.write(json.dumps(line) + "\n")


def poisson_at(num: int, num_pairs: int, load: float, seed: int = 1) -> list[Arrival]:
    """From 0 on, at `load` of the rate that so many prefill instances can keep up with on average."""
    rng = random.Random(seed)
    draw_prompt, draw_answer = lengths_of(PROMPTS), lengths_of(ANSWERS)
    lengths = [(draw_prompt(rng), draw_answer(rng)) for _ in range(num)]
    mean_s = statistics.fmean(PREFILL_S.at(prompt) for prompt, _ in lengths)
    gaps_s = [0.0, *(rng.expovariate(load * num_pairs / mean_s) for _ in range(num - 1))]
    # AISimulate's clock has whole nanoseconds.
    times_s = (round(at_s, 9) for at_s in itertools.accumulate(gaps_s))
    return [Arrival(at_s, *both) for at_s, both in zip(times_s, lengths, strict=True)]


def apart(num: int) -> list[Arrival]:
    """Requests that never meet."""
    return [
        Arrival(100.0 * index, a.num_tokens, a.num_output_tokens) for index, a in enumerate(poisson_at(num, 1, 1.0))
    ]


def full_batch(arrivals: Sequence[Arrival], step_s: float, load: float) -> int:
    """The batch that these requests keep as full as `load`."""
    rate_rps = (len(arrivals) - 1) / arrivals[-1].at_s
    mean_s = step_s * statistics.fmean(arrival.num_output_tokens for arrival in arrivals)
    return round(rate_rps * mean_s / load)


def traced(path: Path) -> list[Arrival]:
    """A trace's requests with whole prompts: nothing is cached here."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    first_ms = rows[0]["timestamp"]
    return [Arrival((r["timestamp"] - first_ms) / 1e3, r["input_length"], max(1, r["output_length"])) for r in rows]


def cases(num: int, trace: Path | None) -> Iterator[Case]:
    """The last is the one whose routing differs."""
    one, one_full = poisson_at(num, 1, 0.6), poisson_at(num, 1, 0.95)
    four, four_full = poisson_at(num, 4, 0.6), poisson_at(num, 4, 0.95)
    yield Case("requests apart, 1P + 1D", 1, apart(200))
    yield Case("60% of prefill, 1P + 1D", 1, one)
    yield Case("95% of prefill, 1P + 1D", 1, one_full)
    yield Case("60% of prefill, 1P + 1D, 95% of a batch", 1, one, max_batch=full_batch(one, 0.02, 0.95))
    yield Case("60% of prefill, 4P + 4D", 4, four)
    yield Case("95% of prefill, 4P + 4D", 4, four_full)
    yield Case("60% of prefill, 4P + 4D, steps of 2 ms", 4, four, step_s=0.002)
    yield Case("64 clients, 4P + 4D", 4, four, clients=64)
    if trace is not None:
        yield Case(f"{trace.name}, 12P + 12D", 12, traced(trace))
    yield Case("95% of prefill, 4P + 4D, our own routing", 4, four_full, is_as_shipped=True)


def figures(requests: Sequence[Request]) -> list[float]:
    """In the order of FIGURES."""
    ttft_s = sorted(request.ttft_s for request in requests)
    tpot_s = [(r.end_s - r.first_s) / (r.num_output_tokens - 1) for r in requests if r.num_output_tokens > 1]
    span_s = max(request.end_s for request in requests) - min(request.arrival_s for request in requests)
    quantiles = [percentile(ttft_s, percent) or 0.0 for percent in (50, 99)]
    return [len(requests) / span_s, statistics.fmean(ttft_s), *quantiles, 1e3 * statistics.fmean(tpot_s)]


def compared(case: Case, mine: Sequence[Request], other: Sequence[Request]) -> str:
    """A row: ours / theirs, and by how much ours is more. In bold if that is more than was asked for."""
    cells = []
    for (_, limit), ours_is, theirs_is in zip(FIGURES, figures(mine), figures(other), strict=True):
        error = ours_is / theirs_is - 1
        shown = f"{_percent(error)}" if abs(error) <= limit or case.is_as_shipped else f"**{_percent(error)}**"
        cells.append(f"{ours_is:.4f} / {theirs_is:.4f}, {shown}")
    return f"| {case.name} | {' | '.join(cells)} |"


def _percent(share: float) -> str:
    return f"{round(100 * share, 2) + 0.0:+.2f}%"


def decoded(case: Case, other: Sequence[Request]) -> list[Request]:
    """Their requests by our decode engines: each on the instance that they chose, from when their prefill ended."""
    kernel, first_s = Kernel(), dict[int, float]()
    profile = EngineProfile(PREFILL_S, case.max_batch, case.step_s)
    engines = [Engine(kernel, profile) for _ in range(case.num_pairs)]

    def begin(request: Request) -> None:
        def on_first() -> None:
            first_s[request.number] = kernel.now_s

        engines[request.decode].decode(Answer(request.num_output_tokens, on_first, lambda: None))

    for request in sorted(other, key=lambda request: request.prefilled_s):
        kernel.at(request.prefilled_s, begin, request)
    while kernel.step():
        pass
    return [replace(request, first_s=first_s[request.number]) for request in other]


def explained(case: Case, mine: Sequence[Request], other: Sequence[Request]) -> str:
    """A row: how much later their first tokens are, in steps; then on the decode instances that they chose."""
    cells = []
    for some in (mine, decoded(case, other)):
        later = sorted((b.ttft_s - a.ttft_s) / case.step_s for a, b in zip(some, other, strict=True))
        cells.append(", ".join(f"{round(x, 2) + 0.0:.2f}" for x in (later[0], statistics.fmean(later), later[-1])))
    return f"| {case.name} | {' | '.join(cells)} |"


def agreement(every: Sequence[Case], python: str, folder: Path) -> None:
    """All tables but that of whole processes."""
    header = f"| workload | {' | '.join(name for name, _ in FIGURES)} |\n|---|{'---|' * len(FIGURES)}"
    why, speed = [], []
    print(header)
    for case in every:
        mine, my_s = ours(case)
        other, other_s = theirs(case, python, folder)
        assert [request.number for request in mine] == [request.number for request in other], case.name
        if case.is_as_shipped:
            print("\nOur own routing, theirs in turn as above:\n\n" + header)
        else:
            why.append(explained(case, mine, other))
        print(compared(case, mine, other), flush=True)
        speed.append(f"| {case.name} | {len(mine)} | {my_s:.2f} | {other_s:.2f} |")
    print("\nTheir first token later than ours, in steps: least, mean, most.\n")
    columns = ["ours", "ours, on the decode instance that they chose"]
    print(f"| workload | {' | '.join(columns)} |\n|---|---|---|")
    print("\n".join(why))
    print("\n| workload, engine alone | requests | ours, s | theirs, s |\n|---|---|---|---|")
    print("\n".join(speed))


def commands_of(python: str, trace: Path, folder: Path) -> dict[str, list[str]]:
    """Whole processes, by name."""
    commands: dict[str, list[str]] = {}
    job, out = folder / "job.json", folder / "out"
    for step_ms, has_cache in ((20, False), (20, True), (50, False)):
        name = f"aisimulate predict, 12P + 12D, steps of {step_ms} ms{', prefix caching' if has_cache else ''}"
        config = folder / f"config{len(commands)}.yaml"
        asked = {**job_of(Case(name, 12, (), step_s=step_ms / 1e3), trace), "has_prefix_caching": has_cache}
        job.write_text(json.dumps(asked))
        told = subprocess.run([python, str(PEER_END), "config", str(job)], check=True, capture_output=True, text=True)
        config.write_text(told.stdout)  # every JSON text is YAML too
        predict = [python, "-m", "aisimulate", "predict", "-c", str(config)]
        commands[name] = [*predict, "--output-dir", str(out), "--overwrite"]
    for policy in ("prfaas", "homogeneous"):
        simulate = [sys.executable, "-m", "prfaas", "simulate", str(CASE_STUDY), "--trace", str(trace)]
        commands[f"prfaas simulate, case study, --policy {policy}"] = [*simulate, "--policy", policy]
    return commands


def whole_processes(python: str, trace: Path, folder: Path, rounds: int) -> None:
    """Wall and CPU time of each, one after the other, `rounds` times."""
    commands = commands_of(python, trace, folder)
    wall_s: dict[str, list[float]] = {name: [] for name in commands}
    cpu_s: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            began_s, cpu_before_s = time.perf_counter(), _children_s()
            subprocess.run(command, check=True, capture_output=True)
            wall_s[name].append(time.perf_counter() - began_s)
            cpu_s[name].append(_children_s() - cpu_before_s)
    print(f"\n| whole process, {trace.name} | median, s | least | most | CPU, median, s |\n|---|---|---|---|---|")
    for name, all_s in wall_s.items():
        middle_s, cpu_middle_s = statistics.median(all_s), statistics.median(cpu_s[name])
        print(f"| {name} | {middle_s:.2f} | {min(all_s):.2f} | {max(all_s):.2f} | {cpu_middle_s:.2f} |")


def _children_s() -> float:
    """CPU seconds of all processes that were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def peer_version(python: str) -> str:
    """Raises SystemExit with a sentence if it cannot be used."""
    try:
        told = subprocess.run([python, str(PEER_END), "version"], capture_output=True, text=True)
    except OSError as error:
        raise SystemExit(f"--peer-python {python}: cannot be run: {error.strerror}") from None
    if told.returncode == NO_PACKAGE:
        raise SystemExit(
            f"--peer-python {python}: it lacks the package aisimulate; install it there with"
            " `pip install --pre --only-binary :all: aisimulate`, or name another interpreter"
        )
    if told.returncode:
        raise SystemExit(f"--peer-python {python}: {told.stderr.strip()}")
    return told.stdout.strip()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", required=True, help="interpreter that has the package aisimulate")
    parser.add_argument("--num-requests", type=int, default=3_000)
    parser.add_argument("--trace", type=Path, help="trace in Mooncake's format")
    parser.add_argument("--rounds", type=int, default=3, help="of whole processes")
    options = parser.parse_args()
    version = peer_version(options.peer_python)
    print(f"AISimulate {version}, Python {sys.version.split()[0]}, {os.cpu_count()} CPUs\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        agreement(list(cases(options.num_requests, options.trace)), options.peer_python, folder)
        if options.trace is None:
            print("\nSkipped: a trace's workload, and whole processes. --trace FILE names one in Mooncake's format.")
        else:
            whole_processes(options.peer_python, options.trace.resolve(), folder, options.rounds)


if __name__ == "__main__":
    main()
