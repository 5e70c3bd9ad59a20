"""What the command line asks for, checked before anything is sent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, cast

from prfaas.core.errors import PrfaasError
from prfaas.profiles.measure.options import check_url
from prfaas.profiles.measure.prompts import END_TOKEN_ID, FIRST_TOKEN_ID
from prfaas.simulator.loads import is_closed
from prfaas.simulator.watched import check_outputs

Endpoint = Literal["completions", "chat"]

DEFAULT_OUTPUT_TOKENS: Final = 128
#: Requests, unless the command line, a duration or a trace says it.
DEFAULT_NUM_REQUESTS: Final = 1_000
#: First and last token id of random prompts, in every vocabulary.
DEFAULT_TOKEN_IDS: Final = (FIRST_TOKEN_ID, END_TOKEN_ID - 1)
DEFAULT_TIMEOUT_S: Final = 600.0


class BadBench(PrfaasError):
    """The command line asks for something that cannot be; the text says what to write instead."""


@dataclass(frozen=True, slots=True)
class E2eOptions:
    """As they stand on the command line. `prompt_seed` None: prompts that no earlier run has sent."""

    url: str
    model: str | None = None
    deployment: Path | None = None
    trace: Path | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    block_tokens: int | None = None
    rate_rps: float | None = None
    arrivals: str | None = None
    time_scale: float | None = None
    num_requests: int | None = None
    duration_s: float | None = None
    num_warm_up: int | None = None
    seed: int = 0
    prompt_seed: int | None = None
    token_ids: tuple[int, int] = DEFAULT_TOKEN_IDS
    endpoint: Endpoint = "completions"
    ignore_eos: bool = True
    slo_ttft_s: float | None = None
    slo_tpot_s: float | None = None
    timeout_s: float = DEFAULT_TIMEOUT_S
    as_json: bool = False
    plot: Path | None = None
    requests: Path | None = None
    keeps_answers: bool = False


def check_options(options: E2eOptions) -> None:
    """Raises BadBench, or what is raised for a bad URL or a file that cannot be written."""
    check_url(options.url)
    sources = (options.deployment, options.trace, options.input_tokens)
    if sum(source is not None for source in sources) != 1:
        raise BadBench("give one of --deployment, --trace and --input-tokens: whose lengths shall requests have?")
    if options.output_tokens is not None and options.input_tokens is None:
        raise BadBench("--output-tokens: the file says how long answers are; it goes with --input-tokens")
    if options.trace is None:
        _check_drawn(options)
    elif options.rate_rps is not None or options.arrivals is not None:
        raise BadBench("--trace: its requests come at its own times; in place of --rate and --arrivals, --scale-time")
    if options.keeps_answers and options.requests is None:
        raise BadBench("--answers: they are written into the file of --requests; name it too")
    check_outputs({"--requests": options.requests, "--plot": options.plot}, (options.deployment, options.trace))


def _check_drawn(options: E2eOptions) -> None:
    if options.block_tokens is not None:
        raise BadBench("--block-tokens: it is about the requests of a --trace")
    if is_closed(options.arrivals) and options.time_scale is not None:
        raise BadBench("--scale-time: clients ask when they are answered; say how long they think")
    if is_closed(options.arrivals) and options.rate_rps is not None:
        raise BadBench("--rate: how many requests clients send follows from how fast they are answered; leave it out")
    if options.input_tokens is not None and options.rate_rps is None and not is_closed(options.arrivals):
        raise BadBench("--input-tokens: how many requests a second shall come? add --rate")


def token_id_range(text: str) -> tuple[int, int]:
    """`10-249`, first and last. Raises BadBench."""
    first, dash, last = text.partition("-")
    if not dash or not (first.strip().isdecimal() and last.strip().isdecimal()) or len(text) > 20:
        raise BadBench(f"--token-ids: {text!r} is no range; write for example 10-249")
    if not int(first) < int(last) < 1 << 31:
        raise BadBench(f"--token-ids: {text!r} has fewer than two ids, or too large ones; write for example 10-249")
    return int(first), int(last)


def endpoint_name(text: str) -> Endpoint:
    """Raises BadBench."""
    if text in ("completions", "chat"):
        return cast(Endpoint, text)
    raise BadBench(f"--endpoint {text}: there is completions, which takes token ids, and chat, which takes text")
