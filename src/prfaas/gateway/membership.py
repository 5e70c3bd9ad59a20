"""Keeps everybody who watches instances at one topology: scheduler, probes, link feed. The topology is the file's, with
the duties that the scheduler has given since."""

from __future__ import annotations

import logging

from prfaas.core.control import events as e
from prfaas.core.topology import Duty, Topology
from prfaas.deployment.model import Deployment
from prfaas.gateway.driver import Driver
from prfaas.gateway.service import Service
from prfaas.gateway.upstream.link_feed import LinkFeed
from prfaas.gateway.upstream.probes import Prober
from prfaas.scenario.served_policy import ServedPolicy

logger = logging.getLogger("prfaas.gateway")


class Membership:
    """From `start` to `stop`. An instance that comes is watched at once, and used when it has answered; one that goes
    takes no new request."""

    def __init__(self, service: Service, driver: Driver, prober: Prober, link_feed: LinkFeed) -> None:
        self._service = service
        self._driver = driver
        self._prober = prober
        self._link_feed = link_feed
        #: As the file has it.
        self._written = service.scheduler.fleet.topology
        driver.convert = self.convert

    async def start(self) -> None:
        topology = self._service.scheduler.fleet.topology
        await self._prober.start(topology.instances)
        self._link_feed.watch(topology.senders)

    def change(self, topology: Topology, policy: ServedPolicy, deployment: Deployment) -> None:
        """The deployment file is this one from now on. An instance of which it says what it said before keeps the duty
        that it was given since."""
        self._service.deployment = deployment
        now = self._service.scheduler.fleet.topology
        before, self._written = self._written, topology
        self._take(keep_given_duties(before, now, topology))
        self._driver.feed(e.PolicyChanged(policy.routes()))

    def convert(self, instance: str, duty: Duty) -> None:
        """Give it another duty: for all whom this gateway sends there, since engine and node can do both."""
        scheduler = self._service.scheduler
        obstacle = self._obstacle(instance, duty)
        if obstacle:
            self._driver.feed(e.ConversionRefused(instance, obstacle))
        else:
            self._take(scheduler.fleet.topology.with_duty(instance, duty))

    def file_refused(self, is_refused: bool) -> None:
        """The file that the deployment is read from can be served, or not."""
        self._service.metrics.gauge("prfaas_gateway_deployment_refused").set(is_refused)

    async def stop(self) -> None:
        await self._link_feed.stop()
        await self._prober.stop()

    def _take(self, topology: Topology) -> None:
        self._driver.feed(e.TopologyChanged(topology))
        self._prober.watch(topology.instances)
        self._link_feed.watch(topology.senders)

    def _obstacle(self, name: str, duty: Duty) -> str:
        fleet = self._service.scheduler.fleet
        member = next((member for member in fleet.topology.instances if member.name == name), None)
        if member is None:
            return "it has left"
        if member.cluster not in fleet.topology.convertible:
            return f"clusters.{member.cluster}.convertible is not set"
        decoders = {i.name for i in fleet.topology.instances_of(member.cluster) if i.duty.decodes} - {name}
        if duty is Duty.PREFILL and not decoders:
            return "nothing else decodes in its cluster"
        if duty is Duty.PREFILL and decoders <= fleet.instances[name].cut_off_from:
            return "its node has no lane to any instance that decodes"
        return ""


def keep_given_duties(written_before: Topology, now: Topology, written: Topology) -> Topology:
    """`written`, with the duties of `now` where those differ from `written_before` and the file says nothing new. If
    nothing in a cluster would decode then, the file has its way."""
    before = {instance.name: instance for instance in written_before.instances}
    given = {i.name: i.duty for i in now.instances if i.name in before and i.duty is not before[i.name].duty}
    kept = written
    # Those that decode first, so that somebody does after every step.
    for instance in sorted(written.instances, key=lambda i: not given.get(i.name, i.duty).decodes):
        duty = given.get(instance.name)
        if duty is None or instance != before[instance.name] or instance.cluster not in written.convertible:
            continue
        try:
            kept = kept.with_duty(instance.name, duty)
        except AssertionError:
            logger.info("%s has the duty that the file says again: nothing else would decode", instance.name)
    return kept
