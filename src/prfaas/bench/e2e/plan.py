"""Which requests are sent when, before any is sent. Files are read; nothing else happens here.

Laws of this file:
- With a deployment file and a seed, lengths and times are those of `prfaas simulate` with the same file, seed and rate,
  request by request: the same generator draws them.
- A trace's requests have its whole prompts, at its times.
- `--scale-time` multiplies all times, and changes nothing else; `--duration` is of the times that come out. Of an
  emulated deployment's file it is the file's `emulation.time_scale`, and so is the SLO's.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path
from typing import Final

from prfaas.bench.e2e.options import DEFAULT_NUM_REQUESTS, DEFAULT_OUTPUT_TOKENS, BadBench, E2eOptions
from prfaas.core.planning.trace import MOONCAKE_BLOCK_TOKENS
from prfaas.deployment.load import read_deployment
from prfaas.deployment.model import Deployment
from prfaas.scenario.workload import read_trace_file, read_workload
from prfaas.sim.arrivals import Arrival, DrawLength, lengths_of
from prfaas.sim.sessions import Conversations
from prfaas.simulator.loads import POISSON, arrival_process, conversations, is_closed

#: More requests than this are a slip of the keyboard, and would not fit into memory.
MAX_REQUESTS: Final = 10_000_000


@dataclass(frozen=True, slots=True)
class Planned:
    """One request: its number from 1, when it is to be sent, its lengths, and the ids of its prompt's blocks, if a
    trace says them."""

    number: int
    at_s: float
    input_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Talks:
    """Conversations in place of requests at given times. No prompt is longer than `max_tokens`, if that is known."""

    terms: Conversations
    lengths: DrawLength
    output_tokens: int
    max_tokens: int | None
    num_requests: int | None


@dataclass(frozen=True, slots=True)
class Plan:
    """`requests` by their times, or `talks`. `words` for people."""

    requests: Sequence[Planned]
    talks: Talks | None
    block_tokens: int
    slo_tpot_s: float | None
    words: str


@dataclass(frozen=True, slots=True)
class _Source:
    lengths: DrawLength
    output_tokens: int
    rate_rps: float | None
    max_tokens: int | None
    slo_tpot_s: float | None
    words: str
    #: Of a deployment whose engines are emulated.
    time_scale: float = 1.0


def plan_of(options: E2eOptions) -> Plan:
    """`options` were checked. Raises PrfaasError for what files say."""
    if options.trace is not None:
        return _of_trace(options, options.trace)
    source = _of_deployment(options.deployment) if options.deployment is not None else _constant(options)
    slo_tpot_s = options.slo_tpot_s if options.slo_tpot_s is not None else source.slo_tpot_s
    num_requests = options.num_requests
    if num_requests is None and options.duration_s is None:
        num_requests = DEFAULT_NUM_REQUESTS
    if is_closed(options.arrivals):
        terms = conversations(str(options.arrivals))
        talks = Talks(terms, source.lengths, source.output_tokens, source.max_tokens, num_requests)
        words = f"{_limits(num_requests, options.duration_s)}, {options.arrivals}, {source.words}"
        return Plan((), talks, MOONCAKE_BLOCK_TOKENS, slo_tpot_s, words)
    rate_rps = options.rate_rps if options.rate_rps is not None else source.rate_rps
    if rate_rps is None:
        raise BadBench(f"{options.deployment}: workload.arrivals is missing; add --rate, requests a second")
    draw, kind = arrival_process(options.arrivals or POISSON, rate_rps, source.lengths, source.output_tokens)
    arrivals: Iterable[Arrival] = draw(random.Random(options.seed))
    scale, scaled = _scale(options, source.time_scale)
    if options.duration_s is not None:
        end_s = options.duration_s / scale
        arrivals = takewhile(lambda arrival: arrival.at_s < end_s, arrivals)
    drawn = islice(arrivals, MAX_REQUESTS + 1 if num_requests is None else num_requests)
    requests = [Planned(n, a.at_s * scale, a.num_tokens, a.num_output_tokens) for n, a in enumerate(drawn, start=1)]
    words = f"{len(requests)} requests, {kind}, {rate_rps:.4g} a second{scaled}, {source.words}"
    return Plan(_some(requests, options), None, MOONCAKE_BLOCK_TOKENS, slo_tpot_s, words)


def most_at_once(plan: Plan, timeout_s: float) -> int:
    """The most requests that can be in flight together, however slow the server is: none stays longer than
    `timeout_s`."""
    if plan.talks is not None:
        return plan.talks.terms.num_clients
    times_s = [request.at_s for request in plan.requests]
    return max((n + 1 - bisect_left(times_s, at_s - timeout_s) for n, at_s in enumerate(times_s)), default=0)


def _constant(options: E2eOptions) -> _Source:
    assert options.input_tokens is not None
    input_tokens, output_tokens = options.input_tokens, options.output_tokens or DEFAULT_OUTPUT_TOKENS
    words = f"{input_tokens} tokens in, {output_tokens} out"
    return _Source(lambda rng: input_tokens, output_tokens, None, None, None, words)


def _of_deployment(path: Path) -> _Source:
    deployment, document = read_deployment(path)
    workload = deployment.workload
    if workload is None:
        raise BadBench(document.problem(("workload",), "missing; it says how long prompts and answers are"))
    drawn, traced_output = read_workload(workload.input_tokens, path.resolve().parent)
    output = traced_output if workload.output_tokens is None else workload.output_tokens
    if not output:
        raise BadBench(document.problem(("workload", "output_tokens"), "missing; how many tokens have answers?"))
    # As `prfaas simulate` rounds it.
    output_tokens = max(1, round(output))
    words = f"prompts as in {path.name}, {output_tokens} tokens out"
    scale = 1.0 if deployment.emulation is None else deployment.emulation.time_scale
    tpot_s = None if deployment.slo.tpot is None else deployment.slo.tpot * scale
    return _Source(
        lengths_of(drawn), output_tokens, _rate_of(deployment), round(drawn.max_tokens), tpot_s, words, scale
    )


def _rate_of(deployment: Deployment) -> float | None:
    arrivals = deployment.workload.arrivals if deployment.workload is not None else None
    return arrivals.poisson.rate if arrivals is not None else None


def _of_trace(options: E2eOptions, path: Path) -> Plan:
    block_tokens = options.block_tokens or MOONCAKE_BLOCK_TOKENS
    scale, scaled = _scale(options)
    traced = read_trace_file(path, f"--trace {path}", block_tokens)[: options.num_requests]
    first_s, end_s = traced[0].arrival_s, options.duration_s
    requests = [
        Planned(n, (r.arrival_s - first_s) * scale, r.input_tokens, max(1, r.output_tokens), r.hash_ids)
        for n, r in enumerate(traced, start=1)
        if end_s is None or (r.arrival_s - first_s) * scale < end_s
    ]
    words = f"{len(requests)} requests of {path.name}, at its own times{scaled}"
    return Plan(_some(requests, options), None, block_tokens, options.slo_tpot_s, words)


def _scale(options: E2eOptions, emulated: float = 1.0) -> tuple[float, str]:
    """And in words. `emulated`: in which time the deployment's engines run."""
    scale = emulated if options.time_scale is None else options.time_scale
    return scale, "" if scale == 1.0 else f", all times multiplied by {scale:g}"


def _some(requests: list[Planned], options: E2eOptions) -> list[Planned]:
    if not requests:
        raise BadBench(f"--duration {options.duration_s:g}: no request comes in that time; make it longer")
    if len(requests) > MAX_REQUESTS:
        raise BadBench(f"--duration {options.duration_s:g}: more than {MAX_REQUESTS} requests; make it shorter")
    return requests


def _limits(num_requests: int | None, duration_s: float | None) -> str:
    said = [] if num_requests is None else [f"{num_requests} requests"]
    return " or ".join([*said, *([] if duration_s is None else [f"{duration_s:g} s"])])
