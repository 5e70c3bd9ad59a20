"""Files that a command writes under a folder that it was told or makes by itself, such as logs: only where nobody else
can have laid a trap.

A log's name is known beforehand. In a folder of somebody else it may be a link to a file of whoever runs the command,
which would be emptied.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO, Final

_WHY: Final = {errno.ELOOP: "a link", errno.ENXIO: "a pipe", errno.EISDIR: "a folder"}


def make_own_folder(folder: Path) -> None:
    """Make `folder` for this user only, unless it is there. Raises OSError if it belongs to somebody else."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.geteuid():
        raise OSError(
            f"{folder}/ belongs to another user, who could lead what is written there elsewhere; choose another"
        )


def open_own_file(path: Path, *, keeps: bool = False) -> BinaryIO:
    """A file to write, empty unless it `keeps` what it has, for this user only if it is new. Raises OSError if `path`
    is a link, or no plain file."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe must not be waited for
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        if error.errno not in _WHY:
            raise
        raise _trap(path, f"is {_WHY[error.errno]}") from None
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(descriptor)
        what = "has other names too" if stat.S_ISREG(found.st_mode) else "is no plain file"
        raise _trap(path, what)
    os.set_blocking(descriptor, True)
    if keeps:
        os.lseek(descriptor, 0, os.SEEK_END)
    else:
        os.ftruncate(descriptor, 0)
    return os.fdopen(descriptor, "wb")


def _trap(path: Path, what: str) -> OSError:
    return OSError(f"{path} {what} and is not written to; remove it, or choose another folder")
