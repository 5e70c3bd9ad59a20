"""Membership from the deployment file: instances, links and policy follow it while the gateway runs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from prfaas.core.topology import Topology, topology_change
from prfaas.deployment.model import Deployment
from prfaas.deployment.reload import Setting, keep_settings
from prfaas.deployment.topology import topology_of
from prfaas.deployment.watch import POLL_S, FileWatch, Stamp, file_stamp
from prfaas.scenario.served_policy import ServedPolicy, routing_threshold

logger = logging.getLogger("prfaas.gateway")

#: A running gateway keeps them: its tokenizer, listener, session, exporter and terms of transfer are made of
#: them, and nodes keep their hash too.
FIXED: Final[tuple[Setting, ...]] = (
    ("model", "name"),
    ("model", "path"),
    ("model", "max_model_tokens"),
    ("gateway", "host"),
    ("gateway", "port"),
    ("gateway", "connect_timeout"),
    ("gateway", "telemetry"),
    ("gateway", "record"),
    ("transfer", "deadline"),
    ("transfer", "lease"),
    ("transfer", "hash"),
)

OnChange = Callable[[Topology, ServedPolicy, Deployment], None]


@dataclass(frozen=True, slots=True)
class Served:
    """A deployment that can be served, and what its policy comes to. `stamp` is its file's."""

    deployment: Deployment
    policy: ServedPolicy
    stamp: Stamp = field(default=None, compare=False)


def read_served(path: Path) -> Served:
    """Raises DeploymentError. Takes as long as a plan does if the policy is `prfaas`."""
    # Here, so that whoever embeds a gateway with a deployment of its own needs no YAML.
    from prfaas.deployment.load import load_deployment

    stamp = file_stamp(path)
    deployment = load_deployment(path)
    return Served(deployment, routing_threshold(deployment, path), stamp)


class FileDiscovery:
    """Calls `on_change(topology, policy, deployment)` in the event loop when the file means something else than what is
    served. `serving` is what was read at the start; what cannot change is kept from it, and told. `on_refused` is told
    after every reading whether the file was refused."""

    def __init__(
        self,
        path: Path,
        serving: Served,
        on_change: OnChange,
        *,
        on_refused: Callable[[bool], None] = lambda is_refused: None,
        poll_s: float = POLL_S,
    ) -> None:
        self._serving = serving
        self._on_change = on_change
        self._watch = FileWatch(
            path, read_served, self._take, logger, stamp=serving.stamp, poll_s=poll_s, on_refused=on_refused
        )

    def poke(self) -> None:
        """Read the file now, as SIGHUP does."""
        self._watch.poke()

    async def run(self) -> None:
        """Watch until this task is cancelled."""
        await self._watch.run()

    def _take(self, read: Served) -> None:
        before = self._serving
        deployment, kept = keep_settings(before.deployment, read.deployment, FIXED)
        if kept:
            logger.warning("these settings need a restart and stay as they were: %s", ", ".join(kept))
        self._serving = Served(deployment, read.policy)
        if self._serving == before:
            logger.info("the deployment file was read again; nothing of it changes what is served")
            return
        topology = topology_of(deployment)
        _tell(topology_of(before.deployment), topology)
        if read.policy != before.policy:
            logger.info("%s", read.policy.why)
        self._on_change(topology, read.policy, deployment)


def _tell(before: Topology, after: Topology) -> None:
    change = topology_change(before, after)
    for verb, instances in (("left", change.removed), ("came", change.added)):
        for instance in instances:
            logger.info("instance %s %s: duty=%s engine=%s", instance.name, verb, instance.duty, instance.engine_url)
    for instance in change.converted:
        logger.info("instance %s has another duty now: %s", instance.name, instance.duty)
