"""The `prfaas up` command: plan, start, show health, stay until told to stop."""

from __future__ import annotations

import importlib.util
import os
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
from prfaas.launch.restarts import Restarts
from prfaas.launch.state_file import remove_state, write_state
from prfaas.launch.status import Changes, health_table
from prfaas.launch.supervisor import Supervisor, describe_end
from prfaas.scenario.served_policy import planning_problems

#: vLLM compiles and loads for minutes on a small machine; real models take longer still.
START_TIMEOUT_S = 1800.0
PROBE_INTERVAL_S = 1.0


class Stopped(KeyboardInterrupt):
    """SIGTERM, or the terminal has gone: end as on Ctrl-C."""


def stop_on_sigterm() -> None:
    """Make SIGTERM and SIGHUP unwind the stack, so that `with Supervisor` ends the children. Under nohup SIGHUP stays
    ignored."""

    terminals = [fd for fd in (1, 2) if os.isatty(fd)]

    def raise_stopped(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            # What is printed from now on would fail, and end the orderly stop.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for terminal in terminals:
                os.dup2(nowhere, terminal)
            os.close(nowhere)
        raise Stopped

    signal.signal(signal.SIGTERM, raise_stopped)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, raise_stopped)


def start_all(supervisor: Supervisor, specs: list[ProcessSpec], console: Console) -> Changes:
    """Start everything and wait for health; returns what was told. Raises PlanError, AddressTaken, ProcessDied or
    NotHealthy."""
    refuse_missing(specs)
    refuse_taken(specs)
    console.print(f"starting {len(specs)} processes; logs are in {supervisor.logs}", highlight=False)
    supervisor.start(specs)
    changes = Changes(console)
    supervisor.wait_healthy(START_TIMEOUT_S, on_tick=changes.tick)
    return changes


def run(
    file: Path, logs: Path, *, sockets: Path | None = None, with_gateway: bool = True, restarts: bool = False
) -> int:
    """Start what `file` describes on this machine and stay. Unix sockets go to `sockets`, so that engines which run
    already find them, or else to a new temporary directory. With `restarts`, what ends on its own is started again.
    Returns 0 after SIGTERM, or 1 if a process that had ended on its own was not started again; 130 after Ctrl-C; 1 if
    something could not start or everything ended on its own; 2 if the file cannot be used."""
    console = Console(file=sys.stderr)
    stop_on_sigterm()
    temporary = make_socket_directory()
    supervisor = Supervisor(logs, tell=lambda sentence: _tell(console, sentence))
    num_down = 0
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
            up = _Up(supervisor, file.resolve(), console, Restarts() if restarts else None)
            try:
                return up.serve(specs)
            except KeyboardInterrupt:
                # What ended before we were told to stop ended on its own.
                up.tell_ended()
                num_down = up.num_down
                raise
            finally:
                remove_state(logs)
    except Stopped:
        return _stopped(console, 1 if num_down else 0)
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


class _Up:
    """What runs, as long as it does."""

    def __init__(self, supervisor: Supervisor, file: Path, console: Console, restarts: Restarts | None) -> None:
        self._supervisor = supervisor
        self._file = file
        self._console = console
        self._restarts = restarts

    @property
    def num_down(self) -> int:
        """Processes that ended on their own and do not run again."""
        if self._restarts is None:
            return self._supervisor.num_deaths
        return sum(not running.is_alive for running in self._supervisor.processes.values())

    def serve(self, specs: list[ProcessSpec]) -> int:
        """Start, and stay. Returns 1 when everything has ended on its own."""
        console, supervisor = self._console, self._supervisor
        changes = start_all(supervisor, specs, console)
        self._started([spec.name for spec in specs])
        if specs[-1].name == "gateway":
            url = specs[-1].health_url.rpartition("/")[0]
            console.print(f"ready: {url}/v1 (Ctrl-C stops everything)", highlight=False)
        if console.is_terminal:
            with Live(health_table(supervisor), console=console, auto_refresh=False) as live:
                return self._watch(lambda: live.update(health_table(supervisor), refresh=True))
        console.print(health_table(supervisor))
        return self._watch(lambda: changes.tick(supervisor))

    def tell_ended(self) -> None:
        """Those that have ended since the last time."""
        for running in self._supervisor.newly_ended():
            text = describe_end(running)
            self._console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)
            then = "it is not restarted; requests use what is left"
            if self._restarts is not None:
                wait_s = self._restarts.ended(running.spec.name, time.monotonic())
                then = f"it is started again in {wait_s:g} s"
            self._console.print(then, style="red", highlight=False)

    def _watch(self, show: Callable[[], None]) -> int:
        supervisor = self._supervisor
        while True:
            self.tell_ended()
            self._restart()
            # Not "none is alive": the last one may have ended since, and would never be told.
            ended = all(running.ended_told for running in supervisor.processes.values())
            if ended and self._restarts is None:
                self._console.print("every process has ended on its own", style="red")
                return 1
            supervisor.probe()
            show()
            time.sleep(PROBE_INTERVAL_S)

    def _restart(self) -> None:
        if self._restarts is None:
            return
        due = self._restarts.due(time.monotonic())
        if due:
            self._supervisor.start([self._supervisor.processes[name].spec for name in due], keeps_logs=True)
            self._started(due)
            self._console.print(f"started again: {', '.join(due)}", highlight=False)

    def _started(self, names: list[str]) -> None:
        restarts, now_s = self._restarts, time.monotonic()
        if restarts is not None:
            for name in names:
                restarts.started(name, now_s)
        write_state(self._supervisor, self._file, os.getpid(), restarts=restarts is not None)
