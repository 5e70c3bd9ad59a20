"""Which instances hold the first block of a prompt. All others hold nothing of it, and need not be asked."""

from __future__ import annotations

from collections.abc import Collection
from typing import Generic, TypeVar

Holder = TypeVar("Holder")


class Holders(Generic[Holder]):
    """Of one fleet."""

    def __init__(self) -> None:
        self._by_name: dict[bytes, dict[Holder, None]] = {}

    def of(self, name: bytes) -> Collection[Holder]:
        """In the order in which they came to hold it."""
        return self._by_name.get(name, ())

    def add(self, name: bytes, holder: Holder) -> None:
        self._by_name.setdefault(name, {})[holder] = None

    def drop(self, name: bytes, holder: Holder) -> None:
        holders = self._by_name.get(name)
        if holders is not None:
            holders.pop(holder, None)
            if not holders:
                del self._by_name[name]


class RootsOf(Generic[Holder]):
    """What one instance tells its fleet's holders; nobody, while it is in no fleet."""

    __slots__ = ("holder", "holders")

    def __init__(self, holder: Holder) -> None:
        self.holder = holder
        self.holders: Holders[Holder] | None = None

    def add(self, name: bytes) -> None:
        """See `Roots`."""
        if self.holders is not None:
            self.holders.add(name, self.holder)

    def drop(self, name: bytes) -> None:
        """See `Roots`."""
        if self.holders is not None:
            self.holders.drop(name, self.holder)
