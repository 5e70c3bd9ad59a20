"""A fake's HTTP side: a real server on a port of 127.0.0.1, which can be killed like a process."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from aiohttp import web


class FakeServer:
    """Subclasses give `routes` or the whole `application`. Use as an async context manager, or `start` and `kill`."""

    def __init__(self) -> None:
        self.port = 0
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """Base URL, once started."""
        return f"http://127.0.0.1:{self.port}"

    def routes(self) -> list[web.RouteDef]:
        """What it answers."""
        raise NotImplementedError

    def application(self) -> web.Application:
        """With its routes, and no limit to a body."""
        app = web.Application(client_max_size=1 << 30)
        app.add_routes(self.routes())
        return app

    async def start(self) -> None:
        """Listen; after a `kill`, on the same port again."""
        # Without handler cancellation a fake engine would not notice a client that goes away.
        app = self.application()
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.05)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def kill(self) -> None:
        """Stop listening and cut every connection."""
        if self._runner is not None:
            runner, self._runner = self._runner, None
            await runner.cleanup()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.kill()
