"""Lets connections in, and ends those that use up their time.

Laws of this file:
- Nobody who does nothing keeps anybody else out: when all places are taken, the connection that has been idle longest
  gives its own to the new one.
- What is refused is counted, and told in the log at most once in ten seconds: a flood must not become one of lines.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from enum import StrEnum
from typing import Final, Protocol

from prfaas.gateway.front.limits import FrontLimits

logger = logging.getLogger("prfaas.gateway")

_TELL_EVERY_S: Final = 10.0
#: A look takes about a microsecond; requests get their turn between so many.
_LOOKS_AT_ONCE: Final = 1_000


class Closing(StrEnum):
    """Why a connection was refused or cut off."""

    FULL = "full"
    ADDRESS_FULL = "address_full"
    MADE_ROOM = "made_room"
    HEAD_TIMEOUT = "head_timeout"
    HEAD_TOO_LARGE = "head_too_large"
    BODY_TOO_SLOW = "body_too_slow"
    WRITE_TIMEOUT = "write_timeout"


class Guest(Protocol):
    """A connection, as the doorkeeper sees it."""

    @property
    def address(self) -> str: ...

    def leave(self) -> None:
        """Close it: it has been idle longest, and its place is needed."""

    def look(self, now_s: float) -> None:
        """Close it if its time is up."""


class Doorkeeper:
    """One gateway's. `closed` is told of every connection that is refused or cut off. While `is_stopping`, connections
    end with their next answer."""

    def __init__(
        self, limits: FrontLimits, closed: Callable[[Closing], None], is_stopping: Callable[[], bool] = lambda: False
    ) -> None:
        self.limits = limits
        self.closed = closed
        self.is_stopping = is_stopping
        # Both keep their order: who came first, who has been idle longest.
        self._guests: dict[Guest, None] = {}
        self._idle: dict[Guest, None] = {}
        self._of_address: Counter[str] = Counter()
        self._told_s: float | None = None
        self._num_untold = 0

    def __len__(self) -> int:
        return len(self._guests)

    def admit(self, guest: Guest) -> str | None:
        """None if it may stay; else why not."""
        most = self.limits.max_connections_of_address
        if most is not None and self._of_address[guest.address] >= most:
            return self._refused(Closing.ADDRESS_FULL, f"{guest.address} has {most} connections already")
        if len(self._guests) >= self.limits.max_connections:
            if not self._idle:
                return self._refused(Closing.FULL, f"all {self.limits.max_connections} connections are in use")
            longest = next(iter(self._idle))
            self.forget(longest)
            self.closed(Closing.MADE_ROOM)
            longest.leave()
        self._guests[guest] = None
        self._of_address[guest.address] += 1
        return None

    def forget(self, guest: Guest) -> None:
        """It is gone, or was never admitted."""
        if guest in self._guests:
            del self._guests[guest]
            self._of_address[guest.address] -= 1
            if not self._of_address[guest.address]:
                del self._of_address[guest.address]
        self._idle.pop(guest, None)

    def becomes_idle(self, guest: Guest) -> None:
        if guest in self._guests:
            self._idle[guest] = None

    def becomes_busy(self, guest: Guest) -> None:
        self._idle.pop(guest, None)

    async def watch(self) -> None:
        """Look at every connection, again and again."""
        while True:
            await asyncio.sleep(self.limits.look_every_s)
            now_s = time.monotonic()
            for number, guest in enumerate(list(self._guests)):
                try:
                    guest.look(now_s)
                except Exception:
                    logger.exception("a connection could not be looked at")
                if number % _LOOKS_AT_ONCE == 0:
                    await asyncio.sleep(0)

    def _refused(self, why: Closing, sentence: str) -> str:
        self.closed(why)
        self._num_untold += 1
        now_s = time.monotonic()
        if self._told_s is None or now_s - self._told_s >= _TELL_EVERY_S:
            logger.warning("connections refused num=%d why=%s; gateway.front limits them", self._num_untold, sentence)
            self._told_s, self._num_untold = now_s, 0
        return sentence
