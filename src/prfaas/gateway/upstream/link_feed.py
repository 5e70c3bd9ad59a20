"""What the sending nodes say of their links: a change of a verdict arrives at once, figures once a second."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from prfaas.core.control import events as e
from prfaas.core.topology import Instance
from prfaas.core.wire.node_api import LinkReport, Verdict
from prfaas.gateway.upstream.clients import UpstreamDown
from prfaas.gateway.upstream.nodes import NodeRefused, Nodes
from prfaas.observe.metrics import Metrics

logger = logging.getLogger("prfaas.gateway")

#: A node answers earlier if a verdict changes; so often it answers anyway.
REFRESH_S: Final = 1.0
#: By sending node, then by receiving node.
Links = dict[str, dict[str, LinkReport]]


class LinkFeed:
    """Keeps `links` current, and feeds every report to `feed`. A node that does not answer has no links."""

    def __init__(self, feed: Callable[[e.WorldEvent], None], nodes: Nodes, metrics: Metrics) -> None:
        self.links: Links = {}
        self._feed = feed
        self._nodes = nodes
        self._metrics = metrics
        self._tasks: dict[Instance, asyncio.Task[None]] = {}

    def watch(self, senders: Sequence[Instance]) -> None:
        """Watch exactly the nodes of `senders` from now on."""
        for sender in self._tasks.keys() - set(senders):
            self._tasks.pop(sender).cancel()
            self._lose(sender.name)
        for sender in senders:
            if sender not in self._tasks:
                self._tasks[sender] = asyncio.create_task(self._run(sender))

    async def stop(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, sender: Instance) -> None:
        after: int | None = None
        while True:
            try:
                answer = await self._nodes.links(sender.kvnode_url, after=after, wait_s=REFRESH_S)
                after = answer.changes
                self._take(sender.name, answer.links)
            except (UpstreamDown, NodeRefused) as error:
                logger.debug("links of %s are not known: %s", sender.name, error)
                self._lose(sender.name)
                after = None
                await asyncio.sleep(REFRESH_S)
            except Exception:
                # A defect of ours must not leave links with their last figures for ever.
                logger.exception("taking the links of %s failed", sender.name)
                after = None
                await asyncio.sleep(REFRESH_S)

    def _lose(self, source: str) -> None:
        lost = self.links.pop(source, None)
        if lost is not None:
            self._feed(e.LinksLost(source))
            for target in lost:
                # What is not known is not what it was.
                self._metrics.forget_gauge("prfaas_gateway_link_verdict", source=source, target=target)

    def _take(self, source: str, links: Mapping[str, LinkReport]) -> None:
        before = self.links.get(source, {})
        if before.keys() - links.keys():
            self._lose(source)  # a node that has left has no link; those that are left follow
        for target, report in links.items():
            if report.verdict is not (before[target].verdict if target in before else Verdict.CLEAR):
                logger.info("link from=%s to=%s verdict=%s", source, target, report.verdict)
            gauge = self._metrics.gauge("prfaas_gateway_link_verdict", source=source, target=target)
            gauge.set(report.verdict.level)
            self._feed(
                e.LinkSeen(
                    source, target, report.verdict, report.capacity_bytes_per_s, report.queued_bytes,
                    report.delivered_bytes_per_s, report.unsent_bytes, report.arrives_bytes_per_s, report.left_bytes,
                )
            )  # fmt: skip
        self.links[source] = dict(links)
