"""Asks every engine and node how it is and what it has to do, each at its own pace: a slow one delays no other."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final

from prfaas.core.control import events as e
from prfaas.core.control.fleet import Fleet
from prfaas.core.topology import Instance
from prfaas.engines.dialect import EngineLoad
from prfaas.engines.kinds import dialect_of
from prfaas.gateway.upstream.clients import Engines, UpstreamDown
from prfaas.gateway.upstream.nodes import NodeRefused, Nodes
from prfaas.observe.metrics import Metrics

logger = logging.getLogger("prfaas.gateway")

#: Detection of a dead instance must take less than 3 s; requests that fail meanwhile fall back on their own.
PROBE_INTERVAL_S: Final = 1.0
PROBE_TIMEOUT_S: Final = 5.0
#: A busy engine may take as long to count its requests as it likes; its health is not asked less often for that.
LOAD_TIMEOUT_S: Final = 1.0
NAN: Final = float("nan")
#: At start the first answers are waited for, so that the first request already finds a route.
FIRST_ROUND_S: Final = 2.0


class Prober:
    """Feeds what it learns to `feed`, and shows the fleet's view of each instance in log and metrics."""

    def __init__(
        self,
        fleet: Fleet,
        feed: Callable[[e.WorldEvent], None],
        engines: Engines,
        nodes: Nodes,
        metrics: Metrics,
        interval_s: float = PROBE_INTERVAL_S,
    ) -> None:
        self._fleet = fleet
        self._feed = feed
        self._engines = engines
        self._nodes = nodes
        self._metrics = metrics
        self._interval_s = interval_s
        self._tasks: dict[Instance, asyncio.Task[None]] = {}
        #: By instance, why its node is refused; logged once.
        self._refusals: dict[str, str] = {}

    async def start(self, members: Sequence[Instance]) -> None:
        """Watch `members`, and wait a moment for first answers."""
        firsts = self.watch(members)
        waiting = [asyncio.create_task(first.wait()) for first in firsts]
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=FIRST_ROUND_S)
            for task in late:
                task.cancel()

    def watch(self, members: Sequence[Instance]) -> list[asyncio.Event]:
        """Watch exactly `members` from now on. Returns, for each new one, what is set at its first answer."""
        for member in self._tasks.keys() - set(members):
            self._tasks.pop(member).cancel()
            self._forget(member.name)
        firsts = []
        for member in members:
            if member not in self._tasks:
                first = asyncio.Event()
                self._tasks[member] = asyncio.create_task(self._run(member, first))
                firsts.append(first)
        return firsts

    async def stop(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, member: Instance, first: asyncio.Event) -> None:
        before = (False, False)
        while True:
            try:
                await asyncio.gather(self._probe_engine(member), self._probe_node(member))
                before = self._show(member.name, before)
            except Exception:
                # A defect of ours must not leave an instance with its last health for ever.
                logger.exception("probing %s failed", member.name)
            first.set()
            await asyncio.sleep(self._interval_s)

    async def _probe_engine(self, member: Instance) -> None:
        dialect = dialect_of(member.kind)
        try:
            status, _ = await self._engines.get(member.engine_url + dialect.health_path, PROBE_TIMEOUT_S)
        except UpstreamDown as error:
            if not _ours(error):
                self._feed(e.EngineSilent(member.name, error.refused))
                self._show_load(member.name, None)
            return
        load = await self._load(member)
        num_requests = None if load is None else load.running + load.waiting
        self._feed(e.EngineSeen(member.name, status == 200, num_requests))
        self._show_load(member.name, load)

    def _show_load(self, name: str, load: EngineLoad | None) -> None:
        # Not known is not 0: an engine that does not say how busy it is must not look idle.
        running, waiting = (NAN, NAN) if load is None else (load.running, load.waiting)
        for state, number in (("running", running), ("waiting", waiting)):
            self._metrics.gauge("prfaas_engine_requests", instance=name, state=state).set(number)

    async def _load(self, member: Instance) -> EngineLoad | None:
        dialect = dialect_of(member.kind)
        try:
            return dialect.read_load(*await self._engines.get(member.engine_url + dialect.load_path, LOAD_TIMEOUT_S))
        except UpstreamDown:
            return None

    async def _probe_node(self, member: Instance) -> None:
        try:
            health = await self._nodes.health(member.kvnode_url, PROBE_TIMEOUT_S)
        except UpstreamDown as error:
            if not _ours(error):
                self._feed(e.NodeSilent(member.name))
            return
        except NodeRefused as refused:
            self._feed(e.NodeSilent(member.name))
            if self._refusals.get(member.name) != str(refused):
                self._refusals[member.name] = str(refused)
                logger.warning("instance=%s its node is not used: %s", member.name, refused)
            return
        self._refusals.pop(member.name, None)
        engine = health.engines[-1] if health.engines else None
        if engine is None:
            self._feed(e.NodeSeen(member.name, has_engine=False))
        else:
            # A node that has not read the newest file yet does not know some of them.
            targets = {target.name for target in self._fleet.topology.sends_to(member)} | health.peers.keys()
            connected = {name for name, peer in health.peers.items() if peer.lanes_up}
            cut_off = frozenset(targets - connected)
            kinds, boot_id = engine.kv_group_kinds, engine.engine_boot_id
            self._feed(e.NodeSeen(member.name, True, engine.block_tokens, boot_id, kinds, cut_off))

    def _show(self, name: str, before: tuple[bool, bool]) -> tuple[bool, bool]:
        instance = self._fleet.instances.get(name)
        if instance is None:
            return before
        now = (instance.engine_healthy, instance.node_ready)
        if now != before:
            logger.info("instance=%s engine_healthy=%s node_ready=%s", name, *now)
        self._metrics.gauge("prfaas_engine_up", instance=name).set(now[0])
        self._metrics.gauge("prfaas_node_ready", instance=name).set(now[1])
        self._metrics.gauge("prfaas_prefix_record_blocks", instance=name).set(len(instance.cache))
        return now

    def _forget(self, name: str) -> None:
        self._refusals.pop(name, None)
        logger.info("instance=%s is no longer watched", name)
        # An instance that was taken out on purpose is not one that is down: 0 would ring for it for ever.
        for metric in ("prfaas_engine_up", "prfaas_node_ready", "prfaas_prefix_record_blocks"):
            self._metrics.forget_gauge(metric, instance=name)
        for state in ("running", "waiting"):
            self._metrics.forget_gauge("prfaas_engine_requests", instance=name, state=state)


def _ours(error: UpstreamDown) -> bool:
    if error.is_own:
        logger.warning("probe not sent: %s", error)
    return error.is_own
