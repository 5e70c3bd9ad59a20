"""The ASGI application: routes, admission, and the one place where a request ends."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from prfaas.gateway.admin import Admin
from prfaas.gateway.api.errors import ApiError
from prfaas.gateway.api.http import ClientGone, Receive, Response, Scope, Send, headers_of, read_body
from prfaas.gateway.api.openai import Endpoint, parse
from prfaas.gateway.driver import RequestDriver
from prfaas.gateway.service import Service
from prfaas.gateway.story import Story
from prfaas.gateway.tracing import RequestTracing
from prfaas.gateway.upstream.clients import forwarded_headers

logger = logging.getLogger("prfaas.gateway")

#: A request body of 8 MiB takes 7 s at 10 Mbit/s; slower than this is an attack or a dead client.
BODY_TIMEOUT_S: Final = 60.0
MAX_REQUEST_ID_CHARS: Final = 128
_UNSAFE_ID: Final = re.compile(r"[^A-Za-z0-9._:\-]")

Handler = Callable[[Scope, Receive, Response], Awaitable[None]]


class GatewayApp:
    """ASGI 3. Lifespan is the server's business: requests are served between `Service.opened` set and unset."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._admin = Admin(service)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            # uvicorn answers a websocket upgrade that is closed at once with 403.
            await receive()
            await send({"type": "websocket.close"})
            return
        request_id = request_id_of(headers_of(scope).get(b"x-request-id"))
        response = Response(send, [(b"x-request-id", request_id.encode("ascii"))])
        try:
            await self._dispatch(scope, receive, response, request_id)
        except ApiError as error:
            await response.error(error)
        except ClientGone:
            pass
        except Exception:
            logger.exception("defect request_id=%s", request_id)
            await response.error(ApiError(500, "internal error", code="internal_error"))

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
        service = self._service
        story = Story(request_id, endpoint)
        if service.num_inflight >= service.deployment.gateway.max_inflight_requests:
            self._count_end(story, "overloaded")
            raise ApiError(429, "too many requests in flight", code="overloaded", retry_after_s=1)
        service.num_inflight += 1
        gauge = service.metrics.gauge("prfaas_inflight_requests")
        gauge.inc()
        try:
            await self._served(endpoint, scope, receive, response, story)
        finally:
            service.num_inflight -= 1
            gauge.dec()

    async def _served(
        self, endpoint: Endpoint, scope: Scope, receive: Receive, response: Response, story: Story
    ) -> None:
        began_s = time.monotonic()
        life: RequestDriver | None = None
        tracing: RequestTracing | None = None
        outcome = "error"
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                raw = await read_body(receive, headers_of(scope), self._service.deployment.gateway.max_body)
            began_s = time.monotonic()
            tracing = self._service.tracing(scope, forwarded_headers(scope, story.request_id))
            request = parse(endpoint, raw, self._service.deployment.served_model.name)
            story.stream, story.stripped_fields = request.stream, request.stripped
            self._service.stories.open(story)
            life = RequestDriver(self._service, response, request, story, tracing)
            async with asyncio.timeout(self._service.deployment.gateway.request_timeout):
                await while_connected(life.run(), receive, response)
            outcome = "ok" if response.status < 400 and story.error is None else _outcome_of(response.status)
        except ApiError as error:
            outcome, story.error = _outcome_of(error.status), error.message
            await _tell(life, response, error)
        except TimeoutError:
            outcome, story.error = "timeout", "request timeout"
            await _tell(life, response, ApiError(504, "the request took too long", code="timeout"))
        except (ClientGone, asyncio.CancelledError):
            outcome = "cancelled"
            raise
        finally:
            story.status, story.total_s = response.status or None, time.monotonic() - began_s
            self._count_end(story, outcome)
            self._close(story, life, tracing)

    def _count_end(self, story: Story, outcome: str) -> None:
        story.outcome = outcome
        metrics, route = self._service.metrics, story.route or "none"
        metrics.counter("prfaas_requests_total", route=route, outcome=outcome).inc()
        if story.total_s is not None:
            metrics.histogram("prfaas_request_duration_seconds", route=route).observe(story.total_s)
        if story.prompt_tokens is not None:
            metrics.counter("prfaas_prompt_tokens_total", route=route).inc(story.prompt_tokens)
        if story.uncached_tokens is not None:
            metrics.counter("prfaas_uncached_tokens_total", route=route).inc(story.uncached_tokens)

    def _close(self, story: Story, life: RequestDriver | None, tracing: RequestTracing | None) -> None:
        if life is not None and life.settling is not None and not life.settling.done():
            life.settling.add_done_callback(lambda _: self._tell_story(story, tracing))
        else:
            self._tell_story(story, tracing)

    def _tell_story(self, story: Story, tracing: RequestTracing | None) -> None:
        self._service.stories.close(story)
        if logger.isEnabledFor(logging.INFO):
            logger.info("%s", log_line(story))
        if tracing is not None:
            tracing.finish(story)


_ENDPOINTS: Final[dict[str, Endpoint]] = {"/v1/completions": "completions", "/v1/chat/completions": "chat"}

_LOGGED: Final = (
    "request_id", "endpoint", "outcome", "status", "route", "reason", "prompt_tokens", "uncached_tokens",
    "skip_tokens", "kv_bytes_moved", "tokens_loaded", "tokens_recomputed", "fallback_reason", "decode_instance",
    "prefill_instance", "ttft_s", "total_s",
)  # fmt: skip


def log_line(story: Story) -> str:
    """`key=value` for everything that is known of a request."""
    pairs = ((name, getattr(story, name)) for name in _LOGGED)
    return " ".join(f"{k}={v:.4f}" if isinstance(v, float) else f"{k}={v}" for k, v in pairs if v is not None)


def request_id_of(asked: bytes | None) -> str:
    """The client's id with unsafe characters replaced, or a new one."""
    if not asked:
        return uuid.uuid4().hex
    return _UNSAFE_ID.sub("_", asked[:MAX_REQUEST_ID_CHARS].decode("latin-1"))


async def while_connected(work: Awaitable[None], receive: Receive, response: Response) -> None:
    """Await `work`, but cancel it when the client disconnects before its answer is whole. Raises ClientGone then."""
    task = asyncio.current_task()
    assert task is not None
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        # Servers also report a disconnect once the answer has gone out; what is done after it shall be done.
        if not response.ended:
            gone = True
            task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        await work
    except asyncio.CancelledError:
        if gone and task.uncancel() == 0:
            raise ClientGone from None
        raise
    finally:
        watcher.cancel()


def _outcome_of(status: int) -> str:
    if status in (429, 503):
        return "unavailable"
    return "error" if status >= 500 or status < 400 else "client_error"


async def _tell(life: RequestDriver | None, response: Response, error: ApiError) -> None:
    if life is not None:
        await life.quiesce()
    with suppress(OSError):
        await response.error(error)
