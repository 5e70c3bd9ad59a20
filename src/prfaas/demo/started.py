"""A demo's deployment, running."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from prfaas.demo.requests import DemoFailed
from prfaas.deployment.load import resolve_model_dir
from prfaas.deployment.model import Deployment
from prfaas.launch.addresses import make_socket_directory
from prfaas.launch.certificates import make_throwaway
from prfaas.launch.plan import plan_processes, throwaway_directory
from prfaas.launch.supervisor import Supervisor, describe_end
from prfaas.launch.up import start_all


@contextmanager
def started(deployment: Deployment, file: Path, logs: Path, console: Console) -> Iterator[None]:
    """Every process of `file` is up within it, and ended after it. A DemoFailed also names what has died."""
    sockets = make_socket_directory()
    try:
        with Supervisor(logs) as supervisor:
            specs = plan_processes(deployment, file.resolve(), resolve_model_dir(deployment, file), sockets)
            make_throwaway(deployment, throwaway_directory(sockets))
            start_all(supervisor, specs, console)
            try:
                yield
            except DemoFailed as error:
                # A process that died explains more than the request that noticed.
                causes = [describe_end(running) for running in supervisor.newly_ended()]
                raise DemoFailed("\n".join([str(error), *causes])) from error
    finally:
        shutil.rmtree(sockets, ignore_errors=True)
