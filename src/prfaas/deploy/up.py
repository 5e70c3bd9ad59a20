"""The `prfaas up` command: plan, start, show health, stay until told to stop."""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.table import Table

from prfaas.core.errors import PrfaasError
from prfaas.deploy.plan import ProcessSpec, plan_processes
from prfaas.deploy.supervisor import Supervisor, describe_end
from prfaas.deployment.load import load_deployment, resolve_model_dir

#: vLLM compiles and loads for minutes on a small machine; real models take longer still.
START_TIMEOUT_S = 1800.0


class Stopped(KeyboardInterrupt):
    """SIGTERM: end as on Ctrl-C."""


def stop_on_sigterm() -> None:
    """Make SIGTERM unwind the stack, so that `with Supervisor` ends the children."""

    def raise_stopped(number: int, frame: FrameType | None) -> None:
        raise Stopped

    signal.signal(signal.SIGTERM, raise_stopped)


def health_table(supervisor: Supervisor) -> Table:
    """One row per process."""
    table = Table(title="PrfaaS processes", title_justify="left")
    for column in ("process", "pid", "health", "address"):
        table.add_column(column, no_wrap=True)
    for name, running in supervisor.processes.items():
        state = "healthy" if running.healthy else "starting" if running.is_alive else f"ended ({running.popen.returncode})"
        address = running.spec.health_url.removesuffix("/health")
        table.add_row(name, str(running.pid), state, address)
    return table


class Progress:
    """Prints each change of health once: a terminal and a log file can both show it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started_s = time.monotonic()
        self._told: set[str] = set()

    def tick(self, supervisor: Supervisor) -> None:
        """Called while waiting."""
        for name, running in supervisor.processes.items():
            if running.healthy and name not in self._told:
                self._told.add(name)
                self._console.print(f"  {name} is up after {time.monotonic() - self._started_s:.0f} s", highlight=False)


def start_all(supervisor: Supervisor, specs: list[ProcessSpec], console: Console) -> None:
    """Start everything and wait for health. Raises ProcessDied or NotHealthy."""
    console.print(f"starting {len(specs)} processes; logs are in {supervisor.logs}", highlight=False)
    supervisor.start(specs)
    supervisor.wait_healthy(START_TIMEOUT_S, on_tick=Progress(console).tick)


def run(file: Path, logs: Path) -> int:
    """Returns 0 after Ctrl-C or SIGTERM, 1 if a process ended on its own, 2 for a bad file."""
    console = Console(file=sys.stderr)
    stop_on_sigterm()
    sockets = Path(tempfile.mkdtemp(prefix="prfaas-"))
    try:
        deployment = load_deployment(file)
        specs = plan_processes(deployment, file.resolve(), resolve_model_dir(deployment, file), sockets)
        with Supervisor(logs) as supervisor:
            return _serve(supervisor, specs, console)
    except KeyboardInterrupt:
        console.print("stopped")
        return 0
    except PrfaasError as error:
        console.print(str(error), style="red", markup=False, highlight=False)
        return 1 if not type(error).__name__.startswith("Deployment") else 2
    finally:
        shutil.rmtree(sockets, ignore_errors=True)


def _serve(supervisor: Supervisor, specs: list[ProcessSpec], console: Console) -> int:
    start_all(supervisor, specs, console)
    console.print(health_table(supervisor))
    console.print(f"ready: {specs[-1].health_url.removesuffix('/health')}/v1 (Ctrl-C stops everything)", highlight=False)
    status = 0
    while any(running.is_alive for running in supervisor.processes.values()):
        for running in supervisor.newly_ended():
            status = 1
            console.print(describe_end(running), style="red", markup=False, highlight=False)
            console.print("it is not restarted; requests use what is left", style="red")
        time.sleep(0.5)
    return status
