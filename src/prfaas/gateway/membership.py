"""Keeps everybody who watches instances at one topology: scheduler, probes, link feed."""

from __future__ import annotations

from prfaas.core.control import events as e
from prfaas.core.topology import Topology
from prfaas.deployment.model import Deployment
from prfaas.gateway.driver import Driver
from prfaas.gateway.service import Service
from prfaas.gateway.upstream.link_feed import LinkFeed
from prfaas.gateway.upstream.probes import Prober
from prfaas.scenario.served_policy import ServedPolicy


class Membership:
    """From `start` to `stop`. An instance that comes is watched at once, and used when it has answered; one that goes
    takes no new request."""

    def __init__(self, service: Service, driver: Driver, prober: Prober, link_feed: LinkFeed) -> None:
        self._service = service
        self._driver = driver
        self._prober = prober
        self._link_feed = link_feed

    async def start(self) -> None:
        topology = self._service.scheduler.fleet.topology
        await self._prober.start(topology.instances)
        self._link_feed.watch(topology.senders)

    def change(self, topology: Topology, policy: ServedPolicy, deployment: Deployment) -> None:
        """The deployment is this one from now on."""
        self._service.deployment = deployment
        self._driver.feed(e.TopologyChanged(topology))
        self._driver.feed(e.PolicyChanged(policy.offload, policy.threshold_tokens, policy.model, policy.max_ttft_s))
        self._prober.watch(topology.instances)
        self._link_feed.watch(topology.senders)

    def file_refused(self, is_refused: bool) -> None:
        """The file that the deployment is read from can be served, or not."""
        self._service.metrics.gauge("prfaas_gateway_deployment_refused").set(is_refused)

    async def stop(self) -> None:
        await self._link_feed.stop()
        await self._prober.stop()
