"""`prfaas`: options in, exit status out. 0 fine, 1 something failed, 2 bad input, 130 interrupted."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from prfaas import __version__
from prfaas.cli.bench import bench_app
from prfaas.cli.chaos import chaos
from prfaas.cli.entry import main as main  # console scripts that were installed before look for it here

app = typer.Typer(
    name="prfaas",
    help="Serve large language models across datacenters.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
config_app = typer.Typer(help="Work with deployment files.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(config_app, name="config")
certs_app = typer.Typer(help="Make and look at certificates of KV nodes.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(certs_app, name="certs")
app.add_typer(bench_app, name="bench")
app.command()(chaos)

File = Annotated[Path, typer.Argument(help="Deployment file (YAML).", show_default=False)]
CertsFolder = Annotated[Path, typer.Option("--dir", help="Folder of the authority and of what it issues.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"prfaas {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Serve large language models across datacenters."""


@app.command()
def gateway(file: File) -> None:
    """Serve the OpenAI API of a deployment."""
    _log("INFO")
    from prfaas.core.errors import PrfaasError
    from prfaas.gateway.server import run

    try:
        run(file)
    except (PrfaasError, ValueError) as error:
        _refuse(str(error))
    except OSError as error:
        typer.echo(f"the gateway cannot start: {error}", err=True)
        raise typer.Exit(1) from None


@app.command()
def emulate(
    file: File,
    sockets: Annotated[
        Path, typer.Option(metavar="DIR", help="Where the nodes beside the engines have their sockets, NAME.sock.")
    ],
    name: Annotated[
        list[str] | None, typer.Option(metavar="INSTANCE", help="Only this instance; repeat. Default: all emulated.")
    ] = None,
) -> None:
    """Serve engines without a model: real KVCache bytes, time from the hardware profile."""
    _log("INFO")
    from prfaas.deployment.document import DeploymentError
    from prfaas.deployment.load import read_deployment, resolve_model_dir, serving_problems
    from prfaas.engines.emulated.configure import emulated_of
    from prfaas.engines.emulated.server import run

    try:
        deployment, document = read_deployment(file)
        problems = serving_problems(deployment, document)
        if problems:
            _refuse("\n".join(problems))
        emulated = emulated_of(deployment, document, resolve_model_dir(deployment, file), sockets, name or [])
    except DeploymentError as error:
        _refuse(str(error))
    raise typer.Exit(run(emulated))


@app.command()
def kvnode(
    name: Annotated[str, typer.Option(help="This node's name, as peers and the gateway know it.")],
    socket: Annotated[str, typer.Option(metavar="PATH", help="Unix socket for the engine beside this node.")],
    file: Annotated[
        Path | None, typer.Argument(help="Deployment file (YAML) that has the node; options override it.")
    ] = None,
    http: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Control and /metrics; keep it private.")
    ] = None,
    lanes: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Where other nodes' lanes arrive.")] = None,
    arena: Annotated[str | None, typer.Option(metavar="SIZE", help="Shared memory for KV, e.g. 4GiB.")] = None,
    peer: Annotated[list[str] | None, typer.Option(metavar="NAME=HOST:PORT", help="A node to send to; repeat.")] = None,
    num_lanes: Annotated[int | None, typer.Option(min=1, max=64, help="TCP connections per peer, at first.")] = None,
    max_lanes: Annotated[
        int | None, typer.Option(min=1, max=64, help="Most; opened if fewer cannot fill the link.")
    ] = None,
    chunk: Annotated[str | None, typer.Option(metavar="SIZE", help="Largest piece sent at once.")] = None,
    congestion: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="TCP congestion control of outgoing lanes; auto: BBR or cubic by trial."),
    ] = None,
    pacing: Annotated[
        bool | None, typer.Option("--pacing/--no-pacing", help="Hold the lanes of a link together to what it carries.")
    ] = None,
    hash_algorithm: Annotated[str | None, typer.Option(help="Block hash; both sides must agree.")] = None,
    hash_seed: Annotated[str | None, typer.Option(help="Seed of the block hash; both sides must agree.")] = None,
    tls_ca: Annotated[
        str | None, typer.Option(metavar="FILE", help="Authorities that peers' certificates come from (PEM).")
    ] = None,
    tls_cert: Annotated[str | None, typer.Option(metavar="FILE", help="This node's certificate (PEM).")] = None,
    tls_key: Annotated[str | None, typer.Option(metavar="FILE", help="Its private key (PEM).")] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Do not encrypt lanes; for private networks.")] = False,
    identity: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=IDENTITY", help="What a node's certificate must carry; repeat. Default: NAME less -INDEX."
        ),
    ] = None,
    log_level: Annotated[str, typer.Option(help="DEBUG, INFO, WARNING or ERROR.")] = "INFO",
) -> None:
    """Run one KV node: the arena and the lanes of one engine host. With FILE, its peers follow the file."""
    from prfaas.cli.node import NodeOptions, node_settings
    from prfaas.core.errors import PrfaasError

    options = NodeOptions(
        name=name, socket=socket, file=file, http=http, lanes=lanes, arena=arena, peers=peer, num_lanes=num_lanes,
        max_lanes=max_lanes, chunk=chunk, congestion=congestion, pacing=pacing, hash_algorithm=hash_algorithm,
        hash_seed=hash_seed, tls=(tls_ca, tls_cert, tls_key), plain=plain, identities=identity,
    )  # fmt: skip
    try:
        config, source = node_settings(options)
        _log(log_level)
    except (PrfaasError, ValueError) as error:
        _refuse(str(error))
    from prfaas.kvnode.server import run

    raise typer.Exit(run(config) if source is None else run(config, source))


