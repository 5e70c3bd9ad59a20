"""What gateway, nodes and engines say of themselves over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
import orjson
from prometheus_client.parser import text_string_to_metric_families

from prfaas.chaos.site import Site
from prfaas.launch.readiness import not_ready
from prfaas.wan import client as wan

TIMEOUT_S: Final = 5.0
#: Of an engine, whoever it stands for.
_ENGINE_BUSY: Final = ("vllm:num_requests_running", "vllm:num_requests_waiting")
_WRONG: Final = "prfaas_emulated_wrong_parts_total"
_FAULTS: Final = "prfaas_ledger_faults_total"


class Silent(Exception):
    """Somebody does not answer; the text says who."""


@dataclass(frozen=True, slots=True)
class Metrics:
    """Samples of one process: by name, with their labels."""

    samples: Mapping[str, list[tuple[Mapping[str, str], float]]]

    def sum(self, name: str, **labels: str) -> float:
        """Over everything that carries `labels`."""
        wanted = labels.items()
        return sum(value for found, value in self.samples.get(name, ()) if wanted <= found.items())


@dataclass(slots=True)
class Looker:
    """Asks the processes of one deployment."""

    site: Site
    session: aiohttp.ClientSession

    async def counted(self) -> dict[str, float]:
        """Requests that the present gateway has ended, by outcome. Raises Silent."""
        metrics = await self._metrics(self.site.gateway_url)
        counts: dict[str, float] = {}
        for labels, value in metrics.samples.get("prfaas_requests_total", ()):
            counts[labels["outcome"]] = counts.get(labels["outcome"], 0.0) + value
        return counts

    async def damage(self) -> dict[str, float]:
        """What may never be: wrong parts of KVCache by engine, broken ledgers by node. The silent are left out."""
        engines = [(instance.name, instance.engine_url) for instance in self.site.topology.instances]
        nodes = [(instance.name, instance.kvnode_url) for instance in self.site.topology.instances]
        found: dict[str, float] = {}
        for name, url in engines if self.site.deployment.is_emulated else ():
            with contextlib.suppress(Silent):
                found[f"wrong parts of KVCache at {name}"] = (await self._metrics(url)).sum(_WRONG)
        for name, url in nodes:
            with contextlib.suppress(Silent):
                found[f"broken ledgers of the node {name}"] = (await self._metrics(url)).sum(_FAULTS)
        return {what: number for what, number in found.items() if number}

    async def held(self) -> dict[str, float]:
        """What anybody holds of requests: empty when all is idle. Raises Silent."""
        gateway = await self._metrics(self.site.gateway_url)
        found = {
            "requests in flight at the gateway": gateway.sum("prfaas_inflight_requests"),
            "prompts that wait at the gateway": gateway.sum("prfaas_waiting_prompts"),
        }
        for name, member in (await self._members()).items():
            for what in ("inflight", "landings"):
                found[f"{what} of {name} at the gateway"] = member[what]
        for instance in self.site.topology.instances:
            node = await self._metrics(instance.kvnode_url)
            found[f"landings at the node {instance.name}"] = node.sum("prfaas_landings")
            found[f"bytes of the arena of {instance.name}"] = node.sum("prfaas_arena_bytes", state="used")
            engine = await self._metrics(instance.engine_url)
            found[f"requests in the engine {instance.name}"] = sum(engine.sum(name) for name in _ENGINE_BUSY)
        if self.site.control is not None:
            for link in await asyncio.to_thread(wan.links, self.site.control):
                found[f"bytes on the link from {link['from']} to {link['to']}"] = link["queue_bytes"]
        return {what: number for what, number in found.items() if number}

    async def missing(self) -> list[str]:
        """Who does not work yet, and whose lanes are down; empty when all is as it should be."""
        try:
            gateway = await self._json(f"{self.site.gateway_url}/health")
            instances = self.site.topology.instances
            nodes = {instance.name: await self._json(f"{instance.kvnode_url}/health") for instance in instances}
        except Silent as silent:
            return [str(silent)]
        return not_ready(gateway, nodes)

    async def _members(self) -> dict[str, Any]:
        return dict((await self._json(f"{self.site.gateway_url}/health"))["instances"])

    async def _metrics(self, url: str) -> Metrics:
        text = (await self._get(f"{url}/metrics")).decode(errors="replace")
        samples: dict[str, list[tuple[Mapping[str, str], float]]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                samples.setdefault(sample.name, []).append((sample.labels, sample.value))
        return Metrics(samples)

    async def _json(self, url: str) -> dict[str, Any]:
        found: dict[str, Any] = orjson.loads(await self._get(url))
        return found

    async def _get(self, url: str) -> bytes:
        """Also of an answer that says that something is not well."""
        try:
            async with asyncio.timeout(TIMEOUT_S), self.session.get(url) as response:
                return await response.read()
        except (aiohttp.ClientError, OSError) as error:
            raise Silent(f"no answer at {url}: {type(error).__name__}") from None
