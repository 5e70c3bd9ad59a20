"""What a fault does to processes of this machine, and how it is undone. Linux, no root: the processes are this user's.

Laws of this file:
- No signal goes to a process whose command line is not the one that `prfaas up` started under this number.
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

from prfaas.core.errors import PrfaasError
from prfaas.launch.state_file import ProcessState


class CannotHarm(PrfaasError):
    """A fault cannot be done now; the text says why."""


def check_is_itself(name: str, process: ProcessState) -> None:
    """Raises CannotHarm if the process has ended, or its number is another one's by now."""
    try:
        found = Path(f"/proc/{process.pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    except OSError:
        found = []
    if found != [os.fsencode(word) for word in process.argv]:
        raise CannotHarm(f"{name} does not run as process {process.pid} any more; is 'prfaas up' still there?")


def send(name: str, process: ProcessState, number: signal.Signals) -> None:
    """To the whole group, for an engine may have children. Raises CannotHarm."""
    check_is_itself(name, process)
    try:
        os.killpg(process.pid, number)
    except OSError as error:
        raise CannotHarm(f"{name}: no signal can be sent to process {process.pid}: {error.strerror}") from None


def group_of(leader: int) -> Iterator[int]:
    """Processes of the group that `leader` leads."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if os.getpgid(int(folder.name)) == leader:
                    yield int(folder.name)
            except OSError:
                continue


def refuse_writes(name: str, process: ProcessState) -> dict[int, tuple[int, int]]:
    """From now on its writes to files fail, as on a full disk, but with EFBIG (`File too large`) in place of ENOSPC;
    memory that is mapped already can be written. What the limits were, by process. Raises CannotHarm."""
    check_is_itself(name, process)
    before: dict[int, tuple[int, int]] = {}
    for pid in group_of(process.pid):
        try:
            limits = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, limits[1]))
        except ProcessLookupError:
            continue
        except OSError as error:
            allow_writes(before)
            raise CannotHarm(f"{name}: the limits of process {pid} cannot be changed: {error.strerror}") from None
        before[pid] = limits
    return before


def allow_writes(before: dict[int, tuple[int, int]]) -> None:
    """As they were; a process that has ended meanwhile needs nothing."""
    for pid, limits in before.items():
        try:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)
        except (ProcessLookupError, PermissionError):
            continue
