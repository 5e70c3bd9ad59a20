"""Which requests a simulated run gets: what `--rate`, `--load`, `--trace`, `--arrivals` and `--cache` say."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from prfaas.core.errors import PrfaasError
from prfaas.core.planning.scenario import Scenario
from prfaas.core.planning.trace import MOONCAKE_BLOCK_TOKENS
from prfaas.deployment.units import parse_seconds
from prfaas.scenario.workload import read_trace_file
from prfaas.sim.arrivals import Arrival, DrawLength, bursty, daily, lengths_of, poisson, traced
from prfaas.sim.caches import CacheProfile, kinds_of
from prfaas.sim.deployment import SimulatedDeployment
from prfaas.sim.runs import Run
from prfaas.sim.sessions import Conversations, Sessions

#: Of a run, unless the command line or a trace says it.
DEFAULT_NUM_REQUESTS: Final = 5_000
#: Of the rate that the plan of the first policy promises, where neither the file nor the command line says a rate.
DEFAULT_LOAD: Final = 0.8
#: What `--arrivals` is if it is not given.
POISSON: Final = "poisson"
#: For whoever has written something else.
FORMS: Final = (
    "`poisson`, `bursty 5x 30s 300s` (so many times as many, for so long on average, after calms of so long),"
    " `daily 0.2 24h` (lowest over highest rate, a day), or `clients 64 think 10s turns 5 shared 2000` (of which all"
    " but the number may be left out)"
)
#: The most that numbers of the command line may be: beyond it they are slips.
_MOST: Final = 1_000_000_000
_SHORTEST_S: Final = 1e-3
#: What `--rate` and `--load` may be.
MAX_RATE_RPS: Final = 1e6
MAX_LOAD: Final = 10.0


class BadLoad(PrfaasError):
    """The command line asks for requests that cannot come; the text says what to write instead."""


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """As they stand on the command line. `caches`: `TOKENS` or `CLUSTER=TOKENS`. `may_fetch`: instances get cached
    prefixes from each other."""

    num_requests: int | None = None
    rate_rps: float | None = None
    load: float | None = None
    trace: Path | None = None
    arrivals: str | None = None
    caches: tuple[str, ...] = ()
    may_fetch: bool = False


@dataclass(frozen=True, slots=True)
class Load:
    """`begin` makes the run of a deployment with the requests of a seed, `num_requests` of them; `words` for people.
    `rate_rps` on average, 0 if it is not known; `day_s` if it goes up and down once in so long."""

    begin: Callable[[SimulatedDeployment, int], Run]
    num_requests: int
    words: str
    rate_rps: float = 0.0
    day_s: float | None = None


#: Makes the arrivals of one seed.
Draw = Callable[[random.Random], Iterator[Arrival]]


def check_load(options: LoadOptions) -> None:
    """Raises BadLoad for options that contradict each other, or are no numbers."""
    for option, value, most in (("--rate", options.rate_rps, MAX_RATE_RPS), ("--load", options.load, MAX_LOAD)):
        if value is not None and not 0 < value <= most:
            raise BadLoad(f"{option} {value:g}: it is more than 0 and at most {most:,.0f}")
    given = [
        options.rate_rps is not None, options.load is not None, options.trace is not None, is_closed(options.arrivals)
    ]  # fmt: skip
    if sum(given) > 1:
        raise BadLoad("--rate, --load, --trace and --arrivals clients each say how many requests come; give one")
    if options.may_fetch and not options.caches:
        raise BadLoad("--fetch: without --cache nothing can be fetched; say how much an instance keeps")
    if options.trace is not None and options.arrivals is not None:
        raise BadLoad("--trace: its requests come at its own times; leave --arrivals out")


def cache_profile(
    options: LoadOptions, scenario: Scenario, clusters: Sequence[str], block_tokens: int
) -> CacheProfile | None:
    """What `--cache` says; None without it. Raises BadLoad."""
    if not options.caches:
        return None
    tokens: dict[str, int] = {}
    for text in options.caches:
        name, _, number = text.rpartition("=")
        if name and name not in clusters:
            raise BadLoad(f"--cache {text}: there is no cluster {name}; there is {', '.join(clusters)}")
        num_tokens = _number("--cache", text, number)
        if num_tokens < block_tokens:
            raise BadLoad(f"--cache {text}: a cache has at least one block of {block_tokens} tokens")
        tokens |= dict.fromkeys((name,) if name else (c for c in clusters if c not in tokens), num_tokens)
    missing = [name for name in clusters if name not in tokens]
    if missing:
        raise BadLoad(f"--cache: how many tokens does an instance of {', '.join(missing)} keep? add CLUSTER=TOKENS")
    blocks = {name: num_tokens // block_tokens for name, num_tokens in tokens.items()}
    return CacheProfile(block_tokens, blocks, kinds_of(scenario.kv_bytes))


def load_of(options: LoadOptions, scenario: Scenario, planned_rps: float, policy: str, block_tokens: int) -> Load:
    """`planned_rps` is what the plan of `policy` promises. Raises BadLoad."""
    if options.trace is not None:
        return _of_trace(options, options.trace, block_tokens)
    output = max(1, round(scenario.mean_output_tokens))
    lengths = lengths_of(scenario.workload)
    num_requests = options.num_requests or DEFAULT_NUM_REQUESTS
    if is_closed(options.arrivals):
        terms = conversations(str(options.arrivals))
        most = round(scenario.workload.max_tokens)
        if terms.shared_tokens >= most:
            text = f"the workload's longest prompt has {most:,} tokens; share fewer than that"
            raise BadLoad(f"--arrivals {str(options.arrivals)!r}: {text}")

        def talks(deployment: SimulatedDeployment, seed: int) -> Run:
            return Sessions(
                deployment, random.Random(seed), lengths, terms, num_output_tokens=output, num_requests=num_requests,
                max_tokens=most,
            )  # fmt: skip

        return Load(talks, num_requests, f"{num_requests} requests, {options.arrivals}")
    rate_rps, why = _rate(options, scenario, planned_rps, policy)
    draw, kind = arrival_process(options.arrivals or POISSON, rate_rps, lengths, output)

    def drawn(deployment: SimulatedDeployment, seed: int) -> Run:
        run = Run(deployment)
        run.simulation.follow(islice(draw(random.Random(seed)), num_requests))
        return run

    words = str(options.arrivals).split()
    day_s = _seconds(str(options.arrivals), words[2]) if words[0] == "daily" else None
    told = f"{num_requests} requests, {kind}, {rate_rps:.4g} a second ({why})"
    return Load(drawn, num_requests, told, rate_rps, day_s)


def _rate(options: LoadOptions, scenario: Scenario, planned_rps: float, policy: str) -> tuple[float, str]:
    if options.rate_rps is not None:
        return options.rate_rps, "--rate"
    if options.load is None and scenario.arrival_rps is not None:
        if scenario.arrival_rps > MAX_RATE_RPS:
            raise BadLoad(f"workload.arrivals: more than {MAX_RATE_RPS:,.0f} requests a second cannot be simulated")
        return scenario.arrival_rps, "workload.arrivals"
    share = DEFAULT_LOAD if options.load is None else options.load
    return share * planned_rps, f"{share:g} of what {policy} is planned to serve"


def _of_trace(options: LoadOptions, path: Path, block_tokens: int) -> Load:
    requests = read_trace_file(path, f"--trace {path}", block_tokens)[: options.num_requests]
    if requests[-1].arrival_s <= requests[0].arrival_s:
        which = f"all {len(requests)}" if len(requests) > 1 else "only one"
        which = f"the first {len(requests)}" if len(requests) == options.num_requests else which
        remedy = "more --num-requests" if len(requests) == options.num_requests else "other times, in ms as `timestamp`"
        text = f"{which} requests come at one time, so that they have no rate; give {remedy}"
        raise BadLoad(f"--trace {path}: {text}")

    def begin(deployment: SimulatedDeployment, seed: int) -> Run:
        run = Run(deployment)
        run.simulation.follow(traced(requests, is_whole=bool(options.caches)))
        return run

    return Load(begin, len(requests), f"{len(requests)} requests of {path.name}, at its own times")


def trace_block_tokens(section_tokens: int | None) -> int:
    """Of the traces that Mooncake published, unless the file says another size."""
    return MOONCAKE_BLOCK_TOKENS if section_tokens is None else section_tokens


# What --arrivals says


def is_closed(text: str | None) -> bool:
    """Whether clients wait for their answers, so that no rate is given."""
    return text is not None and text.split()[:1] == ["clients"]


def arrival_process(text: str, rate_rps: float, lengths: DrawLength, output: int) -> tuple[Draw, str]:
    """What makes the arrivals of a seed, and its name. Raises BadLoad, also for `clients`."""
    words = text.split()
    if words == [POISSON]:
        return lambda rng: poisson(rng, rate_rps, lengths, output), "Poisson"
    if words[:1] == ["bursty"] and len(words) == 4:
        factor = _share(text, words[1].removesuffix("x"), 1.0, 1_000.0)
        burst_s, calm_s = (_seconds(text, word) for word in words[2:])
        return lambda rng: bursty(rng, rate_rps, factor, burst_s, calm_s, lengths, output), text
    if words[:1] == ["daily"] and len(words) == 3:
        lowest, day_s = _share(text, words[1], 0.0, 1.0), _seconds(text, words[2])
        return lambda rng: daily(rng, rate_rps, lowest, day_s, lengths, output), text
    raise BadLoad(f"--arrivals {text!r}: write {FORMS}")


def conversations(text: str) -> Conversations:
    """Of a text that `is_closed`. Raises BadLoad."""
    words = text.split()
    if len(words) % 2:
        raise BadLoad(f"--arrivals {text!r}: write {FORMS}")
    said = dict(zip(words[::2], words[1::2], strict=True))
    unknown = [word for word in said if word not in ("clients", "think", "turns", "shared")]
    if unknown:
        raise BadLoad(f"--arrivals {text!r}: nothing is known of `{unknown[0]}`; write {FORMS}")
    option = f"--arrivals {text!r}:"
    return Conversations(
        _number(option, text, said["clients"], lowest=1),
        0.0 if "think" not in said else _seconds(text, said["think"]),
        _number(option, text, said.get("turns", "1"), lowest=1),
        _number(option, text, said.get("shared", "0")),
    )


def _number(option: str, text: str, word: str, lowest: int = 0) -> int:
    try:
        number = int(word.replace("_", ""))
    except ValueError:
        number = -1
    if not lowest <= number <= _MOST:
        told = option if option.endswith(":") else f"{option} {text}:"
        raise BadLoad(f"{told} {word!r} is no whole number from {lowest} to {_MOST}; write for example 2000000")
    return number


def _share(text: str, word: str, lowest: float, highest: float) -> float:
    try:
        value = float(word)
    except ValueError:
        value = -1.0
    if not lowest <= value <= highest:
        raise BadLoad(f"--arrivals {text!r}: {word!r} is no number from {lowest:g} to {highest:g}; write {FORMS}")
    return value


def _seconds(text: str, word: str) -> float:
    try:
        seconds = parse_seconds(word)
    except ValueError as error:
        raise BadLoad(f"--arrivals {text!r}: {error}") from None
    if not seconds >= _SHORTEST_S:
        raise BadLoad(f"--arrivals {text!r}: {word} is shorter than a millisecond")
    return seconds
