"""The ASGI application: routes, admission, and the one place where a request ends."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Final

from prfaas.core.control.dispatch import Dispatch
from prfaas.gateway.admin import Admin
from prfaas.gateway.api.errors import ApiError
from prfaas.gateway.api.http import (
    ClientGone,
    Receive,
    Response,
    Scope,
    Send,
    check_content_type,
    headers_of,
    read_body,
)
from prfaas.gateway.api.openai import ApiRequest, Endpoint, parse
from prfaas.gateway.api.urgency import Urgency, urgency_of
from prfaas.gateway.driver import Driver, outcome_of
from prfaas.gateway.front.doorkeeper import Closing
from prfaas.gateway.front.held_bytes import HeldBytes, Share
from prfaas.gateway.membership import Membership
from prfaas.gateway.service import Service
from prfaas.gateway.tracing import RequestTracing
from prfaas.gateway.upstream.clients import forwarded_headers
from prfaas.gateway.upstream.link_feed import LinkFeed
from prfaas.observe.journal import RequestTurnedAway
from prfaas.observe.story import story_of

logger = logging.getLogger("prfaas.gateway")

#: A request body of 8 MiB takes 7 s at 10 Mbit/s; slower than this is an attack or a dead client.
BODY_TIMEOUT_S: Final = 60.0
#: A client that leaves earlier is missed at this time. Most refusals and short answers are over before, and need no
#: task that waits beside them.
WATCH_AFTER_S: Final = 0.05
MAX_REQUEST_ID_CHARS: Final = 128
_UNSAFE_ID: Final = re.compile(r"[^A-Za-z0-9._:\-]")

Handler = Callable[[Scope, Receive, Response], Awaitable[None]]


class GatewayApp:
    """ASGI 3. Lifespan is the server's business."""

    def __init__(self, service: Service, driver: Driver, link_feed: LinkFeed, membership: Membership) -> None:
        self.driver = driver
        self.link_feed = link_feed
        self.membership = membership
        self._service = service
        #: The process was told to end: /ready says no, and what is cut off from now on is told so.
        self.is_stopping = False
        self._admin = Admin(service, link_feed, lambda: self.is_stopping)
        self._bodies = HeldBytes(lambda: service.deployment.gateway.max_inflight_bytes)
        service.metrics.gauge("prfaas_inflight_requests").set_function(lambda: service.num_inflight)
        service.metrics.gauge("prfaas_inflight_bytes").set_function(lambda: self._bodies.num_bytes)
        name = "prfaas_client_connections_closed_total"
        self._closings = {why: service.metrics.counter(name, reason=why) for why in Closing}
        loop = asyncio.get_running_loop()
        service.metrics.gauge("prfaas_gateway_tasks").set_function(lambda: len(asyncio.all_tasks(loop)))
        for table, count in _tables(service, driver).items():
            service.metrics.gauge("prfaas_gateway_entries", table=table).set_function(count)

    @property
    def num_inflight(self) -> int:
        """Requests that are served."""
        return self._service.num_inflight

    def show_connections(self, count: Callable[[], int]) -> None:
        """How many clients' connections are open."""
        self._service.metrics.gauge("prfaas_client_connections").set_function(count)

    def note_closed(self, why: Closing) -> None:
        """A client's connection was refused or cut off."""
        self._closings[why].inc()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            # uvicorn answers a websocket upgrade that is closed at once with 403.
            await receive()
            await send({"type": "websocket.close"})
            return
        request_id = self._free_id(request_id_of(headers_of(scope).get(b"x-request-id")))
        response = Response(send, [(b"x-request-id", request_id.encode("ascii"))])
        try:
            await self._dispatch(scope, receive, response, request_id)
        except ApiError as error:
            await response.error(error)
        except ClientGone:
            pass
        except asyncio.CancelledError:
            if not self.is_stopping:
                raise
            await response.error(ApiError(503, "the gateway is stopping", code="stopping", retry_after_s=1))
        except Exception:
            logger.exception("defect request_id=%s", request_id)
            await response.error(ApiError(500, "internal error", code="internal_error"))

    def _free_id(self, asked: str) -> str:
        """`asked`, unless a request of that id is still going on: then it with something random behind it."""
        service = self._service
        is_known = asked in service.reading_ids or asked in service.admitted_ids or self.driver.is_live(asked)
        if not is_known:
            return asked
        return f"{asked[: MAX_REQUEST_ID_CHARS - 9]}-{secrets.token_hex(4)}"

    async def _dispatch(self, scope: Scope, receive: Receive, response: Response, request_id: str) -> None:
        path, method = scope["path"], scope["method"]
        endpoint = _ENDPOINTS.get(path)
        if endpoint is None:
            await self._admin.answer(method, path, scope["query_string"], response)
        elif method != "POST":
            raise ApiError(405, f"{path} takes POST", code="method_not_allowed", allow="POST")
        else:
            await self._admitted(endpoint, scope, receive, response, request_id)

    async def _admitted(
        self, endpoint: Endpoint, scope: Scope, receive: Receive, response: Response, request_id: str
    ) -> None:
        settings = self._service.deployment.gateway
        self._check_places(request_id, endpoint)
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S) as limit:
                with self._bodies.share() as share:
                    request, urgency, tracing = await self._read(endpoint, scope, receive, request_id, limit, share)
                    self._check_places(request_id, endpoint, tracing)
                    limit.reschedule(asyncio.get_running_loop().time() + settings.request_timeout)
                    # Nothing was awaited since there was a place.
                    self._service.admitted_ids.add(request_id)
                    await self._driven(request, urgency, tracing, receive, response, request_id, limit)
        except TimeoutError:
            if not limit.expired():
                raise
            raise ApiError(504, "the request took too long", code="timeout") from None
        finally:
            self._service.admitted_ids.discard(request_id)

    def _check_places(self, request_id: str, endpoint: Endpoint, tracing: RequestTracing | None = None) -> None:
        """Before its body is read, to refuse what would be refused anyway; and then, when it would take a place."""
        service, text = self._service, "too many requests in flight"
        if service.num_inflight >= service.deployment.gateway.max_inflight_requests:
            self._turn_away(RequestTurnedAway(request_id, endpoint, "overloaded", 429, text), tracing)
            raise ApiError(429, text, code="overloaded", retry_after_s=1)

    async def _read(
        self, endpoint: Endpoint, scope: Scope, receive: Receive, request_id: str, limit: asyncio.Timeout, share: Share
    ) -> tuple[ApiRequest, Urgency, RequestTracing]:
        turned_away: tuple[str, int | None, str | None] = ("error", None, None)
        request: ApiRequest | None = None
        urgency: Urgency | None = None
        tracing: RequestTracing | None = None
        # Nothing was awaited since the id was found free.
        self._service.reading_ids.add(request_id)
        try:
            check_content_type(headers_of(scope))
            raw = await read_body(receive, headers_of(scope), self._service.deployment.gateway.max_body, share.take)
            tracing = self._service.tracing(scope, forwarded_headers(scope, request_id))
            request = parse(endpoint, raw, self._service.model.name)
            trusts = self._service.deployment.gateway.trust_priority
            urgency = urgency_of(headers_of(scope), request.body, trusts_priority=trusts)
        except ApiError as error:
            turned_away = (outcome_of(error.status), error.status, error.message)
            raise
        except (ClientGone, asyncio.CancelledError):
            turned_away = ("timeout", 504, "request timeout") if limit.expired() else ("cancelled", None, None)
            raise
        finally:
            self._service.reading_ids.discard(request_id)
            if urgency is None:
                self._turn_away(RequestTurnedAway(request_id, endpoint, *turned_away), tracing)
        return request, urgency, tracing

    async def _driven(
        self,
        request: ApiRequest,
        urgency: Urgency,
        tracing: RequestTracing,
        receive: Receive,
        response: Response,
        request_id: str,
        limit: asyncio.Timeout,
    ) -> None:
        driver = self.driver
        try:
            await while_connected(driver.serve(request, urgency, response, tracing, request_id), receive, response)
        except (ClientGone, asyncio.CancelledError) as ended:
            if limit.expired():
                await driver.quiesce(request_id)
                driver.abandon(request_id, "timeout", response.status or 504, "request timeout")
            elif self.is_stopping and isinstance(ended, asyncio.CancelledError):
                await driver.quiesce(request_id)
                driver.abandon(request_id, "error", response.status or 503, "the gateway stopped")
            else:
                driver.abandon(request_id, "cancelled", response.status or None)
            raise
        except Exception as defect:
            driver.abandon(request_id, "error", response.status or 500, str(defect))
            raise

    def _turn_away(self, event: RequestTurnedAway, tracing: RequestTracing | None = None) -> None:
        self._service.journal.note(time.monotonic(), event)
        if tracing is not None:
            tracing.finish(story_of(event))


