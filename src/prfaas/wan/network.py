"""The emulated network: links with their lines, and the fronts where lanes arrive."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final

from prfaas.core.errors import PrfaasError
from prfaas.deployment.fronts import Address, EmulatedLink
from prfaas.wan.blocks import Pool
from prfaas.wan.line import Line, Way
from prfaas.wan.relay import Connection, Runner, now_s, prepare
from prfaas.wan.settings import LinkSettings

logger = logging.getLogger("prfaas.wan")

#: A node is on the same machine or near: if it does not answer by then it does not answer.
CONNECT_S: Final = 3.0
#: The rate that is shown is of the last second, by samples this far apart.
SAMPLE_S: Final = 0.1

BACKLOG: Final = 1024

Pair = tuple[str, str]


class NoSuchLink(PrfaasError):
    """The text names those that there are."""


class NotOfThisLink(PrfaasError):
    """The setting has no effect on a link that no connection is made over."""


class Meter:
    """Rate of a counter over the last second."""

    def __init__(self, at_s: float) -> None:
        self._samples: deque[tuple[float, int]] = deque([(at_s, 0)], maxlen=int(1 / SAMPLE_S) + 1)

    def look(self, count: int, at_s: float) -> float:
        """Also takes a sample."""
        if at_s - self._samples[-1][0] >= SAMPLE_S:
            self._samples.append((at_s, count))
        first_s, before = next((sample for sample in self._samples if sample[0] > at_s - 1.1), (at_s, count))
        return (count - before) / (at_s - first_s) if at_s > first_s else 0.0


class Front:
    """Where lanes to one node arrive."""

    def __init__(self, link: Link, name: str, listen: Address, target: Address) -> None:
        self.link = link
        self.name = name
        self.listen = listen
        self.target = target
        self._loop = link.network.loop
        self._tasks: set[asyncio.Task[None]] = set()
        try:
            self._listener = socket.create_server(listen, backlog=BACKLOG)
        except OSError as error:
            raise OSError(f"links.*.emulated_at: {listen[0]}:{listen[1]}: {error.strerror or error}") from None
        prepare(self._listener)
        self._listener.setblocking(False)
        self._is_open = True
        self._loop.add_reader(self._listener, self._accept)

    def refuse(self) -> None:
        """New connections; the port stays ours."""
        if self._is_open:
            self._is_open = False
            self._loop.remove_reader(self._listener)
            self._listener.shutdown(socket.SHUT_RD)

    def admit(self) -> None:
        """New connections again."""
        if not self._is_open:
            self._is_open = True
            self._listener.listen(BACKLOG)
            self._loop.add_reader(self._listener, self._accept)

    def close(self) -> None:
        if self._is_open:
            self._loop.remove_reader(self._listener)
        self._listener.close()
        for task in self._tasks:
            task.cancel()

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                try:
                    near, _ = self._listener.accept()
                except BlockingIOError:
                    raise
                except OSError as error:
                    logger.warning("a connection to %s is not taken: %s", self.name, error)
                    return
                near.setblocking(False)
                task = self._loop.create_task(self._connect(near))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _connect(self, near: socket.socket) -> None:
        accepted_s = now_s()
        try:
            async with asyncio.timeout(CONNECT_S):
                far = await self._dial()
        except BaseException as error:
            near.close()
            if not isinstance(error, (OSError, TimeoutError)):
                raise
            logger.debug("node %s at %s:%d cannot be reached: %s", self.name, *self.target, error)
            return
        self.link.carry(near, far, accepted_s)

    async def _dial(self) -> socket.socket:
        found = await self._loop.getaddrinfo(*self.target, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        far = socket.socket(family, kind, protocol)
        far.setblocking(False)
        prepare(far)
        try:
            await self._loop.sock_connect(far, address)
        except BaseException:
            far.close()
            raise
        return far


class Link:
    """One direction between two clusters. `back` is the line that its connections' other direction takes."""

    def __init__(self, network: Network, described: EmulatedLink, rng: random.Random) -> None:
        self.network = network
        self.source, self.target = described.source, described.target
        self.settings = LinkSettings(described.bytes_per_s, described.rtt_s)
        self.line = Line(self.settings, rng, now_s())
        self.way = Way(self.settings, rng)
        self.runner = Runner(self.line, network.loop, network.pool)
        self.free_back = Runner(Line(LinkSettings(), rng, now_s()), network.loop, network.pool)
        self.fronts: dict[str, Front] = {}
        self.connections: set[Connection] = set()
        self._meter = Meter(now_s())

    def follow(self, described: EmulatedLink) -> None:
        """Listen where the file says now. Connections that are there stay. Raises OSError."""
        wanted = {front.name: front for front in described.fronts}
        for name, front in tuple(self.fronts.items()):
            new = wanted.get(name)
            if new is None or new.listen != front.listen:
                front.close()
                del self.fronts[name]
            else:
                front.target = new.target
        for name, new in wanted.items():
            if name not in self.fronts:
                self.fronts[name] = Front(self, name, new.listen, new.target)
                if self.settings.cut == "reset":
                    self.fronts[name].refuse()

    def carry(self, near: socket.socket, far: socket.socket, accepted_s: float) -> None:
        """A connection was made; its first byte leaves when a handshake would have been over."""
        back = self.network.way_back(self)
        first_at_s = accepted_s + self.settings.rtt
        connection = Connection(near, far, (self.runner, back), self.way, first_at_s, self.connections.discard)
        self.connections.add(connection)
        if self.settings.cut == "reset":
            connection.close(reset=True)
            return
        if self.settings.cut == "silent":
            connection.hold()
        connection.start()

    def change(self, settings: LinkSettings) -> None:
        """From now on."""
        before, self.settings = self.settings, settings
        self.way.settings = settings
        self.line.change(settings, now_s())
        self.runner.fit_windows()
        if settings.cut != before.cut:
            self._heal(before)
            self._cut(settings)
        self.runner.pump()
        logger.info("%s to %s: %s", self.source, self.target, settings)

    def figures(self) -> dict[str, Any]:
        """What it does now."""
        line = self.line
        return {
            "carried_bytes": line.carried_bytes,
            "bytes_per_s": round(self._meter.look(line.carried_bytes, now_s()), 1),
            "queue_bytes": line.queue_bytes,
            "held_bytes": line.held_bytes,
            "connections": len(self.connections),
            "stalls": line.num_stalls,
            "flips": line.num_flips,
        }

    def stop(self) -> None:
        for front in self.fronts.values():
            front.close()
        for connection in tuple(self.connections):
            connection.close(reset=True)
        self.runner.stop()
        self.free_back.stop()

    def sample(self) -> None:
        """What the rate is told from."""
        self._meter.look(self.line.carried_bytes, now_s())

    def _cut(self, settings: LinkSettings) -> None:
        if settings.cut == "reset":
            for front in self.fronts.values():
                front.refuse()
            for connection in tuple(self.connections):
                connection.close(reset=True)
        elif settings.cut == "silent":
            for connection in self.connections:
                connection.hold()

    def _heal(self, before: LinkSettings) -> None:
        if before.cut == "reset":
            for front in self.fronts.values():
                front.admit()
        elif before.cut == "silent":
            for connection in tuple(self.connections):
                connection.release()


