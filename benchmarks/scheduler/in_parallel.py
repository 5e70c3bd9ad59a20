"""Runs of simulations, several at once."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing import Pool
from typing import TypeVar

Cell = TypeVar("Cell")
Found = TypeVar("Found")


def run_all(run: Callable[[Cell], Found], cells: Sequence[Cell], processes: int) -> dict[Cell, Found]:
    """What `run` finds, by cell, with progress on standard error."""
    done: dict[Cell, Found] = {}
    began_s = time.perf_counter()
    with Pool(processes) as pool:
        for cell, found in zip(cells, pool.imap(run, cells), strict=True):
            done[cell] = found
            left_s = (time.perf_counter() - began_s) / len(done) * (len(cells) - len(done))
            if sys.stderr.isatty():
                sys.stderr.write(f"\r{len(done)} of {len(cells)} runs, about {left_s:.0f} s left   ")
    if sys.stderr.isatty():
        sys.stderr.write("\n")
    return done
