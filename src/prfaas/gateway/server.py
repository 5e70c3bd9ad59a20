"""Runs the gateway process: session, probes, HTTP server, and their orderly end."""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import uvicorn
import uvloop

from prfaas.deployment.model import Deployment, Gateway
from prfaas.gateway.app import GatewayApp
from prfaas.gateway.discovery.file import FileDiscovery, Served, read_served
from prfaas.gateway.driver import Driver
from prfaas.gateway.front.connection import FrontConnection
from prfaas.gateway.front.doorkeeper import Doorkeeper
from prfaas.gateway.front.limits import front_limits, num_descriptors, raise_descriptor_limit
from prfaas.gateway.heap import collect_rarely
from prfaas.gateway.membership import Membership
from prfaas.gateway.service import Service, build_service
from prfaas.gateway.upstream.clients import Engines, open_session
from prfaas.gateway.upstream.link_feed import LinkFeed
from prfaas.gateway.upstream.nodes import Nodes
from prfaas.gateway.upstream.probes import PROBE_INTERVAL_S, Prober
from prfaas.large_buffers import return_large_buffers
from prfaas.scenario.served_policy import ServedPolicy
from prfaas.transport.listening import ListenAddress

if TYPE_CHECKING:
    from prfaas.observe.otlp import OtlpExporter

logger = logging.getLogger("prfaas.gateway")

STOP_LOOK_S: Final = 0.1
#: Requests that are cut off at the end get this long to say so to their clients.
LAST_WORDS_S: Final = 2.0
#: And their last bytes so many looks to leave.
LAST_BYTES_LOOKS: Final = 10
#: Landings of cancelled requests are given back within this.
CLEAN_UP_S: Final = 5.0
#: And so long for the last spans.
SPANS_S: Final = 3.0


@asynccontextmanager
async def running(service: Service, probe_interval_s: float = PROBE_INTERVAL_S) -> AsyncIterator[GatewayApp]:
    """The application with its session open and its fleet probed."""
    exporter = _exporter(service)
    service.span_sink = exporter
    async with open_session(service.deployment.gateway.connect_timeout) as session:
        engines, nodes = Engines(session), Nodes(session)
        driver = Driver(service, engines, nodes)
        prober = Prober(service.fleet, driver.feed, engines, nodes, service.metrics, probe_interval_s)
        link_feed = LinkFeed(driver.feed, nodes, service.metrics)
        membership = Membership(service, driver, prober, link_feed)
        await membership.start()
        try:
            yield GatewayApp(service, driver, link_feed, membership)
        finally:
            await membership.stop()
            await service.background.drain(CLEAN_UP_S)
            driver.stop()
            if exporter is not None:
                await asyncio.to_thread(exporter.close, SPANS_S)


class Server(uvicorn.Server):
    """Stops in steps: `/ready` says no; then nothing new is taken; then what still goes on ends with an error event."""

    def __init__(self, config: uvicorn.Config, app: GatewayApp, notice_s: float) -> None:
        super().__init__(config)
        self._app = app
        self._notice_s = notice_s

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """A second Ctrl-C ends every wait."""
        self._app.is_stopping = True
        logger.info("stopping inflight=%d", self._app.num_inflight)
        for _ in range(math.ceil(self._notice_s / STOP_LOOK_S)):
            if not self.force_exit:
                await asyncio.sleep(STOP_LOOK_S)
        await super().shutdown(sockets)
        if self.force_exit:
            for task in self.server_state.tasks:
                task.cancel()
        # Those that were cancelled tell their clients.
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks, timeout=LAST_WORDS_S)
        for _ in range(LAST_BYTES_LOOKS):
            if self.server_state.connections:
                await asyncio.sleep(STOP_LOOK_S)
        for connection in list(self.server_state.connections):
            # To close is to wait for clients that may take nothing.
            connection.transport.abort()


@asynccontextmanager
async def front(app: GatewayApp, settings: Gateway) -> AsyncIterator[uvicorn.Config]:
    """What uvicorn shall be told to serve clients within limits, which are kept as long as this lasts."""
    doorkeeper = Doorkeeper(front_limits(settings, num_descriptors()), app.note_closed, lambda: app.is_stopping)
    app.show_connections(lambda: len(doorkeeper))
    watching = asyncio.create_task(doorkeeper.watch())
    try:
        yield uvicorn.Config(
            app,
            http=cast(type[asyncio.Protocol], partial(FrontConnection, doorkeeper)),
            ws="none",
            proxy_headers=False,
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=math.ceil(settings.stop_grace),
            timeout_keep_alive=math.ceil(settings.front.idle_timeout),
        )
    finally:
        watching.cancel()


def _exporter(service: Service) -> OtlpExporter | None:
    """Started. Raises PrfaasError if OpenTelemetry is not installed."""
    endpoint = service.deployment.gateway.telemetry.otlp_endpoint
    if endpoint is None:
        return None
    # Here, because OpenTelemetry is an extra that others need not have.
    from prfaas.observe.otlp import OtlpExporter

    exporter = OtlpExporter(endpoint, service.metrics, "prfaas-gateway", uuid.uuid4().hex)
    exporter.start()
    return exporter


async def serve(
    deployment: Deployment,
    model_dir: Path,
    *,
    host: str | None = None,
    port: int | None = None,
    sockets: list[socket.socket] | None = None,
    policy: ServedPolicy | None = None,
    follow: tuple[Path, Served] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM. `sockets` are listening ones to use instead of host and port. The kind `prfaas`
    needs `policy`, see `build_service`. With `follow`, the deployment's file and what was read of it, instances, links
    and policy change with the file. Raises OSError if the address is taken, OSError or ValueError if the tokenizer of
    the model directory is broken, PrfaasError if OpenTelemetry is missing and asked for."""
    settings = deployment.gateway
    asked = (host or settings.host, settings.port if port is None else port)
    # Before anything is read or started: a process that cannot have its address must say only that.
    address = None if sockets else ListenAddress(*asked, "gateway.host or gateway.port")
    async with AsyncExitStack() as stack:
        if address is not None:
            stack.callback(address.close)
        app = await stack.enter_async_context(running(build_service(deployment, model_dir, policy)))
        if follow is not None:
            discovery = FileDiscovery(*follow, app.membership.change, on_refused=app.membership.file_refused)
            stack.callback(asyncio.create_task(discovery.run()).cancel)
        config = await stack.enter_async_context(front(app, settings))
        config.host, config.port = asked
        if address is not None:
            address.listen()
            sockets = address.sockets
        if policy is not None:
            logger.info("%s", policy.why)
        logger.info("listening host=%s port=%d model=%s", config.host, config.port, deployment.served_model.name)
        await Server(config, app, settings.stop_notice).serve(sockets)


def run(deployment_path: Path, *, host: str | None = None, port: int | None = None) -> None:
    """`prfaas gateway FILE`: load the deployment and serve it. Raises DeploymentError
    for a file or model directory that cannot be used, and what `serve` raises."""
    # Here, so that whoever embeds `serve` with a deployment of its own needs no YAML.
    from prfaas.deployment.load import resolve_model_dir

    served = read_served(deployment_path)
    deployment, policy, follow = served.deployment, served.policy, (deployment_path, served)
    model_dir = resolve_model_dir(deployment, deployment_path)
    raise_descriptor_limit()
    collect_rarely()
    return_large_buffers()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(deployment, model_dir, host=host, port=port, policy=policy, follow=follow))
