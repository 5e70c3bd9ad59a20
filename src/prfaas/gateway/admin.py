"""Everything but inference: models, health, metrics, stories."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Final
from urllib.parse import parse_qs

import msgspec
import orjson
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from prfaas.core.control.instance import Instance
from prfaas.core.control.view import SchedulerView, view
from prfaas.gateway.api.errors import ApiError, bad_request
from prfaas.gateway.api.http import JSON, Response
from prfaas.gateway.service import Service
from prfaas.gateway.upstream.link_feed import LinkFeed
from prfaas.observe.scheduler_metrics import SchedulerMetrics

STORY_PREFIX: Final = "/prfaas/requests/"
MODEL_PREFIX: Final = "/v1/models/"
MAX_STORY_WAIT_S: Final = 60.0
TRACE_PATH: Final = "/prfaas/trace"
MAX_TRACE_PAGE: Final = 1_000
#: A view takes milliseconds, and hundreds of them where instances are many.
VIEW_EVERY_S: Final = 0.5


class Admin:
    """Answers GET routes, and HEAD, of which the server leaves the body out."""

    def __init__(self, service: Service, link_feed: LinkFeed, is_stopping: Callable[[], bool]) -> None:
        self._service = service
        self._is_stopping = is_stopping
        self._link_feed = link_feed
        self._view: SchedulerView | None = None
        self._viewed_s = 0.0
        self._viewed_policy = service.scheduler.policy
        self._scheduler_metrics = SchedulerMetrics(service.metrics)
        self._created = int(time.time())
        self._routes: dict[str, Callable[[Response], Awaitable[None]]] = {
            "/v1/models": self._models,
            "/health": self._health,
            "/live": self._live,
            "/ready": self._ready,
            "/version": self._version,
            "/metrics": self._metrics,
            "/prfaas/links": self._links,
            "/prfaas/scheduler": self._scheduler,
        }

    async def answer(self, method: str, path: str, query: bytes, response: Response) -> None:
        """Answer one request. Raises ApiError 404 or 405."""
        route = self._routes.get(path)
        by_name = path.startswith((STORY_PREFIX, MODEL_PREFIX))
        if route is None and not by_name and path != TRACE_PATH:
            raise ApiError(404, f"there is no route {path[:200]}", code="not_found")
        if method not in ("GET", "HEAD"):
            raise ApiError(405, f"{path[:200]} takes GET", code="method_not_allowed", allow="GET, HEAD")
        if path == TRACE_PATH:
            await self._trace(response, query)
        elif route is not None:
            await route(response)
        elif path.startswith(STORY_PREFIX):
            await self._story(response, path.removeprefix(STORY_PREFIX), query)
        else:
            await self._model(response, path.removeprefix(MODEL_PREFIX))

    async def _models(self, response: Response) -> None:
        await _json(response, {"object": "list", "data": [self._card()]})

    async def _model(self, response: Response, name: str) -> None:
        if name != self._service.model.name:
            raise ApiError(404, f"the model `{name[:128]}` does not exist", code="model_not_found", param="model")
        await _json(response, self._card())

    def _card(self) -> dict[str, object]:
        model = self._service.model
        return {
            "id": model.name,
            "object": "model",
            "created": self._created,
            "owned_by": "prfaas",
            "max_model_len": model.max_model_tokens,
        }

    async def _health(self, response: Response) -> None:
        fleet = self._service.fleet
        instances = {instance.name: _shown(instance) for instance in fleet.all}
        status = "ok" if fleet.healthy else "no_healthy_engine"
        await _json(response, {"status": status, "instances": instances}, 200 if fleet.healthy else 503)

    async def _ready(self, response: Response) -> None:
        if self._is_stopping():
            await _json(response, {"status": "stopping"}, 503)
        else:
            await self._health(response)

    async def _live(self, response: Response) -> None:
        await _json(response, {"status": "ok"})

    async def _version(self, response: Response) -> None:
        await _json(response, {"version": package_version()})

    def _seen(self) -> SchedulerView:
        now_s, scheduler = time.monotonic(), self._service.scheduler
        is_old = now_s - self._viewed_s >= VIEW_EVERY_S or scheduler.policy is not self._viewed_policy
        if self._view is None or is_old:
            self._view, self._viewed_s, self._viewed_policy = view(scheduler, now_s), now_s, scheduler.policy
        return self._view

    async def _scheduler(self, response: Response) -> None:
        await _json(response, asdict(self._seen()))

    async def _metrics(self, response: Response) -> None:
        self._scheduler_metrics.show(self._seen())
        body = generate_latest(self._service.metrics.registry)
        await response.whole(200, body, CONTENT_TYPE_LATEST.encode())

    async def _links(self, response: Response) -> None:
        await _json(response, {"links": msgspec.to_builtins(self._link_feed.links)})

    async def _trace(self, response: Response, query: bytes) -> None:
        """What was recorded after request number `after` of this gateway's life, in pages."""
        recording = self._service.recording
        if recording is None:
            text = "this gateway records nothing; set gateway.record in the deployment file and start it anew"
            raise ApiError(404, text, code="not_recorded")
        most = _count(query, "most", MAX_TRACE_PAGE, 1, MAX_TRACE_PAGE)
        asked = _count(query, "after", 0, 0, 1 << 53)
        after = asked if _word(query, "life") in ("", recording.life) else 0
        found = recording.after(after, most)
        first = found[0].number if found else after + 1
        began_s = recording.began_s or 0.0
        await _json(response, {
            "life": recording.life,
            "next": found[-1].number if found else after,
            "lost": max(0, first - after - 1),
            "without_usage": recording.num_without_usage,
            "left_out": recording.num_left_out,
            "requests": [{**one.line(began_s), "block_tokens": one.block_tokens} for one in found],
        })  # fmt: skip

    async def _story(self, response: Response, request_id: str, query: bytes) -> None:
        story = await self._service.story_book.read(request_id, _wait_s(query))
        if story is None:
            raise ApiError(404, "no such request, or it is too long ago", code="unknown_request")
        await _json(response, story)


def _shown(instance: Instance) -> dict[str, object]:
    return {
        "engine": instance.engine_healthy,
        "node": instance.node_ready,
        "leaving": instance.is_draining,
        "cluster": instance.cluster,
        "duty": instance.duty,
        "requests": instance.num_requests,
        "inflight": instance.num_inflight,
        "landings": instance.num_landings,
    }


@cache
def package_version() -> str:
    """The installed version, or `0+unknown` when run from a source tree."""
    try:
        return version("prfaas")
    except PackageNotFoundError:
        return "0+unknown"


def _wait_s(query: bytes) -> float | None:
    asked = parse_qs(query.decode("latin-1")).get("wait_s")
    if asked is None:
        return None
    try:
        wait_s = float(asked[-1])
    except ValueError:
        wait_s = -1.0
    if not 0 <= wait_s <= MAX_STORY_WAIT_S:
        raise bad_request(f"wait_s must be from 0 to {MAX_STORY_WAIT_S:g}", "wait_s")
    return wait_s


def _word(query: bytes, name: str) -> str:
    return parse_qs(query.decode("latin-1")).get(name, [""])[-1]


def _count(query: bytes, name: str, default: int, least: int, most: int) -> int:
    text = _word(query, name)
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 18) or not least <= int(text) <= most:
        raise bad_request(f"{name} must be a whole number from {least} to {most}", name)
    return int(text)


async def _json(response: Response, answer: object, status: int = 200) -> None:
    await response.whole(status, orjson.dumps(answer), JSON)
