"""Inside an end process: the loop that answers JSON lines, and the memory that is moved.

The ends run in the Python of the library that they drive: only the standard library here.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import random
import signal
import struct
import sys
import traceback
import zlib
from collections.abc import Callable, Mapping
from typing import Any

Handler = Callable[..., dict[str, Any]]
STAMP = struct.Struct("<Q")
BLOCK_BYTES = 1 << 20
PR_SET_PDEATHSIG = 1


def serve(handlers: Mapping[str, Handler]) -> None:
    """Answer lines {"do": name, field: value …} with what the handler returns, until stdin ends.

    Standard output is for answers alone: what a library prints goes to standard error.
    """
    # Should the benchmark be killed: an end that is paused (ends.py) would not see its stdin end.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = handlers[request.pop("do")](**request)
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    os._exit(0)  # the libraries' threads may spin on; nothing is left to tidy up


class Memory:
    """`num_bytes` of this process in equal pieces. All of it is touched, so that no move pays for page faults."""

    def __init__(self, num_bytes: int, num_pieces: int) -> None:
        assert num_bytes % num_pieces == 0
        assert num_bytes // num_pieces >= 2 * STAMP.size
        self.num_bytes = num_bytes
        self.piece_bytes = num_bytes // num_pieces
        self.map = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.map.madvise(mmap.MADV_HUGEPAGE)
        self.map.write(bytes(num_bytes))
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.map))

    def addresses(self, base: int) -> list[int]:
        """Of each piece, when the memory starts at `base` (in this process or at the other end)."""
        return [base + offset for offset in range(0, self.num_bytes, self.piece_bytes)]

    def handlers(self) -> dict[str, Handler]:
        """What `EndsMover` asks of any memory."""
        return {"fill": self.fill, "stamp": self.stamp, "stamped": self.stamped, "checksum": self.checksum}

    def fill(self, seed: int) -> dict[str, Any]:
        """Random bytes, another block each MiB."""
        rng = random.Random(seed)
        self.map.seek(0)
        for offset in range(0, self.num_bytes, BLOCK_BYTES):
            self.map.write(rng.randbytes(min(BLOCK_BYTES, self.num_bytes - offset)))
        return {}

    def stamp(self, number: int) -> dict[str, Any]:
        """Write a number at both ends of every piece, so that one move cannot pass for the next."""
        for offset in self._stamp_offsets():
            STAMP.pack_into(self.map, offset, number)
        return {}

    def stamped(self, number: int) -> dict[str, Any]:
        """Whether all pieces have that number at both ends."""
        return {"all": all(STAMP.unpack_from(self.map, offset)[0] == number for offset in self._stamp_offsets())}

    def checksum(self) -> dict[str, Any]:
        """Of all bytes."""
        return {"crc32": zlib.crc32(self.map)}

    def _stamp_offsets(self) -> list[int]:
        starts = range(0, self.num_bytes, self.piece_bytes)
        return [*starts, *(start + self.piece_bytes - STAMP.size for start in starts)]
