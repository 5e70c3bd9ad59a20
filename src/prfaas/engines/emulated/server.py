"""`prfaas emulate`: engines of a deployment file, all in one process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from contextlib import AsyncExitStack

import uvloop
from aiohttp import web

from prfaas.engines.emulated.app import EmulatedApp
from prfaas.engines.emulated.clock import LoopKernel
from prfaas.engines.emulated.configure import Emulated, EmulatedInstance
from prfaas.engines.emulated.engine import EmulatedEngine
from prfaas.engines.emulated.texts import Texts
from prfaas.large_buffers import return_large_buffers

logger = logging.getLogger("prfaas.emulated")

#: A client that hangs on does not keep the process from ending.
SHUTDOWN_S = 0.5


def run(emulated: Emulated) -> int:
    """Serve until SIGINT or SIGTERM. Returns 0, or 1 if an address is not to be had."""
    return_large_buffers()
    try:
        uvloop.run(serve(emulated))
    except OSError as error:
        logger.error("cannot start: %s", error)
        return 1
    return 0


async def serve(emulated: Emulated, ready: asyncio.Event | None = None) -> None:
    """Until this task is cancelled or a signal comes. Raises OSError if an address is not to be had."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(ValueError, RuntimeError):
            loop.add_signal_handler(number, stop.set)
    texts, kernel = Texts(emulated.model_dir), LoopKernel(loop)
    async with AsyncExitStack() as stack:
        for instance in emulated.instances:
            await _start(stack, instance, emulated, texts, kernel)
        names = ", ".join(f"{each.name} on {each.host}:{each.port}" for each in emulated.instances)
        logger.info("emulating %s as %s", names, emulated.model_name)
        if ready is not None:
            ready.set()
        await stop.wait()


async def _start(
    stack: AsyncExitStack, instance: EmulatedInstance, emulated: Emulated, texts: Texts, kernel: LoopKernel
) -> None:
    engine = EmulatedEngine(instance, kernel)
    stack.callback(engine.close)
    attached = asyncio.create_task(engine.stay_attached())
    stack.push_async_callback(_ended, attached)
    app = EmulatedApp(engine, texts, emulated.model_name, emulated.max_model_tokens, emulated.stream_interval)
    runner = web.AppRunner(app.application(), access_log=None, handler_cancellation=True, shutdown_timeout=SHUTDOWN_S)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, instance.host, instance.port).start()


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
