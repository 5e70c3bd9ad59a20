"""How often the collector of cyclic garbage looks through a gateway's heap."""

from __future__ import annotations

import gc
from typing import Final

#: A request leaves some hundred objects behind that stay for long (its story, names of its blocks) and nearly no
#: cycles: at Python's own 700 the collector looks through thousands of stories every few requests and finds nothing.
YOUNG_OBJECTS: Final = 20_000


def collect_rarely() -> None:
    """For a process that is a gateway and nothing else: what was loaded so far is not looked through any more, and the
    rest seldom."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])