class Network:
    """All links. Only for the event loop that it was made in."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seed: int = 0) -> None:
        self.loop = loop
        self.pool = Pool()
        self.links: dict[Pair, Link] = {}
        self._seed = seed
        self._sampler: asyncio.Task[None] | None = None

    def follow(self, described: Iterable[EmulatedLink]) -> None:
        """Have these links; those that are there keep their settings. Raises OSError if an address is taken."""
        wanted = {(link.source, link.target): link for link in described}
        for pair in self.links.keys() - wanted.keys():
            self.links.pop(pair).stop()
        for pair, link in wanted.items():
            if pair not in self.links:
                self.links[pair] = Link(self, link, random.Random(f"{self._seed} {' '.join(pair)}"))
            self.links[pair].follow(link)
        if self._sampler is None:
            self._sampler = self.loop.create_task(self._sample())

    def link(self, source: str, target: str) -> Link:
        """Raises NoSuchLink."""
        found = self.links.get((source, target))
        if found is None:
            known = ", ".join(f"{a} to {b}" for a, b in self.links)
            raise NoSuchLink(f"no link from {source!r} to {target!r} is emulated; there are: {known}")
        return found

    def change(self, link: Link, settings: LinkSettings) -> None:
        """Raises NotOfThisLink."""
        own = replace(link.settings, bandwidth=settings.bandwidth, queue=settings.queue)
        if not link.fronts and settings != own:
            raise NotOfThisLink(
                f"no connection is made from {link.source} to {link.target}: only bandwidth and queue of this link mean"
                " something, to the way back of the other one"
            )
        link.change(settings)

    def way_back(self, link: Link) -> Runner:
        """Of its connections: the link in the other direction, or one without limits."""
        other = self.links.get((link.target, link.source))
        return link.free_back if other is None else other.runner

    async def stop(self) -> None:
        """End every connection."""
        if self._sampler is not None:
            self._sampler.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sampler
        for link in self.links.values():
            link.stop()

    async def _sample(self) -> None:
        while True:
            await asyncio.sleep(SAMPLE_S)
            for link in self.links.values():
                link.sample()
