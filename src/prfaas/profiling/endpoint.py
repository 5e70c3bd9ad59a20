"""An OpenAI-compatible endpoint as it is measured: streamed completions, timed."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import aiohttp

from prfaas.core.errors import PrfaasError
from prfaas.profiling.samples import Sample

#: Longest line of an event stream, and longest part of an error that is shown.
_MAX_LINE_BYTES = 1 << 20
_SHOWN = 300


class EndpointError(PrfaasError):
    """The endpoint did not do what measuring needs; one sentence says what and what to try. `transient`: worth another
    try."""

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


class Rejected(EndpointError):
    """The endpoint refuses this request (400 or 422)."""


class Endpoint:
    """One server. `model` is set by `choose_model`."""

    def __init__(self, session: aiohttp.ClientSession, url: str, timeout_s: float) -> None:
        self._session = session
        self._url = url.rstrip("/").removesuffix("/v1")
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=10)
        self._ignores_eos = True
        self.model = ""
        self.max_model_tokens: int | None = None

    async def choose_model(self, wanted: str | None) -> None:
        """Take `wanted`, or the only model there is. Raises EndpointError that lists them if it cannot."""
        try:
            async with self._session.get(f"{self._url}/v1/models", timeout=self._timeout) as response:
                _check(response.status, await _error_text(response), "/v1/models")
                models = {str(entry["id"]): entry for entry in (await response.json(content_type=None))["data"]}
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise EndpointError(f"{self._url} cannot be reached: {_short(error)}; is the server running?") from None
        except (ValueError, LookupError, TypeError):
            raise EndpointError(f"{self._url}/v1/models is not an OpenAI-compatible answer; check the URL") from None
        if wanted is None and len(models) != 1:
            raise EndpointError(f"the server has several models, choose one with --model: {', '.join(models)}")
        name = next(iter(models)) if wanted is None else wanted
        if name not in models:
            raise EndpointError(f"there is no model {name!r}; the server has {', '.join(models)}")
        self.model = name
        limit = models[name].get("max_model_len")
        self.max_model_tokens = limit if isinstance(limit, int) and limit > 0 else None

    async def complete(self, prompt: list[int] | str, max_tokens: int) -> Sample:
        """One streamed completion, timed. Raises EndpointError; Rejected if the request itself is refused."""
        if self._ignores_eos:
            try:
                return await self._stream(prompt, max_tokens, {"ignore_eos": True})
            except Rejected:
                self._ignores_eos = False  # not part of OpenAI's API; if that was not why, the next try says so
        return await self._stream(prompt, max_tokens, {})

    async def _stream(self, prompt: list[int] | str, max_tokens: int, extra: dict[str, Any]) -> Sample:
        body = {
            "model": self.model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0.0, "stream": True,
            "stream_options": {"include_usage": True}, **extra,
        }  # fmt: skip
        chunks: list[float] = []
        usage: dict[str, Any] = {}
        sent_s = time.perf_counter()
        try:
            async with self._session.post(f"{self._url}/v1/completions", json=body, timeout=self._timeout) as response:
                if response.status != 200:
                    _check(response.status, await _error_text(response), "/v1/completions")
                if not await self._read(response, sent_s, chunks, usage):
                    raise EndpointError("the stream broke before its end; is the server overloaded?", transient=True)
        except (aiohttp.ClientError, OSError) as error:
            raise EndpointError(f"{self._url} failed: {_short(error)}", transient=True) from None
        except TimeoutError:
            raise EndpointError(f"no answer within {self._timeout.total:g} s; raise --timeout") from None
        if not chunks:
            raise EndpointError("the server answered without a single token")
        details = usage.get("prompt_tokens_details") or {}
        return Sample(
            sent_s,
            tuple(chunks),
            usage.get("prompt_tokens"),
            usage.get("completion_tokens"),
            details.get("cached_tokens"),
        )

    async def _read(
        self, response: aiohttp.ClientResponse, sent_s: float, chunks: list[float], usage: dict[str, Any]
    ) -> bool:
        """Whether the stream ended as it should."""
        async for raw in response.content:
            line = raw.strip()
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                return True
            try:
                event = json.loads(data)
            except ValueError:
                raise EndpointError("the stream has an event that is not JSON", transient=True) from None
            if "error" in event:
                raise EndpointError(f"the server failed: {_short(event['error'])}", transient=True)
            if event.get("choices"):
                chunks.append(time.perf_counter() - sent_s)
            usage.update(event.get("usage") or {})
        return False


async def _error_text(response: aiohttp.ClientResponse) -> str:
    if response.status == 200:
        return ""
    text = (await response.content.read(4096)).decode(errors="replace")
    try:
        raw = json.loads(text)
        return _short(raw.get("message") or raw["error"]["message"])
    except (ValueError, LookupError, TypeError, AttributeError):
        return _short(text)


def _check(status: int, text: str, path: str) -> None:
    if status == 200:
        return
    if status in (401, 403):
        raise EndpointError(f"the server wants a key ({status}); set OPENAI_API_KEY")
    if status == 404:
        raise EndpointError(f"the server has no {path} (404: {text}); give the base URL of an OpenAI-compatible server")
    if status in (400, 422):
        raise Rejected(f"the server refused the request ({status}): {text}")
    raise EndpointError(f"the server answered {status}: {text}", transient=status >= 500 or status == 429)


def _short(what: object) -> str:
    text = " ".join(str(what).split())
    return text[:_SHOWN] or type(what).__name__


def open_session(api_key: str | None) -> aiohttp.ClientSession:
    """A session with warm, unlimited connections: a batch must not wait for one of its own."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=600)
    return aiohttp.ClientSession(connector=connector, headers=headers, read_bufsize=_MAX_LINE_BYTES)


async def together(endpoint: Endpoint, prompts: list[list[int] | str], max_tokens: int) -> list[Sample]:
    """All prompts at once; the first failure cancels the rest."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(endpoint.complete(prompt, max_tokens)) for prompt in prompts]
    return [task.result() for task in tasks]