def _tables(service: Service, driver: Driver) -> dict[str, Callable[[], int]]:
    """How many entries each has that is kept of requests."""
    scheduler, stories = service.scheduler, service.stories

    def of_dispatch(count: Callable[[Dispatch], int]) -> Callable[[], int]:
        # Another policy has another one, or none.
        return lambda: 0 if scheduler.dispatch is None else count(scheduler.dispatch)

    return {
        "reading": lambda: len(service.reading_ids),
        "admitted": lambda: len(service.admitted_ids),
        "live": lambda: driver.num_live,
        "scheduled": lambda: len(scheduler.requests),
        "answers": of_dispatch(lambda dispatch: len(dispatch.answers)),
        "queued": of_dispatch(lambda dispatch: sum(map(len, dispatch.queues.values()))),
        "timers": lambda: scheduler.num_timers,
        "background": lambda: len(service.background),
        "open_stories": lambda: stories.num_open,
        "ended_stories": lambda: stories.num_closed,
    }


_ENDPOINTS: Final[dict[str, Endpoint]] = {"/v1/completions": "completions", "/v1/chat/completions": "chat"}


def request_id_of(asked: bytes | None) -> str:
    """The client's id with unsafe characters replaced, or a new one."""
    if not asked:
        return secrets.token_hex(16)
    return _UNSAFE_ID.sub("_", asked[:MAX_REQUEST_ID_CHARS].decode("latin-1"))


async def while_connected(work: Awaitable[object], receive: Receive, response: Response) -> None:
    """Await `work`, but cancel it when the client disconnects before its answer is whole. Raises ClientGone then."""
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    watcher: asyncio.Task[None] | None = None
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        # Servers also report a disconnect once the answer has gone out; what is done after it shall be done.
        if not response.ended:
            gone = True
            task.cancel()

    def begin() -> None:
        nonlocal watcher
        watcher = loop.create_task(watch())

    timer = loop.call_later(WATCH_AFTER_S, begin)
    try:
        await work
    except asyncio.CancelledError:
        if gone and task.uncancel() == 0:
            raise ClientGone from None
        raise
    finally:
        timer.cancel()
        if watcher is not None:
            watcher.cancel()
