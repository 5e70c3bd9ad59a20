"""Large buffers that were freed go back to the system."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

#: Large buffers with small ones between them that stay. Prints how much the heap has grown when the large ones are gone.
CHURN = """
import os
from prfaas.large_buffers import return_large_buffers
from prfaas.testing.footprint import heap_bytes
{first}
before = heap_bytes(os.getpid())
kept = [(bytes(100_000), bytes(2_000)) for _ in range(1_000)]
kept = [small for _, small in kept]
print(heap_bytes(os.getpid()) - before)
"""


def left_bytes(first: str) -> int:
    """Of 100 MB that were freed, in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    ran = subprocess.run(
        [sys.executable, "-c", CHURN.format(first=first)], env=environment, capture_output=True, check=True, text=True
    )
    return int(ran.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_large_buffers_go_back_to_the_system() -> None:
    """Though small ones that stay lie between them. Without it the holes are kept."""
    assert left_bytes("return_large_buffers()") < 30e6
    assert left_bytes("") > 50e6
