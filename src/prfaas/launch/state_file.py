"""`processes.json` in the logs folder: which processes a running `prfaas up` has, for other commands on the machine."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from prfaas.core.errors import PrfaasError
from prfaas.launch.supervisor import Supervisor
from prfaas.whole_file import written_whole

STATE_FILE: Final = "processes.json"


class NotUp(PrfaasError):
    """No `prfaas up` of this deployment runs here; the text says where it was looked for."""


class ProcessState(msgspec.Struct, frozen=True):
    """One process; it leads the process group of its number. `argv` tells it from another one that has its number by
    now. `health_url` answers 200 when it is ready."""

    pid: int
    argv: tuple[str, ...]
    health_url: str


class UpState(msgspec.Struct, frozen=True):
    """`supervisor`: the process id of `prfaas up`. `restarts`: it starts again what ends on its own."""

    deployment: str
    supervisor: int
    restarts: bool
    processes: dict[str, ProcessState]


def write_state(supervisor: Supervisor, deployment: Path, pid: int, *, restarts: bool) -> None:
    """As it is now. Raises OSError or CannotWrite."""
    processes = {
        name: ProcessState(running.pid, running.spec.argv, running.spec.health_url)
        for name, running in supervisor.processes.items()
    }
    state = UpState(str(deployment), pid, restarts, processes)
    with written_whole(supervisor.logs / STATE_FILE) as file:
        file.write(msgspec.json.format(msgspec.json.encode(state), indent=1) + b"\n")


def remove_state(logs: Path) -> None:
    """Nothing runs any more."""
    (logs / STATE_FILE).unlink(missing_ok=True)


def read_state(logs: Path, deployment: Path) -> UpState:
    """Of `deployment`, whose `prfaas up` has its logs in `logs`. Raises NotUp."""
    path = logs / STATE_FILE
    try:
        state = msgspec.json.decode(path.read_bytes(), type=UpState)
    except FileNotFoundError:
        raise NotUp(f"there is no {path}: start the deployment with 'prfaas up', or say where its --logs are") from None
    except (OSError, msgspec.DecodeError) as error:
        raise NotUp(f"{path} cannot be read: {error}; start 'prfaas up' again") from None
    if state.deployment != str(deployment.resolve()):
        raise NotUp(f"{path} is of {state.deployment}, not of {deployment}; say with --logs where its logs are")
    if not Path(f"/proc/{state.supervisor}").exists():
        raise NotUp(f"{path} is of a 'prfaas up' that has ended; start it again")
    return state
