"""The `prfaas wan` command: the process, and its orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from pathlib import Path

import uvloop
from aiohttp import web

from prfaas.deployment.fronts import Address, EmulatedLink, control_address, emulated_links
from prfaas.deployment.load import DeploymentError, read_deployment
from prfaas.deployment.watch import FileWatch, file_stamp
from prfaas.wan.control import Control
from prfaas.wan.network import Network

logger = logging.getLogger("prfaas.wan")


def read_links(path: Path) -> tuple[Address, tuple[EmulatedLink, ...]]:
    """Address of the control, and what is emulated. Raises DeploymentError, also if the file wants nothing."""
    deployment, _ = read_deployment(path)
    control = control_address(deployment)
    if control is None:
        raise DeploymentError(f"{path}: no link has emulated_at; add it to the links that shall be emulated")
    return control, emulated_links(deployment)


def run(path: Path, control: Address | None, seed: int) -> int:
    """Serve until SIGINT or SIGTERM. Returns 0; 1 if an address is not to be had. Raises DeploymentError."""
    stamp = file_stamp(path)
    derived, links = read_links(path)
    try:
        uvloop.run(_serve(path, links, control or derived, seed, stamp))
    except OSError as error:
        logger.error("the emulated network cannot start: %s", error)
        return 1
    return 0


async def _serve(
    path: Path, links: tuple[EmulatedLink, ...], control: Address, seed: int, stamp: tuple[int, int, int] | None
) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(ValueError, RuntimeError):
            loop.add_signal_handler(number, stop.set)
    network = Network(loop, seed)
    runner = web.AppRunner(Control(network).application(), access_log=None)
    try:
        network.follow(links)
        await runner.setup()
        await web.TCPSite(runner, *control).start()
        logger.info("control on %s:%d", *control)
        for link in network.links.values():
            for front in link.fronts.values():
                logger.info("%s to %s at %s:%d", link.source, front.name, *front.listen)
        watch = FileWatch(path, read_links, lambda read: network.follow(read[1]), logger, stamp=stamp)
        task = asyncio.create_task(watch.run())
        await stop.wait()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    finally:
        await runner.cleanup()
        await network.stop()
