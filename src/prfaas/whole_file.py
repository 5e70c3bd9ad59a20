"""Files that appear whole or not at all."""

from __future__ import annotations

import io
import os
import signal
import stat
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, cast

from prfaas.core.errors import PrfaasError

if TYPE_CHECKING:
    from types import FrameType

#: Of the file's name in the temporary one's: with what is added, both fit the 255 bytes of a file system.
_MAX_NAME_BYTES: Final = 200
#: What ends a process by default, without any cleaning up: `kill`, `timeout`, a terminal that is closed.
_SIGNALS: Final = (signal.SIGTERM, signal.SIGHUP)


class CannotWrite(PrfaasError):
    """Something has gone wrong while a file was written, such as a full disk; the text names the file."""


@contextmanager
def written_whole(path: Path) -> Iterator[IO[bytes]]:
    """What is written to it is at `path` afterwards, unless an error or a signal ends the block. A pipe or a device is
    written to at once. Raises OSError before the block where nothing can be written there, and CannotWrite from it."""
    if _is_special(path):
        with open_told(path) as file:
            yield file
        return
    out = path.resolve()
    name = os.fsdecode(os.fsencode(out.name)[:_MAX_NAME_BYTES])
    if len(os.fsencode(out.name)) > os.pathconf(out.parent, "PC_NAME_MAX"):
        os.stat(out)  # says that it is too long, before hours of work
    with _TEMPORARIES.made(out.parent, name) as (handle, temporary):
        with _told(handle, path) as file:
            yield file
        try:
            os.chmod(temporary, 0o644)
            os.replace(temporary, out)
        except OSError as error:
            raise CannotWrite(f"{path} cannot be written: {error.strerror or error}") from None


def open_told(path: Path, mode: str = "w") -> IO[bytes]:
    """A file whose writes raise CannotWrite, with its name. Raises OSError if it cannot be opened."""
    return cast("IO[bytes]", io.BufferedWriter(_Told(path, mode, path)))


def _told(handle: int, path: Path) -> IO[bytes]:
    return cast("IO[bytes]", io.BufferedWriter(_Told(handle, "w", path)))


def _is_special(path: Path) -> bool:
    if path.parts[:2] in (("/", "dev"), ("/", "proc")):
        return True  # standard output too, even if it leads to a file
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


class _Told(io.FileIO):
    """Says which file it was that could not be written."""

    def __init__(self, opened: int | Path, mode: str, path: Path) -> None:
        super().__init__(opened, mode)
        self._path = path

    def write(self, data: object, /) -> int:
        try:
            return super().write(data)  # type: ignore[arg-type]
        except BrokenPipeError:
            raise
        except OSError as error:
            raise CannotWrite(f"{self._path} cannot be written: {error.strerror or error}") from None


class _Temporaries:
    """Those that are there now. While there are some, a signal that ends the process removes them first."""

    def __init__(self) -> None:
        self._paths: set[str] = set()
        self._caught: list[signal.Signals] = []
        self._pid = 0

    @contextmanager
    def made(self, folder: Path, name: str) -> Iterator[tuple[int, str]]:
        """A new one, which is gone afterwards unless it was renamed."""
        self._catch()
        try:
            handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{name}.")
            self._paths.add(temporary)
            try:
                yield handle, temporary
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
            finally:
                self._paths.discard(temporary)
        finally:
            self._leave()

    def _catch(self) -> None:
        """Only what nobody else cares for: who stops in order does so by themselves."""
        if self._paths or threading.current_thread() is not threading.main_thread():
            return
        self._pid = os.getpid()
        for number in _SIGNALS:
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, self._ends)
                self._caught.append(number)

    def _leave(self) -> None:
        if self._paths or threading.current_thread() is not threading.main_thread():
            return
        for number in self._caught:
            if signal.getsignal(number) == self._ends:
                signal.signal(number, signal.SIG_DFL)
        self._caught.clear()

    def _ends(self, number: int, frame: FrameType | None) -> None:
        # A copy of the process, as hindsight makes them, must not remove what is the process's own.
        if os.getpid() == self._pid:
            for temporary in self._paths:
                Path(temporary).unlink(missing_ok=True)
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)


_TEMPORARIES: Final = _Temporaries()