@app.command()
def up(
    file: File,
    logs: Annotated[Path, typer.Option(help="Folder for one log per process.")] = Path("prfaas-logs"),
    sockets: Annotated[
        Path | None, typer.Option(help="Folder for the nodes' Unix sockets (NAME.sock); temporary if not given.")
    ] = None,
    with_gateway: Annotated[bool, typer.Option("--gateway/--no-gateway", help="Start the gateway too.")] = True,
    restarts: Annotated[bool, typer.Option("--restart", help="Start again what ends on its own.")] = False,
) -> None:
    """Start every process that a deployment file describes on this machine; Ctrl-C stops them all."""
    from prfaas.launch.up import run

    raise typer.Exit(run(file, logs, sockets=sockets, with_gateway=with_gateway, restarts=restarts))


@app.command()
def wan(
    file: File,
    control: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Of its HTTP control; default: one port below the lowest front."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of stalls and jitter.")] = 0,
) -> None:
    """Emulate the links of a deployment file that have `emulated_at`: their lanes pass through this process."""
    _log("INFO")
    from prfaas.cli.arguments import host_port
    from prfaas.core.errors import PrfaasError
    from prfaas.wan.command import run

    try:
        status = run(file, None if control is None else host_port("--control", control), seed)
    except PrfaasError as error:
        _refuse(str(error))
    raise typer.Exit(status)


