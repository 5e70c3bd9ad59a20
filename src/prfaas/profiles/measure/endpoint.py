"""An OpenAI-compatible endpoint as it is measured: streamed completions, timed. Only here is network and clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, Final, Protocol

import aiohttp
import orjson

from prfaas.core.errors import PrfaasError
from prfaas.profiles.measure.samples import Sample
from prfaas.profiles.measure.stream import BadStream, EventReader, Usage, said

#: vLLM's server drops idle connections after 5 s; reusing one at that moment would fail a healthy sample.
_KEEPALIVE_S: Final = 3.0
_CONNECT_TIMEOUT_S: Final = 10.0
_MAX_ERROR_BYTES: Final = 4096
_JSON: Final = {"Content-Type": "application/json"}


class EndpointError(PrfaasError):
    """The endpoint did not do what measuring needs; one sentence says what and what to try. `transient`: worth another
    try."""

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


class Unreachable(EndpointError):
    """Nobody answers there."""


class UnknownModel(EndpointError):
    """The server has others, or several."""


class Rejected(EndpointError):
    """The endpoint refuses this request (400, 413 or 422)."""


class Completes(Protocol):
    """Something that answers prompts: an `Endpoint`, or a fake in tests."""

    async def complete(self, prompt: Sequence[int] | str, max_tokens: int, *, ignore_eos: bool) -> Sample:
        """See `Endpoint.complete`."""


class Endpoint:
    """One server. `model` is set by `choose_model`."""

    def __init__(self, session: aiohttp.ClientSession, url: str, timeout_s: float) -> None:
        self._session = session
        self._url = url.rstrip("/").removesuffix("/v1")
        self._timeout_s = timeout_s
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=_CONNECT_TIMEOUT_S)
        self.model = ""
        self.max_model_tokens: int | None = None

    async def choose_model(self, wanted: str | None) -> None:
        """Take `wanted`, or the only model there is. Raises EndpointError that lists them if it cannot."""
        models = await self._models()
        names = ", ".join(models)
        if wanted is None and len(models) > 1:
            raise UnknownModel(f"the server has several models, choose one with --model: {names}")
        name = next(iter(models)) if wanted is None else wanted
        if name not in models:
            raise UnknownModel(f"there is no model {name!r}; the server has {names}")
        self.model = name
        limit = models[name].get("max_model_len")
        self.max_model_tokens = limit if type(limit) is int and limit > 0 else None

    async def _models(self) -> dict[str, dict[str, Any]]:
        try:
            async with self._session.get(f"{self._url}/v1/models", timeout=self._timeout) as response:
                if response.status != 200:
                    raise await _refusal(response, "/v1/models")
                answer = orjson.loads(await response.read())
            models = {str(entry["id"]): dict(entry) for entry in answer["data"]}
        except (aiohttp.ClientError, OSError) as error:
            raise Unreachable(f"{self._url} cannot be reached: {_why(error)}; is the server running?") from None
        except (ValueError, LookupError, TypeError):
            raise EndpointError(f"{self._url}/v1/models is not an OpenAI-compatible answer; check the URL") from None
        if not models:
            raise EndpointError(f"{self._url}/v1/models lists no model; load one into the server")
        return models

    async def complete(self, prompt: Sequence[int] | str, max_tokens: int, *, ignore_eos: bool) -> Sample:
        """One streamed completion, timed. Raises EndpointError; Rejected if the request itself is refused."""
        body = {
            "model": self.model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0.0, "stream": True,
            "stream_options": {"include_usage": True},
        }  # fmt: skip
        # Encoded before the clock starts: 128K token ids take milliseconds.
        data = orjson.dumps({**body, "ignore_eos": True} if ignore_eos else body)
        try:
            return await self._timed(data)
        except TimeoutError:  # before OSError, of which it is one
            raise EndpointError(f"no whole answer within {self._timeout_s:g} s; raise --timeout") from None
        except (aiohttp.ClientError, OSError) as error:
            text = f"the connection to {self._url} failed: {_why(error)}; is the server still running?"
            raise EndpointError(text, transient=True) from None
        except BadStream as error:
            raise EndpointError(f"{error}; look into the server's log", transient=True) from None

    async def _timed(self, data: bytes) -> Sample:
        reader = EventReader()
        chunk_s: list[float] = []
        usage = Usage()
        is_whole = False
        url = f"{self._url}/v1/completions"
        sent_s = time.perf_counter()
        async with self._session.post(url, data=data, headers=_JSON, timeout=self._timeout) as response:
            if response.status != 200:
                raise await _refusal(response, "/v1/completions")
            # To the body's very end, past [DONE]: a connection that is left before it is closed, and the next sample
            # would have to open one.
            async for piece in response.content.iter_any():
                now_s = time.perf_counter() - sent_s
                for event in reader.feed(piece):
                    chunk_s += [now_s] if event.has_output else []
                    usage = event.usage or usage
                    is_whole = is_whole or event.is_end
        if not is_whole:
            raise BadStream("the stream broke before its end")
        if not chunk_s:
            raise EndpointError("the server answered without a single token; does it generate text?")
        return Sample(sent_s, tuple(chunk_s), usage)


async def _refusal(response: aiohttp.ClientResponse, path: str) -> EndpointError:
    """What a status other than 200 means for who measures."""
    text = (await response.content.read(_MAX_ERROR_BYTES)).decode(errors="replace")
    try:
        text = said(orjson.loads(text))
    except ValueError:
        text = said(text)
    status = response.status
    if status in (401, 403):
        return EndpointError(f"the server wants a key that it accepts ({status}); set OPENAI_API_KEY")
    if status == 404:
        return EndpointError(f"no {path} there (404: {text}); give the base URL of an OpenAI-compatible server")
    if status in (400, 413, 422):
        return Rejected(f"the server refused the request ({status}): {text}")
    is_transient = status >= 500 or status == 429
    return EndpointError(f"the server answered {status} ({text}); look into its log", transient=is_transient)


def _why(error: BaseException) -> str:
    return said(str(error) or type(error).__name__)


def open_session(api_key: str | None) -> aiohttp.ClientSession:
    """A session with warm, unlimited connections: a batch must not wait for one of its own."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_S)
    return aiohttp.ClientSession(connector=connector, headers=headers)


async def together(
    endpoint: Completes, prompts: Sequence[Sequence[int] | str], max_tokens: int, *, ignore_eos: bool
) -> list[Sample]:
    """All prompts at once. The first failure cancels the rest and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(endpoint.complete(prompt, max_tokens, ignore_eos=ignore_eos)) for prompt in prompts
            ]
    except* EndpointError as failed:
        first = failed.exceptions[0]
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
    else:
        return [task.result() for task in tasks]
    raise first
