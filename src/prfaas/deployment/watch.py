"""Tells when a deployment file has changed, so that processes follow it while they run.

Laws of this file:
- A changed file is read when it has stayed the same from one look to the next: whoever writes it may not be done. A
  poke reads it at once.
- A file that is refused changes nothing. It is told once, with everything that is wrong, until it changes again.
- Reading happens in a thread; `on_change` is called in the event loop, and only with what could be read.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Generic, TypeVar

from prfaas.core.errors import PrfaasError

T = TypeVar("T")

#: One stat a second costs nothing, and nobody who edits a file waits for longer.
POLL_S: Final = 1.0

#: Of a file's content; None if there is no file.
Stamp = tuple[int, int, int] | None


class FileWatch(Generic[T]):
    """Calls `on_change(read(path))` after every change of the file since `stamp`: its `file_stamp` before
    what is in force was read. `read` raises PrfaasError or OSError if the file cannot be used. `on_refused` is told
    after every reading whether the file was refused."""

    def __init__(
        self,
        path: Path,
        read: Callable[[Path], T],
        on_change: Callable[[T], None],
        logger: logging.Logger,
        *,
        stamp: Stamp,
        poll_s: float = POLL_S,
        on_refused: Callable[[bool], None] = lambda is_refused: None,
    ) -> None:
        self._path = path
        self._read = read
        self._on_change = on_change
        self._logger = logger
        self._poll_s = poll_s
        self._on_refused = on_refused
        self._poked = asyncio.Event()
        #: Of what is in use, and of the last look.
        self._taken = self._seen = stamp

    def poke(self) -> None:
        """Read the file now, changed or not. Call it in the event loop."""
        self._poked.set()

    async def run(self) -> None:
        """Watch until this task is cancelled."""
        with _on_hangup(self.poke):
            while True:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._poked.wait(), self._poll_s)
                await self.look()

    async def look(self) -> None:
        """One look at the file, and what follows from it."""
        stamp, before = file_stamp(self._path), self._seen
        self._seen = stamp
        if self._poked.is_set():
            self._poked.clear()
        elif stamp == self._taken or stamp != before:
            return
        self._taken = stamp
        try:
            found = await asyncio.to_thread(self._read, self._path)
        except (PrfaasError, OSError) as error:
            self._logger.error("the deployment file is refused, what was read before stays in force:\n%s", error)
            self._on_refused(True)
            return
        except Exception:
            # A defect of ours; the next change of the file must be seen all the same.
            self._logger.exception("reading the deployment file failed, what was read before stays in force")
            self._on_refused(True)
            return
        self._on_refused(False)
        if file_stamp(self._path) != stamp:
            self._taken = None  # it was written to while we read: the next look decides
            return
        try:
            self._on_change(found)
        except Exception:
            self._logger.exception("taking over the deployment file failed")


@contextlib.contextmanager
def _on_hangup(call: Callable[[], None]) -> Iterator[None]:
    """SIGHUP calls `call`, where this loop may handle signals: not in a thread."""
    loop = asyncio.get_running_loop()
    try:
        loop.add_signal_handler(signal.SIGHUP, call)
    except (ValueError, RuntimeError, NotImplementedError):
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)


def file_stamp(path: Path) -> Stamp:
    """Another one whenever the file was written or replaced."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