@app.command()
def link(
    file: File,
    source: Annotated[str | None, typer.Argument(metavar="[FROM", help="Cluster.", show_default=False)] = None,
    target: Annotated[str | None, typer.Argument(metavar="TO", help="Cluster.", show_default=False)] = None,
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="SETTING=VALUE...]", help="bandwidth=10Gbps, cut=silent, …", show_default=False),
    ] = None,
    control: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Of `prfaas wan`; default: as the file says.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Show the links that a running `prfaas wan` emulates, or change one."""
    from prfaas.cli.link import run

    raise typer.Exit(run(file, (source, target), settings or [], control, as_json=as_json))


@app.command()
def plan(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Deployment files (YAML).", show_default=False)
    ],
    compare: Annotated[
        bool, typer.Option("--compare", help="Print several plans side by side; ratios are to the first.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the search into a .png, .svg or .html.")
    ] = None,
    expected: Annotated[
        bool,
        typer.Option("--expected", help="Use expected service times, not those at mean lengths as the paper does."),
    ] = False,
) -> None:
    """Find the threshold and the split of instances that serve most, what holds them, and what they cost."""
    from prfaas.core.planning.scenario import ServiceTime
    from prfaas.planner.command import PlanOptions, run

    service_time = ServiceTime.EXPECTED if expected else ServiceTime.AT_MEAN
    raise typer.Exit(run(PlanOptions(tuple(files), compare, as_json, plot, service_time)))


@app.command()
def simulate(
    file: Annotated[Path, typer.Argument(help="Deployment file (YAML).", show_default=False)],
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help="Policy in place of the file's; several are compared under the same requests, `all` with all others."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=10_000, help="Runs with different requests.")] = 1,
    first_seed: Annotated[int, typer.Option(min=0, help="The first of them.")] = 0,
    num_requests: Annotated[
        int | None, typer.Option(min=10, max=10_000_000, help="Requests of a run; default 5000, or the whole trace.")
    ] = None,
    rate: Annotated[float | None, typer.Option(min=1e-6, help="Requests a second, in place of the file's.")] = None,
    load: Annotated[
        float | None, typer.Option(min=0.01, max=10, help="The rate as a share of the planned one.")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Requests of a trace (Mooncake's format), at its times.")
    ] = None,
    arrivals: Annotated[
        str | None,
        typer.Option(
            metavar="HOW",
            help="`bursty 5x 30s 300s`, `daily 0.2 24h`, or conversations: `clients 64 think 10s turns 5 shared 2000`.",
        ),
    ] = None,
    cache: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TOKENS", help="What an instance's prefix cache keeps; repeated: `500000`, `prfaas-west=2000000`."
        ),
    ] = None,
    fetch: Annotated[
        bool, typer.Option("--fetch", help="Let instances fetch cached prefixes from each other; nodes cannot yet.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    requests: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a JSON line for each request.")] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw what happened over time into a .svg or .png.")
    ] = None,
    chrome_trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write every prefill, transfer and answer as a .json for ui.perfetto.dev."),
    ] = None,
    hindsight: Annotated[
        int, typer.Option(min=0, max=100_000, help="Try so many requests of a run on every way that they had.")
    ] = 0,
    at: Annotated[
        list[str] | None,
        typer.Option(
            "--at",
            metavar="WHAT",
            help="What happens when, repeated: `300s link prfaas-west pd-east 10Gbps`, `300s die prfaas-west-0`.",
        ),
    ] = None,
) -> None:
    """Run a deployment under a load in simulated time, through the scheduler that the gateway runs."""
    from prfaas.simulator.command import SimulateOptions, run
    from prfaas.simulator.loads import LoadOptions

    asked = LoadOptions(num_requests, rate, load, trace, arrivals, tuple(cache or ()), fetch)
    options = SimulateOptions(
        file, tuple(policy or ()), seeds, first_seed, asked, as_json, requests, tuple(at or ()), plot,
        chrome_trace, hindsight,
    )  # fmt: skip
    raise typer.Exit(run(options))


@app.command()
def record(
    gateway: Annotated[str, typer.Argument(metavar="URL", help="The gateway's base URL.", show_default=False)],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the trace is written.", show_default=False)],
    follow: Annotated[bool, typer.Option("--follow", help="Go on as requests come, until Ctrl-C.")] = False,
) -> None:
    """Write a gateway's requests as a trace: lengths, times and salted hashes of prefixes, no text."""
    from prfaas.recorder.command import RecordOptions, run

    raise typer.Exit(run(RecordOptions(gateway, out, follow)))


