"""Questions about this machine's addresses that a plan depends on."""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import os
import secrets
import socket
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from prfaas.core.errors import PrfaasError
from prfaas.launch.plan import ProcessSpec

#: A Unix socket's path has at most 107 bytes; names below the directory take up to 70 (a node's name, or vLLM's UUIDs).
MAX_SOCKET_DIRECTORY_BYTES = 36
#: Ports are free when they are named and bound seconds later. So they are below those that Linux gives to outgoing
#: connections (32768 and up), and processes that ask at the same time name ports of different blocks.
_SINGLES: Final = range(10_000, 20_000)
_ROWS: Final = range(20_000, 30_000)
_PORTS_PER_BLOCK: Final = 500


class AddressTaken(PrfaasError):
    """Somebody else listens where a process of ours should; the text has every address."""


def is_here(host: str) -> bool:
    """Is `host` an address of this machine? A name that cannot be resolved is not."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return any(_bind_error(family, address[:2]) is None for family, _, _, _, address in found)


def refuse_taken(specs: Iterable[ProcessSpec]) -> None:
    """Raises AddressTaken if somebody else listens on an address that a process is about to bind.

    Without this an older deployment on the same ports would answer our health checks.
    """
    taken: list[str] = []
    for spec in specs:
        for listen in spec.listens:
            host, _, port = listen.rpartition(":")
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            if _bind_error(family, (host.strip("[]"), int(port))) == errno.EADDRINUSE:
                taken.append(f"{spec.name}: {listen}")
    if taken:
        them = "it, or change the address" if len(taken) == 1 else "them, or change the addresses"
        listed = "\n".join(f"{one} is in use by another process" for one in taken)
        raise AddressTaken(f"{listed}; stop {them} in the deployment file")


def make_socket_directory() -> Path:
    """A new private directory, short enough for Unix sockets even if TMPDIR is deep."""
    base = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="prfaas-", dir=base if len(base) < MAX_SOCKET_DIRECTORY_BYTES - 16 else "/tmp"))  # noqa: S108


def free_ports(num: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on now, and that no call of this process has named lately."""
    found: list[int] = []
    for port in itertools.islice(_singles(os.getpid()), len(_SINGLES)):
        if _are_free(port, 1):
            found.append(port)
            if len(found) == num:
                return found
    raise OSError(f"no {num} free ports on 127.0.0.1")


@functools.cache
def _singles(pid: int) -> Iterator[int]:
    """Single ports for ever, one block after the other, through all calls. A forked process has blocks of its own."""
    return itertools.chain.from_iterable(_claimed_blocks())


def _claimed_blocks() -> Iterator[range]:
    blocks = [_SINGLES[first : first + _PORTS_PER_BLOCK] for first in range(0, len(_SINGLES), _PORTS_PER_BLOCK)]
    secrets.SystemRandom().shuffle(blocks)
    claims: dict[range, socket.socket] = {}
    while True:
        for block in blocks:
            if block not in claims:
                try:
                    claims[block] = _claim(block)
                except OSError:
                    continue
            yield block
        if not claims:  # others have claimed them all
            yield from blocks


def _claim(block: range) -> socket.socket:
    """Claim a block until the socket is closed or the process ends. Raises OSError if somebody else has claimed it.

    A name of the abstract kind belongs to a network namespace, as ports do. Where there is none (not Linux), nothing is
    claimed and nobody is refused.
    """
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    if sys.platform == "linux":
        try:
            claim.bind(f"\0prfaas-ports-{block.start}")
        except OSError:
            claim.close()
            raise
    return claim


def free_ports_in_a_row(num: int) -> int:
    """The first of so many ports in a row. Where two ask before either listens, they are not likely to get the same."""
    rows = range(_ROWS.start, _ROWS.stop - num, num)
    for first in secrets.SystemRandom().sample(rows, len(rows)):
        if _are_free(first, num):
            return first
    raise OSError(f"no {num} free ports in a row on 127.0.0.1")


def _are_free(first: int, num: int) -> bool:
    # Without SO_REUSEADDR, which would let us have what is bound and not listened on yet: vLLM binds its port, loads
    # its model for half a minute, and if it then cannot listen, it waits for ever.
    with contextlib.ExitStack() as holders:
        for port in range(first, first + num):
            holder = holders.enter_context(socket.socket())
            try:
                holder.bind(("127.0.0.1", port))
            except OSError:
                return False
    return True


def _bind_error(family: int, address: object) -> int | None:
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)  # type: ignore[arg-type]
        except OSError as error:
            return error.errno
    return None
