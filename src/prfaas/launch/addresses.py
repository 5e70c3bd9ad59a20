"""Questions about this machine's addresses that a plan depends on."""

from __future__ import annotations

import errno
import secrets
import socket
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from prfaas.launch.plan import PlanError, ProcessSpec

#: A Unix socket's path has at most 107 bytes; names below the directory take up to 70 (a node's name, or vLLM's UUIDs).
MAX_SOCKET_DIRECTORY_BYTES = 36


def is_here(host: str) -> bool:
    """Is `host` an address of this machine? A name that cannot be resolved is not."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return any(_bind_error(family, address[:2]) is None for family, _, _, _, address in found)


def refuse_taken(specs: Iterable[ProcessSpec]) -> None:
    """Raises PlanError if somebody else listens on an address that a process is about to bind.

    Without this an older deployment on the same ports would answer our health checks.
    """
    for spec in specs:
        for listen in spec.listens:
            host, _, port = listen.rpartition(":")
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            if _bind_error(family, (host.strip("[]"), int(port))) == errno.EADDRINUSE:
                raise PlanError(f"{spec.name}: {listen} is in use by another process; stop it, or change the address")


def make_socket_directory() -> Path:
    """A new private directory, short enough for Unix sockets even if TMPDIR is deep."""
    base = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="prfaas-", dir=base if len(base) < MAX_SOCKET_DIRECTORY_BYTES - 16 else "/tmp"))  # noqa: S108


def free_ports(num: int) -> list[int]:
    """So many ports of 127.0.0.1 that nobody listens on now."""
    return _free_rows(num, range(10_000, 20_000), 1)


def free_ports_in_a_row(num: int) -> int:
    """The first of so many ports of 127.0.0.1 in a row that nobody listens on now."""
    return _free_rows(1, range(20_000, 30_000, num), num)[0]


def _free_rows(num: int, firsts: range, length: int) -> list[int]:
    """The first ports of `num` rows. All are below those that the system gives to connections, so that no connection
    takes one before somebody listens there. Where two ask at the same time they are not likely to get the same."""
    found: list[int] = []
    with ExitStack() as held:
        for first in secrets.SystemRandom().sample(firsts, len(firsts)):
            if len(found) == num:
                break
            with ExitStack() as row:
                try:
                    for index in range(length):
                        row.enter_context(socket.create_server(("127.0.0.1", first + index)))
                except OSError:
                    continue
                held.enter_context(row.pop_all())
            found.append(first)
    if len(found) < num:
        raise OSError(f"from {firsts.start} to {firsts.stop} 127.0.0.1 has no {num} times {length} free ports in a row")
    return found


def _bind_error(family: int, address: object) -> int | None:
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)  # type: ignore[arg-type]
        except OSError as error:
            return error.errno
    return None
