"""What the gateway demands of an OpenAI request before anything upstream sees it. Pure.

Laws of this file:
- A field that the gateway reads is checked; a field that it does not read passes through untouched.
- A field by which a client could steer KV transfers or ranks is removed, wherever engines would look for it.
- Whether a request may be prefilled elsewhere is decided from its fields alone: `obstacle` names what forbids it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import orjson

from prfaas.engines.kinds import STEERING_CONTAINERS, STEERING_FIELDS
from prfaas.gateway.api.errors import ApiError, bad_request
from prfaas.gateway.api.fields import check_fields, check_messages, check_prompt
from prfaas.gateway.prompt.offload_eligibility import chat_obstacle, completion_obstacle

Endpoint = Literal["completions", "chat"]
Prompt = str | list[int]


@dataclass(slots=True)
class ApiRequest:
    """A request that passed. `raw` is what engines get: the client's own bytes, unless a field was stripped.
    `cache_salt` separates prefix caches of tenants; empty if none."""

    endpoint: Endpoint
    raw: bytes
    stripped: tuple[str, ...]
    stream: bool
    max_output_tokens: int | None
    obstacle: str | None
    cache_salt: str
    _parsed: dict[str, Any] | None

    @property
    def body(self) -> dict[str, Any]:
        """`raw` as values."""
        parsed = self._parsed  # once: another thread may forget it
        found: dict[str, Any] = orjson.loads(self.raw) if parsed is None else parsed
        return found

    @property
    def prompt(self) -> Prompt | None:
        """The only prompt of a completion; None for chat and for several prompts."""
        return _single_prompt(self.body.get("prompt"))

    def forget_values(self) -> None:
        """Keep the bytes alone: values of small objects take up to thirty times as much memory."""
        self._parsed = None


def parse(endpoint: Endpoint, raw: bytes, model: str) -> ApiRequest:
    """Check a body. Raises ApiError 400 or 404 that names the field."""
    body = _load(raw)
    stripped = _strip(body)
    _check_model(body, model)
    check_fields(body)
    if endpoint == "chat":
        check_messages(body)
        obstacle = chat_obstacle(body)
    else:
        check_prompt(body)
        obstacle = completion_obstacle(body)
    limit = body.get("max_completion_tokens") if endpoint == "chat" else None
    limit = limit if limit is not None else body.get("max_tokens")
    forwarded = orjson.dumps(body) if stripped else raw
    stream, salt = body.get("stream") is True, body.get("cache_salt") or ""
    return ApiRequest(endpoint, forwarded, stripped, stream, limit, obstacle, salt, body)


def check_length(num_prompt_tokens: int, max_output_tokens: int | None, max_model_tokens: int) -> None:
    """Raise ApiError 400 when prompt and output do not fit into the model's context together."""
    wanted = max_output_tokens or 1
    if num_prompt_tokens + wanted > max_model_tokens:
        raise ApiError(
            400,
            f"this model's context is {max_model_tokens} tokens; the prompt has {num_prompt_tokens} and "
            f"{wanted} more are asked for",
            code="context_length_exceeded",
            param="messages" if max_output_tokens is None else "max_tokens",
        )


def prompt_too_long(max_chars: int, max_model_tokens: int) -> ApiError:
    """What `check_length` raises, for a prompt that is refused before its tokens are counted."""
    return ApiError(
        400,
        f"this model's context is {max_model_tokens} tokens; the prompt has more than {max_chars} characters, which is"
        " more than as many of its longest token",
        code="context_length_exceeded",
        param="messages",
    )


def _load(raw: bytes) -> dict[str, Any]:
    try:
        # orjson refuses NaN, lone surrogates and nesting deeper than 1,024 with this one error.
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise bad_request(f"the body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(body, dict):
        raise bad_request("the body must be a JSON object", code="invalid_type")
    return body


def _strip(body: dict[str, Any]) -> tuple[str, ...]:
    stripped = [name for name in STEERING_FIELDS if name in body]
    for name in stripped:
        del body[name]
    for container in STEERING_CONTAINERS:
        inner = body.get(container)
        if isinstance(inner, dict) and not STEERING_FIELDS.isdisjoint(inner):
            body[container] = {key: value for key, value in inner.items() if key not in STEERING_FIELDS}
            stripped.append(container)
    return tuple(stripped)


def _check_model(body: dict[str, Any], model: str) -> None:
    asked = body.get("model")
    if not isinstance(asked, str) or not asked:
        raise bad_request("`model` must be a non-empty string", "model", "invalid_type")
    if asked != model:
        raise ApiError(404, f"the model `{asked[:128]}` does not exist", code="model_not_found", param="model")


def _single_prompt(prompt: Any) -> Prompt | None:
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
        only: Prompt = prompt[0]
        return only
    return prompt if isinstance(prompt, list) and isinstance(prompt[0], int) else None
