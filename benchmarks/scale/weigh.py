"""How many bytes objects take, with everything that they alone lead to."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

#: What belongs to the program, not to what it knows.
_PROGRAM = (type, ModuleType, FunctionType, BuiltinFunctionType, MethodType)


def deep_bytes(roots: Iterable[Any], but_not: tuple[type, ...] = ()) -> int:
    """Each object once. Those of the types `but_not` are left out, and what only they lead to."""
    stops = (*_PROGRAM, *but_not)
    seen, todo, total = set[int](), list(roots), 0
    while todo:
        one = todo.pop()
        if id(one) in seen or isinstance(one, stops):
            continue
        seen.add(id(one))
        total += sys.getsizeof(one)
        todo.extend(gc.get_referents(one))
    return total
