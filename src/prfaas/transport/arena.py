"""The arena: one file of shared memory per node, mapped by the node and by the engines beside it.

The node creates it and unlinks it when it stops. A mapping outlives the unlinking and the node, so an engine that is
reading never faults; a node that starts again makes a new file, so nobody mistakes old bytes for new.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from types import TracebackType


class Arena:
    """`view` is the writable memory of all `num_bytes` bytes."""

    def __init__(self, path: str, num_bytes: int, *, create: bool) -> None:
        self.path = path
        self.num_bytes = num_bytes
        self._owner = create
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_EXCL if create else 0)
        descriptor = os.open(path, flags, 0o600)
        try:
            if create:
                # Reserve the pages now: running out later would be a SIGBUS in the middle of a transfer.
                _reserve_pages(descriptor, path, num_bytes)
            self._map = mmap.mmap(descriptor, num_bytes)
        except BaseException:
            if create:
                os.unlink(path)
            raise
        finally:
            os.close(descriptor)
        self.view = memoryview(self._map)

    def close(self) -> None:
        """Unmap, and unlink if this is the creator. A mapping that someone still views stays until they let go."""
        if self._owner:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)
        self.view.release()
        with contextlib.suppress(BufferError):
            self._map.close()

    def __enter__(self) -> Arena:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _reserve_pages(descriptor: int, path: str, num_bytes: int) -> None:
    try:
        os.posix_fallocate(descriptor, 0, num_bytes)
    except OSError as error:
        raise OSError(error.errno, f"arena of {num_bytes >> 20} MiB at {path}: {error.strerror}") from None
