"""Does the faults of a plan at their times, and undoes every one of them, whatever happens."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import aiohttp

from prfaas.chaos.faults import GATEWAY, SETTINGS, Fault, Kind
from prfaas.chaos.harm import CannotHarm, allow_writes, refuse_writes, send
from prfaas.chaos.site import Site
from prfaas.wan import client as wan

#: A vLLM takes minutes to load; this is for processes that take seconds. A longer one is told as not recovered.
RESTART_TIMEOUT_S: Final = 120.0
_POLL_S: Final = 0.1


@dataclass(slots=True)
class Happened:
    """A fault, and when it was done and undone: for a killed process, when it answered again. None: not yet."""

    fault: Fault
    began_s: float
    ended_s: float | None = None

    @property
    def until_s(self) -> float:
        """For ever, if it was never undone."""
        return float("inf") if self.ended_s is None else self.ended_s


@dataclass(slots=True)
class Injector:
    """`clock` counts as the faults' times do. `happened` grows while it runs; `gateway_lives` counts its kills."""

    site: Site
    session: aiohttp.ClientSession
    clock: Callable[[], float]
    tell: Callable[[str], None]
    happened: list[Happened] = field(default_factory=list)
    gateway_lives: int = 0

    async def run(self, faults: Sequence[Fault]) -> None:
        """Until all are undone. Raises CannotHarm, or what the emulated network says."""
        async with asyncio.TaskGroup() as group:
            for fault in faults:
                group.create_task(self._one(fault))

    async def _one(self, fault: Fault) -> None:
        await asyncio.sleep(max(0.0, fault.at_s - self.clock()))
        if fault.kind is Kind.KILL:
            await self._kill(fault)
            return
        done = {Kind.STOP: self._stopped, Kind.FILL: self._full}.get(fault.kind, self._of_link)
        async with done(fault):
            happened = self._begins(fault)
            await asyncio.sleep(fault.lasts_s)
        self._ends(happened)

    def _begins(self, fault: Fault) -> Happened:
        happened = Happened(fault, self.clock())
        self.happened.append(happened)
        self.tell(f"{happened.began_s:6.2f} s  {fault.text}")
        return happened

    def _ends(self, happened: Happened) -> None:
        happened.ended_s = self.clock()
        what = "answers again" if happened.fault.kind is Kind.KILL else "is undone"
        self.tell(f"{happened.ended_s:6.2f} s  {happened.fault.kind} {happened.fault.target} {what}")

    async def _kill(self, fault: Fault) -> None:
        before = self.site.state().processes[fault.target]
        happened = self._begins(fault)
        if fault.target == GATEWAY:
            self.gateway_lives += 1
        send(fault.target, before, signal.SIGKILL)
        # Also on Ctrl-C: who killed it does not leave before it is back.
        waiting = asyncio.create_task(self._is_back(fault.target, before.pid))
        try:
            await asyncio.shield(waiting)
        except asyncio.CancelledError:
            await waiting
            raise
        finally:
            if waiting.done() and not waiting.cancelled() and waiting.exception() is None:
                self._ends(happened)

    async def _is_back(self, name: str, old_pid: int) -> None:
        async with asyncio.timeout(RESTART_TIMEOUT_S):
            while True:
                process = self.site.state().processes[name]
                if process.pid != old_pid and await self._answers(process.health_url):
                    return
                await asyncio.sleep(_POLL_S)

    async def _answers(self, url: str) -> bool:
        try:
            async with asyncio.timeout(2.0), self.session.get(url) as response:
                return response.status == 200
        except (aiohttp.ClientError, OSError):
            return False

    @asynccontextmanager
    async def _stopped(self, fault: Fault) -> AsyncIterator[None]:
        process = self.site.state().processes[fault.target]
        send(fault.target, process, signal.SIGSTOP)
        try:
            yield
        finally:
            send(fault.target, process, signal.SIGCONT)

    @asynccontextmanager
    async def _full(self, fault: Fault) -> AsyncIterator[None]:
        before = refuse_writes(fault.target, self.site.state().processes[fault.target])
        try:
            yield
        finally:
            allow_writes(before)

    @asynccontextmanager
    async def _of_link(self, fault: Fault) -> AsyncIterator[None]:
        control = self.site.control
        if control is None:
            raise CannotHarm(f"{fault.text}: no link of the file is emulated")
        source, target = fault.target.split()
        setting = SETTINGS[fault.kind]
        links = await asyncio.to_thread(wan.links, control)
        found = next(link[setting] for link in links if (link["from"], link["to"]) == (source, target))
        before = None if found is None else str(found)
        change = partial(wan.change, control, source, target)
        try:
            await asyncio.to_thread(change, {setting: fault.value})
            yield
        finally:
            await asyncio.to_thread(change, {setting: before})
