"""Asks every engine and node how it is and what it has to do, each at its own pace: a slow one delays no other."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from prfaas.gateway.fleet import Fleet, Instance
from prfaas.gateway.upstream.clients import Engines, UpstreamDown
from prfaas.gateway.upstream.nodes import NodeRefused, Nodes
from prfaas.observe.metrics import Metrics

logger = logging.getLogger("prfaas.gateway")

#: Detection of a dead instance must take less than 3 s; requests that fail meanwhile fall back on their own.
PROBE_INTERVAL_S: Final = 1.0
PROBE_TIMEOUT_S: Final = 5.0
#: A busy engine may take as long to count its requests as it likes; its health is not asked less often for that.
LOAD_TIMEOUT_S: Final = 1.0
#: At start the first answers are waited for, so that the first request already finds a route.
FIRST_ROUND_S: Final = 2.0

NAN: Final = float("nan")


class Prober:
    """Runs from `start` to `stop`."""

    def __init__(
        self, fleet: Fleet, engines: Engines, nodes: Nodes, metrics: Metrics, interval_s: float = PROBE_INTERVAL_S
    ) -> None:
        self._fleet = fleet
        self._engines = engines
        self._nodes = nodes
        self._metrics = metrics
        self._interval_s = interval_s
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin, and wait a moment for first answers."""
        first = [asyncio.Event() for _ in self._fleet.all]
        pairs = zip(self._fleet.all, first, strict=True)
        self._tasks = [asyncio.create_task(self._watch(instance, event)) for instance, event in pairs]
        waiting = [asyncio.create_task(event.wait()) for event in first]
        _, late = await asyncio.wait(waiting, timeout=FIRST_ROUND_S)
        for task in late:
            task.cancel()

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _watch(self, instance: Instance, probed: asyncio.Event) -> None:
        while True:
            before = (instance.engine_healthy, instance.node_ready)
            await asyncio.gather(self._probe_engine(instance), self._probe_load(instance), self._probe_node(instance))
            probed.set()
            self._show(instance, before)
            await asyncio.sleep(self._interval_s)

    async def _probe_engine(self, instance: Instance) -> None:
        url = instance.engine_url + instance.dialect.health_path
        try:
            status, _ = await self._engines.get(url, PROBE_TIMEOUT_S)
            instance.engine_answered(status == 200)
        except UpstreamDown as error:
            if not _ours(error):
                instance.engine_silent(refused=error.refused)

    async def _probe_load(self, instance: Instance) -> None:
        url = instance.engine_url + instance.dialect.load_path
        try:
            load = instance.dialect.read_load(*await self._engines.get(url, LOAD_TIMEOUT_S))
        except UpstreamDown:
            load = None
        self._fleet.load_seen(instance.name, load)

    async def _probe_node(self, instance: Instance) -> None:
        try:
            instance.node_answered(await self._nodes.health(instance.kvnode_url, PROBE_TIMEOUT_S))
        except UpstreamDown as error:
            instance.node_ready = instance.node_ready and _ours(error)
        except NodeRefused:
            instance.node_ready = False

    def _show(self, instance: Instance, before: tuple[bool, bool]) -> None:
        now = (instance.engine_healthy, instance.node_ready)
        if now != before:
            logger.info("instance=%s engine_healthy=%s node_ready=%s", instance.name, *now)
        self._metrics.gauge("prfaas_engine_up", instance=instance.name).set(now[0])
        self._metrics.gauge("prfaas_node_ready", instance=instance.name).set(now[1])
        self._metrics.gauge("prfaas_prefix_record_blocks", instance=instance.name).set(len(instance.record))
        # Not known is not 0: an engine that does not say how busy it is must not look idle.
        running, waiting = (NAN, NAN) if instance.load is None else (instance.load.running, instance.load.waiting)
        for state, number in (("running", running), ("waiting", waiting)):
            self._metrics.gauge("prfaas_engine_requests", instance=instance.name, state=state).set(number)


def _ours(error: UpstreamDown) -> bool:
    if error.is_own:
        logger.warning("probe not sent: %s", error)
    return error.is_own
