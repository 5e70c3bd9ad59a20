"""What the sending nodes say of their links: a change of a verdict arrives at once, figures once a second."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Final

from prfaas.core.wire.node_api import LinkReport, Verdict
from prfaas.gateway.fleet import Fleet, Instance
from prfaas.gateway.upstream.clients import UpstreamDown
from prfaas.gateway.upstream.nodes import NodeRefused, Nodes
from prfaas.observe.metrics import Metrics

logger = logging.getLogger("prfaas.gateway")

#: A node answers earlier if a verdict changes; so often it answers anyway.
REFRESH_S: Final = 1.0
#: By sending node, then by receiving node.
Links = dict[str, dict[str, LinkReport]]


class LinkFeed:
    """Keeps `links` current from `start` to `stop`. A node that does not answer has no links."""

    def __init__(self, fleet: Fleet, nodes: Nodes, metrics: Metrics) -> None:
        self.links: Links = {}
        self._fleet = fleet
        self._nodes = nodes
        self._metrics = metrics
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Watch every node that sends."""
        self._tasks = [asyncio.create_task(self._watch(instance)) for instance in self._fleet.prefillers]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _watch(self, instance: Instance) -> None:
        after: int | None = None
        while True:
            try:
                answer = await self._nodes.links(instance.kvnode_url, after=after, wait_s=REFRESH_S)
                after = answer.changes
                self._take(instance.name, answer.links)
            except (UpstreamDown, NodeRefused) as error:
                logger.debug("links of %s are not known: %s", instance.name, error)
                self.links.pop(instance.name, None)
                after = None
                await asyncio.sleep(REFRESH_S)

    def _take(self, source: str, links: Mapping[str, LinkReport]) -> None:
        before = self.links.get(source, {})
        for target, report in links.items():
            if report.verdict is not (before[target].verdict if target in before else Verdict.CLEAR):
                logger.info("link from=%s to=%s verdict=%s", source, target, report.verdict)
            gauge = self._metrics.gauge("prfaas_gateway_link_verdict", source=source, target=target)
            gauge.set(report.verdict.level)
        self.links[source] = dict(links)