@app.command()
def profile(
    url: Annotated[str, typer.Argument(help="Base URL of an OpenAI-compatible server.", show_default=False)],
    out: Annotated[Path, typer.Option(help="File to write.")],
    model: Annotated[str | None, typer.Option(help="Model to ask for; needed if the server has several.")] = None,
    accelerator: Annotated[str, typer.Option(help="What it runs on, e.g. h200; prices refer to it.")] = "unknown",
    gpus_per_instance: Annotated[int, typer.Option(min=1, max=1024, help="Accelerators behind the URL.")] = 8,
    min_tokens: Annotated[int, typer.Option(min=1, help="Shortest prompt.")] = 128,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest prompt; default: what the model takes.")
    ] = None,
    num_lengths: Annotated[int, typer.Option(min=2, max=64, help="Prompt lengths, on a log grid.")] = 8,
    repeats: Annotated[int, typer.Option(min=1, max=100, help="Counted measurements of each; one more warms up.")] = 3,
    decode_batches: Annotated[str, typer.Option(help="Sequences decoded at once.")] = "1,2,4,8,16",
    decode_tokens: Annotated[int, typer.Option(min=4, max=65536, help="Output tokens of each of them.")] = 64,
    decode_context: Annotated[int, typer.Option(min=1, help="Their prompt's tokens.")] = 1024,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that one answer may take.")] = 600.0,
    seed: Annotated[int, typer.Option(help="Of the order of lengths; prompts are always new.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Measure how fast a live server prefills and decodes, and write a hardware profile for `plan`."""
    from prfaas.cli.arguments import BadArgument, whole_numbers
    from prfaas.profiles.measure.command import ProfileOptions, run

    try:
        batches = whole_numbers("--decode-batches", decode_batches)
    except BadArgument as error:
        _refuse(str(error))
    options = ProfileOptions(
        url, out, model, accelerator, gpus_per_instance, min_tokens, max_tokens, num_lengths, repeats, batches,
        decode_tokens, decode_context, timeout, seed, overwrite,
    )  # fmt: skip
    raise typer.Exit(run(options))


@app.command()
def demo(
    engine: Annotated[
        str, typer.Option(metavar="ENGINE", help="emulated: 96 GPUs of the paper; vllm: a tiny model on this machine.")
    ] = "emulated",
    directory: Annotated[Path, typer.Option(help="Folder for models, logs and the deployment file.")] = Path(".demo"),
) -> None:
    """Run two datacenters on this machine, send real requests, show how they were served, and prove it."""
    from prfaas.demo.command import run

    if engine not in ("emulated", "vllm"):
        _refuse(f"--engine {engine}: there is emulated, which needs nothing else, and vllm")
    raise typer.Exit(run(directory, "vllm" if engine == "vllm" else "emulated"))


@app.command()
def doctor() -> None:
    """Check that this machine can run PrfaaS, and say what is missing."""
    from prfaas.cli.doctor import run

    raise typer.Exit(run())


@config_app.command()
def check(file: File) -> None:
    """Check a deployment file; every problem is told with its line."""
    from prfaas.deployment.encryption import encryption_notes
    from prfaas.deployment.load import DeploymentError, read_deployment, serving_problems
    from prfaas.scenario.served_policy import planning_problems

    try:
        deployment, document = read_deployment(file)
    except DeploymentError as error:
        _refuse(str(error))
    missing = [*serving_problems(deployment, document), *planning_problems(deployment, document)]
    if missing and deployment.workload is None:
        _refuse("\n".join(missing))
    clusters = ", ".join(f"{name} ({cluster.role})" for name, cluster in deployment.clusters.items())
    typer.echo(f"{file}: fine; clusters {clusters}")
    if missing:
        typer.echo("for planning only; to serve it:\n" + "\n".join(missing))
    for note in encryption_notes(deployment):
        typer.echo(f"{file}: {note}", err=True)


@certs_app.command("init")
def certs_init(
    directory: CertsFolder = Path("certs"),
    days: Annotated[int, typer.Option(min=1, max=36_500, help="How long it is valid.")] = 3650,
) -> None:
    """Make a certificate authority: ca.pem, and its private key ca.key."""
    from prfaas.certs.command import run_init

    raise typer.Exit(run_init(directory, days))


@certs_app.command("issue")
def certs_issue(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="DNS names, usually clusters.", show_default=False)
    ] = None,
    deployment: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Instead of names: every cluster of this deployment file.")
    ] = None,
    directory: CertsFolder = Path("certs"),
    uri: Annotated[str | None, typer.Option(help="Certify this URI, not the name; for one name.")] = None,
    days: Annotated[int, typer.Option(min=1, max=36_500, help="How long they are valid.")] = 365,
) -> None:
    """Issue certificates, NAME.pem and NAME.key each; what is there is replaced."""
    from prfaas.certs.command import run_issue

    raise typer.Exit(run_issue(names or [], deployment, uri, directory, days))


@certs_app.command("show")
def certs_show(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="PEM files.", show_default=False)],
) -> None:
    """Show whose certificates files hold, who issued them, and how long they are valid."""
    from prfaas.certs.command import run_show

    raise typer.Exit(run_show(files))


def _refuse(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(2)


def _log(level: str) -> None:
    logging.basicConfig(
        level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
