"""Which instances hold the first block of a prompt. All others hold nothing of it, and need not be asked."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prfaas.core.control.fleet import Instance


class Holders:
    """Of one fleet."""

    def __init__(self) -> None:
        self._by_name: dict[bytes, dict[Instance, None]] = {}

    def of(self, name: bytes) -> Collection[Instance]:
        """In the order in which they came to hold it."""
        return self._by_name.get(name, ())

    def add(self, name: bytes, instance: Instance) -> None:
        self._by_name.setdefault(name, {})[instance] = None

    def drop(self, name: bytes, instance: Instance) -> None:
        holders = self._by_name.get(name)
        if holders is not None:
            holders.pop(instance, None)
            if not holders:
                del self._by_name[name]


class RootsOf:
    """What one instance tells its fleet's holders; nobody while it is in no fleet."""

    __slots__ = ("holders", "instance")

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.holders: Holders | None = None

    def add(self, name: bytes) -> None:
        """See `Roots`."""
        if self.holders is not None:
            self.holders.add(name, self.instance)

    def drop(self, name: bytes) -> None:
        """See `Roots`."""
        if self.holders is not None:
            self.holders.drop(name, self.instance)
