"""The OpenAI server of an emulated engine, in the words and fields of vLLM's."""

from __future__ import annotations

import asyncio
import secrets
import time
from array import array
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson
from aiohttp import web

from prfaas.core.wire.params import DecodeParams, PrefillParams, ours, report_leg
from prfaas.engines.emulated.answers import answer_tokens
from prfaas.engines.emulated.engine import Answer, EmulatedEngine
from prfaas.engines.emulated.metrics import metrics_text
from prfaas.engines.emulated.texts import NoText, Texts

MAX_BODY_BYTES: Final = 64 << 20
#: What an answer has if nobody says: vLLM's default for completions, and a chat message that ends by itself.
COMPLETION_TOKENS: Final = 16
CHAT_TOKENS: Final = 256
#: Fields that change what an answer is, and values of them that mean nothing.
_NOT_EMULATED: Final[Mapping[str, tuple[object, ...]]] = {
    "n": (None, 1), "best_of": (None, 1), "echo": (None, False), "logprobs": (None, False), "prompt_logprobs": (None,),
    "top_logprobs": (None, 0), "suffix": (None, ""),
}  # fmt: skip


class BadRequest(Exception):
    """Answered with a status and a sentence."""

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, slots=True)
class Asked:
    """One inference request."""

    is_chat: bool
    token_ids: list[int]
    num_tokens: int
    ends_by_itself: bool
    is_stream: bool
    wants_usage: bool
    wants_running_usage: bool
    wants_ids: bool
    salt: str
    params: object

    @property
    def finish_reason(self) -> str:
        return "stop" if self.ends_by_itself else "length"


