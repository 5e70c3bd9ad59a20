"""HTTP control of `prfaas wan`, as docs/wan.md states it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiohttp import web

from prfaas.core.errors import PrfaasError
from prfaas.wan.figures import WanMetrics
from prfaas.wan.network import Link, Network, NoSuchLink
from prfaas.wan.settings import BadSetting, as_values, changed

#: A handful of settings.
MAX_BODY_BYTES: Final = 16 << 10

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def in_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every refusal says what is wrong, in JSON."""
    try:
        return await handler(request)
    except NoSuchLink as error:
        return refusal(404, "unknown", str(error))
    except PrfaasError as error:
        return refusal(400, "bad_request", str(error))
    except web.HTTPException as error:
        return refusal(error.status, "bad_request", f"{request.method} {request.path}: {error.reason}")


def refusal(status: int, code: str, message: str) -> web.Response:
    return web.json_response({"error": {"code": code, "message": message}}, status=status)


class Control:
    """Handlers over one network."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._metrics = WanMetrics(network)

    def application(self) -> web.Application:
        app = web.Application(middlewares=[in_json], client_max_size=MAX_BODY_BYTES)
        app.router.add_get("/health", self.health)
        app.router.add_get("/links", self.links)
        app.router.add_patch("/links/{source}/{target}", self.change)
        app.router.add_get("/metrics", self.metrics)
        return app

    async def health(self, request: web.Request) -> web.Response:
        """It runs, and every front listens or refuses as it is told to."""
        return web.json_response({"status": "ok", "links": len(self._network.links)})

    async def links(self, request: web.Request) -> web.Response:
        return web.json_response({"links": [self.described(link) for link in self._network.links.values()]})

    async def change(self, request: web.Request) -> web.Response:
        """Answers what the link is now."""
        link = self._network.link(request.match_info["source"], request.match_info["target"])
        try:
            values = json.loads(await request.read())
        except ValueError:
            values = None
        if not isinstance(values, dict):
            raise BadSetting('the body must be a JSON object such as {"bandwidth": "10Gbps", "rtt": "20ms"}')
        self._network.change(link, changed(link.settings, values))
        return web.json_response(self.described(link))

    async def metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self._metrics.render(), headers={"content-type": WanMetrics.content_type})

    def described(self, link: Link) -> dict[str, Any]:
        """Settings and figures."""
        fronts = {name: f"{front.listen[0]}:{front.listen[1]}" for name, front in link.fronts.items()}
        ends = {"from": link.source, "to": link.target}
        return {**ends, **as_values(link.settings), **link.figures(), "fronts": fronts}
