"""The KV node as a process: arena, listeners, event loop, and their orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import uvloop
from aiohttp import web

from prfaas.deployment.watch import FileWatch, Stamp
from prfaas.kvnode.config import KVNodeConfig
from prfaas.kvnode.engine_path import EnginePath
from prfaas.kvnode.engine_socket import serve_engines
from prfaas.kvnode.http import LINKS, Changes, Control
from prfaas.kvnode.metrics import NodeMetrics
from prfaas.kvnode.node import KVNode
from prfaas.transport.arena import Arena
from prfaas.transport.credentials import BadCredentials, Credentials
from prfaas.transport.listening import ListenAddress
from prfaas.transport.secure import LaneSecurity

logger = logging.getLogger("prfaas.kvnode")


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A file that a node's settings came from, its stamp before, and how to read them again: None if the node is not in
    it any more."""

    path: Path
    stamp: Stamp
    read: Callable[[Path], KVNodeConfig | None]


def run(config: KVNodeConfig, file: ConfigFile | None = None) -> int:
    """Serve until SIGINT or SIGTERM; peers follow `file`. Returns 0, or 1 with one clear line on standard error."""
    try:
        uvloop.run(serve(config, file=file))
    except (OSError, BadCredentials) as error:
        logger.error("KV node %s cannot start: %s", config.name, error)
        return 1
    return 0


async def serve(config: KVNodeConfig, ready: asyncio.Event | None = None, *, file: ConfigFile | None = None) -> None:
    """Run a node until this task is cancelled or a signal comes. Raises OSError if an address or the arena is not to
    be had."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(ValueError, RuntimeError):
            loop.add_signal_handler(number, stop.set)
    security = lane_security(config)
    async with AsyncExitStack() as stack:
        # What somebody else may have comes first: the arena is expensive, and nobody is asked to wait for it.
        control = stack.enter_context(closing(ListenAddress(config.http_host, config.http_port, "--http")))
        lanes = stack.enter_context(closing(lanes_address(config.lanes_host, config.lanes_port)))
        engine_path = stack.enter_context(closing(EnginePath(config.socket_path)))
        sweep_arenas(config.name)
        arena = stack.enter_context(Arena(arena_path(config.name), config.arena_bytes, create=True))
        lanes.listen()
        control.listen()
        changes = Changes(loop)
        node = KVNode(
            config,
            arena,
            lanes.sockets[0],
            security=security,
            on_change=changes.notify,
            on_link_change=partial(changes.notify, LINKS),
        )
        runner = web.AppRunner(Control(node, changes, NodeMetrics(node)).application(), access_log=None)
        await runner.setup()
        engines = await serve_engines(node, engine_path.listener)
        try:
            for sock in control.sockets:
                await web.SockSite(runner, sock).start()
            node.start()
            logger.info("node %s: control on %s:%d, lanes on %s:%d, engines at %s, arena %d MiB", config.name,
                        config.http_host, config.http_port, *node.inbound.address, config.socket_path,
                        config.arena_bytes >> 20)  # fmt: skip
            if ready is not None:
                ready.set()
            async with _following(node, file):
                await stop.wait()
        finally:
            engines.close()
            await runner.cleanup()
            node.stop()


@asynccontextmanager
async def _following(node: KVNode, file: ConfigFile | None) -> AsyncIterator[None]:
    if file is None:
        yield
        return

    def refused(is_refused: bool) -> None:
        node.is_file_refused = is_refused

    watch = FileWatch(file.path, file.read, partial(take_over, node), logger, stamp=file.stamp, on_refused=refused)
    task = asyncio.create_task(watch.run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


#: Fields of a node's settings that stay as they were at the start, and what they are called in the deployment file.
_FIXED: Final = {
    "http_host": "endpoints.kvnode",
    "http_port": "endpoints.kvnode",
    "lanes_host": "endpoints.lanes",
    "lanes_port": "endpoints.lanes",
    "arena_bytes": "transfer.arena",
    "limits": "transfer.lanes, chunk, congestion or pacing, or bandwidth or rtt of links",
    "hash": "transfer.hash",
    "tls": "transfer.encryption or tls",
    "identity": "identity",
}


def take_over(node: KVNode, read: KVNodeConfig | None) -> None:
    """Let a running node follow its file: peers and their identities. What else has changed needs a restart; that is
    told."""
    if read is None:
        logger.warning(
            "node %s is not in the deployment file any more: it sends to nobody and lets nobody in; stop it"
            " when the gateway's /health no longer lists it",
            node.config.name,
        )
        node.follow({}, {})
        return
    kept = dict.fromkeys(text for name, text in _FIXED.items() if getattr(read, name) != getattr(node.config, name))
    if kept:
        logger.warning("these settings need a restart and stay as they were: %s", "; ".join(kept))
    node.follow(read.peers, read.identities)


def lane_security(config: KVNodeConfig) -> LaneSecurity | None:
    """From the certificate files; None for plain lanes. Raises BadCredentials, also if they are another node's."""
    if config.tls is None:
        logger.warning(
            "node %s: lanes are plain: whoever sees the network sees and can change the KVCache", config.name
        )
        return None
    credentials = Credentials(config.tls)
    if config.identity and config.identity not in credentials.identities:
        shown = ", ".join(sorted(credentials.identities)) or "nothing"
        raise BadCredentials(
            f"{config.tls.cert}: carries {shown}, but the certificate of {config.name} must carry {config.identity!r};"
            " see clusters.*.identity"
        )
    return LaneSecurity(credentials, config.identities)


def lanes_address(host: str, port: int) -> ListenAddress:
    """Where lanes arrive: one address, also of a name that has several."""
    return ListenAddress(host, port, "--lanes", socket.AF_INET6 if ":" in host else socket.AF_INET)


def _shared_memory() -> Path:
    directory = Path("/dev/shm")
    return directory if directory.is_dir() else Path("/tmp")


def arena_path(name: str) -> str:
    """A path of its own for every start of every node; the process id says whose it is."""
    return str(_shared_memory() / f"prfaas-{name}-{os.getpid()}-{secrets.token_hex(4)}.arena")


def sweep_arenas(name: str) -> None:
    """Remove what earlier nodes of this name left when they were killed; files of living processes stay."""
    for path in _shared_memory().glob(f"prfaas-{name}-*-*.arena"):
        owner = path.name.rsplit("-", 2)[1]
        if owner.isdigit() and not Path("/proc", owner).exists():
            with contextlib.suppress(OSError):
                path.unlink()