class EmulatedApp:
    """Of one engine."""

    def __init__(
        self, engine: EmulatedEngine, texts: Texts, model: str, max_model_tokens: int, stream_interval: int
    ) -> None:
        self._engine = engine
        self._texts = texts
        self._model = model
        self._max_model_tokens = max_model_tokens
        self._stream_interval = stream_interval

    def application(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.add_routes(
            [
                web.get("/health", self._health),
                web.get("/ping", self._health),
                web.get("/version", self._version),
                web.get("/metrics", self._metrics),
                web.get("/v1/models", self._models),
                web.post("/tokenize", self._tokenize),
                web.post("/v1/completions", self._generate),
                web.post("/v1/chat/completions", self._generate),
            ]
        )
        return app

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _version(self, request: web.Request) -> web.Response:
        return _json({"version": "prfaas-emulated"})

    async def _metrics(self, request: web.Request) -> web.Response:
        self._engine.kernel.catch_up()
        return web.Response(
            text=metrics_text(self._engine, self._model, len(asyncio.all_tasks())), content_type="text/plain"
        )

    async def _models(self, request: web.Request) -> web.Response:
        card = {"id": self._model, "object": "model", "owned_by": "prfaas", "max_model_len": self._max_model_tokens}
        return _json({"object": "list", "data": [card]})

    async def _tokenize(self, request: web.Request) -> web.Response:
        try:
            body = await _body(request)
            token_ids = self._tokens(body, is_chat="messages" in body)
        except BadRequest as bad:
            return _refused(bad)
        return _json({"count": len(token_ids), "max_model_len": self._max_model_tokens, "tokens": token_ids})

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        try:
            asked = self._read(await _body(request), is_chat=request.path.startswith("/v1/chat"))
        except BadRequest as bad:
            return _refused(bad)
        part = ours(asked.params, PrefillParams)
        if part is not None:
            return await self._prefill(asked, part)
        part = ours(asked.params, DecodeParams)
        async with self._engine.answering(asked.token_ids, asked.num_tokens, part, asked.salt) as answer:
            if asked.is_stream:
                return await self._stream(request, asked, answer)
            while not answer.is_done:
                answer.wake.clear()
                await answer.wake.wait()
            return _json(self._whole(asked, self._tokens_of(answer), answer.num_cached_tokens))

    async def _prefill(self, asked: Asked, part: dict[str, Any]) -> web.Response:
        report = await self._engine.prefill_for_other(asked.token_ids, part, asked.salt)
        reply = self._whole(asked, [self._texts.alphabet[0]], 0)
        return _json({**reply, "kv_transfer_params": report_leg(report)})

    # What is asked

    def _read(self, body: dict[str, Any], *, is_chat: bool) -> Asked:
        if body.get("model") not in (None, self._model):
            raise BadRequest(f"The model `{body['model']}` does not exist.", 404)
        for field, fine in _NOT_EMULATED.items():
            if body.get(field) not in fine:
                raise BadRequest(f"{field}: an emulated engine has one answer per prompt, and no probabilities")
        token_ids = self._tokens(body, is_chat=is_chat)
        limit = body.get("max_completion_tokens") if is_chat else None
        limit = body.get("max_tokens") if limit is None else limit
        room = self._max_model_tokens - len(token_ids)
        if limit is None:
            num_tokens = min(CHAT_TOKENS if is_chat else COMPLETION_TOKENS, max(1, room))
        elif isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise BadRequest(f"max_tokens must be at least 1, got {limit}")
        else:
            num_tokens = limit
        if num_tokens > room:
            raise BadRequest(
                f"This model's maximum context length is {self._max_model_tokens} tokens, and the prompt has"
                f" {len(token_ids)}, of which {num_tokens} more are wanted."
            )
        options = body.get("stream_options") or {}
        return Asked(
            is_chat=is_chat,
            token_ids=token_ids,
            num_tokens=num_tokens,
            ends_by_itself=is_chat and limit is None,
            is_stream=bool(body.get("stream")),
            wants_usage=bool(options.get("include_usage")),
            wants_running_usage=bool(options.get("include_usage") and options.get("continuous_usage_stats")),
            wants_ids=bool(body.get("return_token_ids")),
            salt=str(body.get("cache_salt") or ""),
            params=body.get("kv_transfer_params"),
        )

    def _tokens(self, body: dict[str, Any], *, is_chat: bool) -> list[int]:
        try:
            if is_chat:
                if not isinstance(body.get("messages"), list):
                    raise BadRequest("messages: missing")
                return self._texts.chat(body)
            prompt = body.get("prompt")
            if isinstance(prompt, str):
                return self._texts.tokens(prompt, add_special_tokens=bool(body.get("add_special_tokens", True)))
        except NoText as error:
            raise BadRequest(str(error)) from None
        if isinstance(prompt, list) and prompt and _are_tokens(prompt):
            return prompt
        raise BadRequest("prompt: give one text, or one list of token ids")

    # What is answered

    def _tokens_of(self, answer: Answer) -> list[int]:
        return answer_tokens(answer.seed, answer.num_tokens, self._texts.alphabet)

    async def _stream(self, request: web.Request, asked: Asked, answer: Answer) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        head = self._head(asked, "chat.completion.chunk" if asked.is_chat else "text_completion")
        tokens: list[int] = []
        num_sent = 0
        async for num_now in self._progress(answer):
            tokens = tokens or self._tokens_of(answer)
            reason = asked.finish_reason if num_now == asked.num_tokens else None
            piece = tokens[num_sent:num_now]
            choice = self._piece(asked, piece, reason, is_first=not num_sent)
            event = {**head, "choices": [choice]}
            if asked.wants_running_usage:
                event["usage"] = _usage(asked, num_now, answer.num_cached_tokens)
            await response.write(_event(event))
            num_sent = num_now
        if asked.wants_usage:
            usage = _usage(asked, asked.num_tokens, answer.num_cached_tokens)
            await response.write(_event({**head, "choices": [], "usage": usage}))
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    async def _progress(self, answer: Answer) -> AsyncIterator[int]:
        """How many tokens there are: at the first, then every `stream_interval`, then at the last."""
        loop, num_sent = asyncio.get_running_loop(), 0
        while num_sent < answer.num_tokens:
            answer.wake.clear()
            num_now = self._engine.num_tokens_now(answer)
            wanted = min(answer.num_tokens, num_sent + self._stream_interval) if num_sent else 1
            if num_now >= wanted:
                # The first event has the first token alone, also when this process was late for it.
                num_sent = num_now if num_sent else wanted
                yield num_sent
                continue
            # The first and the last wake by themselves.
            timer = None
            if num_sent and wanted < answer.num_tokens:
                timer = loop.call_later(self._engine.look_after_s(wanted - num_now), answer.wake.set)
            try:
                await answer.wake.wait()
            finally:
                if timer is not None:
                    timer.cancel()

    def _head(self, asked: Asked, kind: str) -> dict[str, Any]:
        name = f"{'chatcmpl' if asked.is_chat else 'cmpl'}-{secrets.token_hex(8)}"
        return {"id": name, "object": kind, "created": int(time.time()), "model": self._model}

    def _piece(self, asked: Asked, tokens: list[int], reason: str | None, *, is_first: bool) -> dict[str, Any]:
        text = self._texts.text(tokens)
        choice: dict[str, Any] = {"index": 0, "finish_reason": reason, "logprobs": None}
        if asked.is_chat:
            choice["delta"] = {"role": "assistant", "content": text} if is_first else {"content": text}
        else:
            choice["text"] = text
        if asked.wants_ids:
            choice["token_ids"] = tokens
        return choice

    def _whole(self, asked: Asked, tokens: list[int], num_cached: int) -> dict[str, Any]:
        head = self._head(asked, "chat.completion" if asked.is_chat else "text_completion")
        choice: dict[str, Any] = {"index": 0, "finish_reason": asked.finish_reason, "logprobs": None}
        text = self._texts.text(tokens)
        if asked.is_chat:
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        if asked.wants_ids:
            choice["token_ids"] = tokens
        return {**head, "choices": [choice], "usage": _usage(asked, asked.num_tokens, num_cached)}


def _usage(asked: Asked, num_answered: int, num_cached: int) -> dict[str, Any]:
    num_prompt = len(asked.token_ids)
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_answered,
        "total_tokens": num_prompt + num_answered,
        "prompt_tokens_details": {"cached_tokens": num_cached},
    }


def _are_tokens(prompt: list[Any]) -> bool:
    try:
        array("I", prompt)  # at the speed of C: prompts are long
    except (TypeError, OverflowError):
        return False
    return True


async def _body(request: web.Request) -> dict[str, Any]:
    try:
        body = orjson.loads(await request.read())
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise BadRequest("the body is not an object")
    return body


def _refused(bad: BadRequest) -> web.Response:
    kind = "NotFoundError" if bad.status == 404 else "BadRequestError"
    return _json({"error": {"message": str(bad), "type": kind, "param": None, "code": bad.status}}, bad.status)


def _json(content: object, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(content), status=status, content_type="application/json")


def _event(content: object) -> bytes:
    return b"data: " + orjson.dumps(content) + b"\n\n"
