"""`prfaas bench`: options in, exit status out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import typer

bench_app = typer.Typer(
    help="Measure a server under load, or this machine.", no_args_is_help=True, rich_markup_mode=None
)

Url = Annotated[str, typer.Argument(help="Base URL of an OpenAI-compatible server.", show_default=False)]
Model = Annotated[str | None, typer.Option(help="Model to ask for; default: the only one that the server has.")]
DeploymentFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Lengths and rate as this file's workload; as `prfaas simulate`.")
]
TraceFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Requests of a trace (Mooncake's format), at its times.")
]
InputTokens = Annotated[int | None, typer.Option(min=1, max=1 << 27, help="Tokens of every prompt.")]
OutputTokens = Annotated[int | None, typer.Option(min=1, max=1 << 27, help="Tokens of every answer; default 128.")]
BlockTokens = Annotated[int | None, typer.Option(min=1, max=1 << 20, help="Tokens of a trace's block; default 512.")]
Rate = Annotated[float | None, typer.Option(min=1e-6, help="Requests a second, in place of the file's.")]
Arrivals = Annotated[
    str | None,
    typer.Option(
        metavar="HOW",
        help="`bursty 5x 30s 300s`, `daily 0.2 24h`, or conversations: `clients 64 think 10s turns 5 shared 2000`.",
    ),
]
ScaleTime = Annotated[
    float | None, typer.Option(min=1e-6, max=1e6, help="Multiply all times of requests; 0.5 is twice as fast.")
]
NumRequests = Annotated[
    int | None, typer.Option(min=1, max=10_000_000, help="Requests to send; default 1000, or the whole trace.")
]
Duration = Annotated[str | None, typer.Option(metavar="TIME", help="Send for so long, e.g. 60s.")]
WarmUp = Annotated[
    int | None, typer.Option("--warm-up", min=0, help="First requests that are not counted; default: a tenth.")
]
Seed = Annotated[int, typer.Option(min=0, help="Of lengths and times.")]
PromptSeed = Annotated[
    int | None, typer.Option(min=0, help="Of what prompts say; default: new, so that no cache knows them.")
]
TokenIds = Annotated[str, typer.Option(metavar="FIRST-LAST", help="Ids that random prompts are made of.")]
EndpointName = Annotated[str, typer.Option(metavar="NAME", help="`completions` (token ids) or `chat` (text).")]
IgnoreEos = Annotated[bool, typer.Option("--ignore-eos/--no-ignore-eos", help="Ask for answers of full length.")]
SloTtft = Annotated[str | None, typer.Option(metavar="TIME", help="Longest time to a good answer's first token.")]
SloTpot = Annotated[
    str | None, typer.Option(metavar="TIME", help="Longest time for each further token; default: the file's.")
]
Timeout = Annotated[str, typer.Option(metavar="TIME", help="Longest that an answer may take.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Plot = Annotated[Path | None, typer.Option(metavar="FILE", help="Draw times and distributions into a .svg or .png.")]
RequestsFile = Annotated[Path | None, typer.Option(metavar="FILE", help="Write a JSON line for each request.")]
Answers = Annotated[bool, typer.Option("--answers", help="Write the answers' text into --requests too.")]


@bench_app.command("e2e")
def bench_e2e(
    url: Url,
    model: Model = None,
    deployment: DeploymentFile = None,
    trace: TraceFile = None,
    input_tokens: InputTokens = None,
    output_tokens: OutputTokens = None,
    block_tokens: BlockTokens = None,
    rate: Rate = None,
    arrivals: Arrivals = None,
    scale_time: ScaleTime = None,
    num_requests: NumRequests = None,
    duration: Duration = None,
    warm_up: WarmUp = None,
    seed: Seed = 0,
    prompt_seed: PromptSeed = None,
    token_ids: TokenIds = "10-249",  # noqa: S107 - no secret
    endpoint: EndpointName = "completions",
    ignore_eos: IgnoreEos = True,
    slo_ttft: SloTtft = None,
    slo_tpot: SloTpot = None,
    timeout: Timeout = "600s",
    as_json: AsJson = False,
    plot: Plot = None,
    requests: RequestsFile = None,
    answers: Answers = False,
) -> None:
    """Send a load to an OpenAI-compatible server, each request at its own time, and tell what its clients wait for."""
    from prfaas.bench.e2e.command import run
    from prfaas.bench.e2e.options import E2eOptions, endpoint_name, token_id_range
    from prfaas.cli.arguments import seconds
    from prfaas.core.errors import PrfaasError

    try:
        options = E2eOptions(
            url, model, deployment, trace, input_tokens, output_tokens, block_tokens, rate, arrivals, scale_time,
            num_requests, seconds("--duration", duration), warm_up, seed, prompt_seed, token_id_range(token_ids),
            endpoint_name(endpoint), ignore_eos, seconds("--slo-ttft", slo_ttft), seconds("--slo-tpot", slo_tpot),
            seconds("--timeout", timeout) or 0.0, as_json, plot, requests, answers,
        )  # fmt: skip
    except PrfaasError as error:
        _refuse(str(error))
    raise typer.Exit(run(options))


@bench_app.command("transport")
def bench_transport(
    size: Annotated[str, typer.Option(metavar="SIZE", help="Bytes of one image.")] = "512MiB",
    layers: Annotated[int, typer.Option(min=1, max=4096, help="Pieces that it is staged in.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="Moves of each kind, after one to warm up.")] = 5,
    lanes: Annotated[int | None, typer.Option(min=1, max=64, help="TCP connections; default as a node's.")] = None,
    encrypted: Annotated[bool, typer.Option("--encrypted/--no-encrypted", help="Measure encrypted lanes.")] = True,
    plain: Annotated[bool, typer.Option("--plain/--no-plain", help="Measure plain lanes.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Move images between two KV nodes on this machine, and tell rate and CPU."""
    from prfaas.bench.command import TransportBench, run
    from prfaas.cli.arguments import BadArgument
    from prfaas.cli.arguments import size as parse_size

    modes = (("encrypted",) if encrypted else ()) + (("plain",) if plain else ())
    if not modes:
        _refuse("--no-encrypted with --no-plain leaves nothing to measure")
    try:
        num_bytes = parse_size("--size", size, 1 << 20, 1 << 40)
    except BadArgument as error:
        _refuse(str(error))
    raise typer.Exit(run(TransportBench(num_bytes, layers, rounds, modes, lanes), as_json=as_json))


def _refuse(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(2)
