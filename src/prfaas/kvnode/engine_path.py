"""The path of the Unix socket for engines: taken without harm to anybody else's file, and given back.

Laws of this file:
- Nothing is removed but a socket on which nobody answers any more, and at the end our own.
- Of two nodes that start at once with one path, one gets it: who looks and replaces holds the folder's lock.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from typing import Final

#: A process on this machine that lives takes a connection at once; one whose queue is full lives too.
ANSWER_S: Final = 1.0


class EnginePath:
    """A listening Unix socket at `path`, for this user only. Raises OSError with what stands in the way."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _folder_locked(path):
                _remove_stale(path)
                mask = os.umask(0o177)
                try:
                    self.listener.bind(path)
                finally:
                    os.umask(mask)
                self._file = _file_at(path)
                self.listener.listen(128)
        except OSError as error:
            self.listener.close()
            if isinstance(error, _InTheWay):
                raise
            raise OSError(error.errno, f"--socket {path}: {error.strerror}") from None

    def close(self) -> None:
        """Stop listening, and remove the path if it still is ours."""
        self.listener.close()
        with contextlib.suppress(OSError), _folder_locked(self.path):
            if _file_at(self.path) == self._file:
                os.unlink(self.path)


class _InTheWay(OSError):
    """Something is at the path that is not ours to remove."""


@contextlib.contextmanager
def _folder_locked(path: str) -> Iterator[None]:
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _file_at(path: str) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino


def _remove_stale(path: str) -> None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise _InTheWay(f"--socket {path}: there is a file that is not a socket; remove it, or choose another path")
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with probe:
        probe.settimeout(ANSWER_S)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except PermissionError:
            raise _InTheWay(f"--socket {path}: there is a socket of another user; choose another path") from None
        except OSError as error:
            if error.errno not in (None, errno.EAGAIN, errno.EPROTOTYPE):  # None: a timeout
                raise
    raise _InTheWay(
        f"--socket {path}: another process listens there, perhaps another KV node; stop it, or choose another path"
    )
