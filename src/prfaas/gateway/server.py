"""Runs the gateway process: session, probes, HTTP server, and their orderly end."""

from __future__ import annotations

import asyncio
import logging
import socket
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import uvicorn
import uvloop

from prfaas.deployment.model import Deployment
from prfaas.gateway.app import GatewayApp
from prfaas.gateway.discovery.file import FileDiscovery, Served, read_served
from prfaas.gateway.driver import Driver
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

#: Streams in progress get this long to end when the gateway is told to stop.
DRAIN_S: Final = 30
#: Landings of cancelled requests are given back within this.
CLEAN_UP_S: Final = 5.0
#: Who closes an idle connection first may meet a request that is on its way over it, which then fails. So clients close
#: first: httpx keeps an idle connection for 5 s, aiohttp for 15, nginx for 60, aiperf for 300.
IDLE_CONNECTION_S: Final = 310
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
        config = uvicorn.Config(
            app,
            host=asked[0],
            port=asked[1],
            http="httptools",
            ws="none",
            proxy_headers=False,
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=DRAIN_S,
            timeout_keep_alive=IDLE_CONNECTION_S,
        )
        if address is not None:
            address.listen()
            sockets = address.sockets
        if policy is not None:
            logger.info("%s", policy.why)
        logger.info("listening host=%s port=%d model=%s", config.host, config.port, deployment.served_model.name)
        await uvicorn.Server(config).serve(sockets)


def run(deployment_path: Path, *, host: str | None = None, port: int | None = None) -> None:
    """`prfaas gateway FILE`: load the deployment and serve it. Raises DeploymentError
    for a file or model directory that cannot be used, and what `serve` raises."""
    # Here, so that whoever embeds `serve` with a deployment of its own needs no YAML.
    from prfaas.deployment.load import resolve_model_dir

    served = read_served(deployment_path)
    deployment, policy, follow = served.deployment, served.policy, (deployment_path, served)
    model_dir = resolve_model_dir(deployment, deployment_path)
    collect_rarely()
    return_large_buffers()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(deployment, model_dir, host=host, port=port, policy=policy, follow=follow))
