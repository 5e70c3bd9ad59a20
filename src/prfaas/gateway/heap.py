"""How often the collector of cyclic garbage looks through a gateway's heap."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

#: A request leaves some hundred objects behind that stay for long (its story, names of its blocks) and nearly no
#: cycles. With Python's own 700 the collector took a tenth of the gateway's time to find nothing.
YOUNG_OBJECTS: Final = 20_000


@contextmanager
def rare_collections() -> Iterator[None]:
    """While a gateway serves: what was loaded before is not looked through, and the rest seldom."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
