"""Large buffers that were freed go back to the system."""

from __future__ import annotations

import contextlib
import ctypes
import os
from typing import Final

#: Prompts and what is made of them: half a million bytes for 27,000 tokens. The C library raises its own limit of 128
#: KiB, up to 32 MiB, as such buffers are freed. Then it cuts them from one heap, where small things that stay keep the
#: holes between them: the gateway of the emulated case study grew from 67 to 280 MB in eight minutes, and most of it
#: was free.
LARGE_BYTES: Final = 64 << 10
_M_MMAP_THRESHOLD: Final = -3


def return_large_buffers() -> None:
    """From now on buffers of `LARGE_BYTES` go back to the system when they are freed. Nothing where the C library has
    no such setting, or its environment has set it."""
    if "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)
