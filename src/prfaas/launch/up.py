"""The `prfaas up` command: plan, start, show health, stay until told to stop."""

from __future__ import annotations

import importlib.util
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.live import Live

from prfaas.core.errors import PrfaasError
from prfaas.deployment.encryption import encryption_notes
from prfaas.deployment.load import DeploymentError, read_deployment, resolve_model_dir, serving_problems
from prfaas.deployment.model import Deployment
from prfaas.engines.kinds import launch_of
from prfaas.launch.addresses import is_here, make_socket_directory, refuse_taken
from prfaas.launch.certificates import make_throwaway, refuse_missing
from prfaas.launch.plan import PlanError, ProcessSpec, plan_processes, throwaway_directory
from prfaas.launch.status import Changes, health_table
from prfaas.launch.supervisor import Supervisor, describe_end
from prfaas.scenario.served_policy import planning_problems

#: vLLM compiles and loads for minutes on a small machine; real models take longer still.
START_TIMEOUT_S = 1800.0
PROBE_INTERVAL_S = 1.0


class Stopped(KeyboardInterrupt):
    """SIGTERM: end as on Ctrl-C."""


def stop_on_sigterm() -> None:
    """Make SIGTERM unwind the stack, so that `with Supervisor` ends the children."""

    def raise_stopped(number: int, frame: FrameType | None) -> None:
        raise Stopped

    signal.signal(signal.SIGTERM, raise_stopped)


def start_all(supervisor: Supervisor, specs: list[ProcessSpec], console: Console) -> Changes:
    """Start everything and wait for health; returns what was told. Raises PlanError, ProcessDied or NotHealthy."""
    refuse_missing(specs)
    refuse_taken(specs)
    console.print(f"starting {len(specs)} processes; logs are in {supervisor.logs}", highlight=False)
    supervisor.start(specs)
    changes = Changes(console)
    supervisor.wait_healthy(START_TIMEOUT_S, on_tick=changes.tick)
    return changes


def run(file: Path, logs: Path, *, sockets: Path | None = None, with_gateway: bool = True) -> int:
    """Start what `file` describes on this machine and stay. Unix sockets go to `sockets`, so that engines which run
    already find them, or else to a new temporary directory. Returns 0 after SIGTERM, or 1 if a process had ended
    on its own before; 130 after Ctrl-C; 1 if something could not start or everything ended on its own; 2 if the file
    cannot be used."""
    console = Console(file=sys.stderr)
    stop_on_sigterm()
    temporary = make_socket_directory()
    supervisor = Supervisor(logs)
    try:
        deployment = _load(file, with_gateway=with_gateway)
        model_dir = resolve_model_dir(deployment, file)
        directory = temporary if sockets is None else sockets.resolve()
        # Never in a folder that stays: these keys end with the nodes.
        certs = throwaway_directory(temporary)
        specs = plan_processes(
            deployment, file.resolve(), model_dir, directory, certs=certs, is_here=is_here, with_gateway=with_gateway
        )
        _refuse_without_engines(deployment, specs)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(spec.reads for spec in specs):
            _tell(console, make_throwaway(deployment, certs))
        elif any(spec.name.startswith("kvnode-") for spec in specs):
            _tell(console, *encryption_notes(deployment))
        with supervisor:
            try:
                return _serve(supervisor, specs, console)
            except KeyboardInterrupt:
                # What ended before we were told to stop ended on its own.
                _tell_ended(supervisor, console)
                raise
    except Stopped:
        return _stopped(console, 1 if supervisor.num_deaths else 0)
    except KeyboardInterrupt:
        return _stopped(console, 130)
    except (PrfaasError, OSError) as error:
        console.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        return 2 if isinstance(error, (DeploymentError, PlanError)) else 1
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _load(file: Path, *, with_gateway: bool) -> Deployment:
    """Also what the gateway's plan needs, so that nothing is started before it is known to be there."""
    deployment, document = read_deployment(file)
    problems = serving_problems(deployment, document)
    if with_gateway:
        problems += planning_problems(deployment, document)
    if problems:
        raise DeploymentError("\n".join(problems))
    return deployment


def _stopped(console: Console, status: int) -> int:
    console.print("every process is stopped")
    return status


def _tell(console: Console, *sentences: str | None) -> None:
    for sentence in filter(None, sentences):
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)


def _refuse_without_engines(deployment: Deployment, specs: list[ProcessSpec]) -> None:
    if not any(spec.name.startswith(("engine-", "engines-")) for spec in specs):
        return
    for kind in sorted({cluster.engine.kind for cluster in deployment.clusters.values() if cluster.engine}):
        launch = launch_of(kind)
        if importlib.util.find_spec(launch.package) is None:
            text = f"{launch.product} is not installed in this Python, and the file has `engine:` sections"
            raise PlanError(f"{text}; install {launch.product} here, or remove them and start the engines yourself")


def _serve(supervisor: Supervisor, specs: list[ProcessSpec], console: Console) -> int:
    changes = start_all(supervisor, specs, console)
    if specs[-1].name == "gateway":
        url = specs[-1].health_url.rpartition("/")[0]
        console.print(f"ready: {url}/v1 (Ctrl-C stops everything)", highlight=False)
    if console.is_terminal:
        with Live(health_table(supervisor), console=console, auto_refresh=False) as live:
            return _watch(supervisor, console, lambda: live.update(health_table(supervisor), refresh=True))
    console.print(health_table(supervisor))
    return _watch(supervisor, console, lambda: changes.tick(supervisor))


def _watch(supervisor: Supervisor, console: Console, show: Callable[[], None]) -> int:
    while True:
        _tell_ended(supervisor, console)
        # Not "none is alive": the last one may have ended since, and would never be told.
        if all(running.ended_told for running in supervisor.processes.values()):
            console.print("every process has ended on its own", style="red")
            return 1
        supervisor.probe()
        show()
        time.sleep(PROBE_INTERVAL_S)


def _tell_ended(supervisor: Supervisor, console: Console) -> None:
    for running in supervisor.newly_ended():
        console.print(describe_end(running), style="red", markup=False, highlight=False, soft_wrap=True)
        console.print("it is not restarted; requests use what is left", style="red")
