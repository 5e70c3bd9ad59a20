"""What the gateway demands of an OpenAI request before anything upstream sees it. Pure.

Laws of this file:
- A field that the gateway reads is checked; a field that it does not read passes through untouched.
- A field by which a client could steer KV transfers or ranks is removed, wherever engines would look for it.
- Whether a request may be prefilled elsewhere is decided from its fields alone: `obstacle` names what forbids it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

import orjson

from prfaas.gateway.errors import ApiError, bad_request
from prfaas.gateway.features import chat_obstacle, completion_obstacle

Endpoint = Literal["completions", "chat"]
Prompt = str | list[int]

#: Fields that name a transfer, a bootstrap server or a rank in vLLM, SGLang or Dynamo.
STRIPPED_FIELDS: Final = frozenset(
    {
        "kv_transfer_params",
        "ec_transfer_params",
        "bootstrap_host",
        "bootstrap_port",
        "bootstrap_room",
        "bootstrap_pair_key",
        "routed_dp_rank",
        "disagg_prefill_dp_rank",
        "data_parallel_rank",
    }
)
#: vLLM copies `vllm_xargs` into the same place as `kv_transfer_params`, so it could smuggle them in.
_CONTAINERS: Final = ("vllm_xargs", "custom_params")

#: As the OpenAI API has it; vLLM's own limit of 16,384 lets one request fill an engine.
MAX_N: Final = 128
MAX_TOKEN_ID: Final = 2**31 - 1

Check = Callable[[Any], bool]


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_positive_int(value: Any) -> bool:
    return _is_int(value) and value >= 1


_BOOL: Final = ("a boolean", lambda value: isinstance(value, bool))
_STR: Final = ("a string", lambda value: isinstance(value, str))
_NUMBER: Final = ("a number", _is_number)
_POSITIVE: Final = ("an integer, 1 or more", _is_positive_int)
_OBJECT: Final = ("an object", lambda value: isinstance(value, dict))

#: Checked when present and not null: (what it must be, the check).
_FIELDS: Final[dict[str, tuple[str, Check]]] = {
    "stream": _BOOL,
    "stream_options": _OBJECT,
    "n": (f"an integer from 1 to {MAX_N}", lambda value: _is_positive_int(value) and value <= MAX_N),
    "best_of": (f"an integer from 1 to {MAX_N}", lambda value: _is_positive_int(value) and value <= MAX_N),
    "max_tokens": _POSITIVE,
    "max_completion_tokens": _POSITIVE,
    "temperature": _NUMBER,
    "top_p": _NUMBER,
    "presence_penalty": _NUMBER,
    "frequency_penalty": _NUMBER,
    "seed": ("an integer", _is_int),
    "echo": _BOOL,
    "suffix": _STR,
    "add_special_tokens": _BOOL,
    "add_generation_prompt": _BOOL,
    "continue_final_message": _BOOL,
    "cache_salt": _STR,
    "chat_template": _STR,
    "chat_template_kwargs": _OBJECT,
    "tools": ("an array of objects", lambda value: _is_list_of(value, dict)),
    "documents": ("an array of objects", lambda value: _is_list_of(value, dict)),
}


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)


@dataclass(slots=True)
class ApiRequest:
    """A request that passed. `raw` is what the client sent; `body` lacks the stripped fields."""

    endpoint: Endpoint
    raw: bytes
    body: dict[str, Any]
    stripped: tuple[str, ...]
    stream: bool
    max_output_tokens: int | None
    obstacle: str | None

    @property
    def prompt(self) -> Prompt | None:
        """The only prompt of a completion; None for chat and for several prompts."""
        return _single_prompt(self.body.get("prompt"))

    @property
    def cache_salt(self) -> str:
        """Separates prefix caches of tenants; empty if none."""
        return self.body.get("cache_salt") or ""

    def forwarded(self) -> bytes:
        """The body for an engine: the client's own bytes unless something was stripped."""
        return orjson.dumps(self.body) if self.stripped else self.raw

    def forwarded_with(self, kv_transfer_params: dict[str, Any]) -> bytes:
        """The body for an engine that shall load a landing."""
        return orjson.dumps({**self.body, "kv_transfer_params": kv_transfer_params})


def parse(endpoint: Endpoint, raw: bytes, model: str) -> ApiRequest:
    """Check a body. Raises ApiError 400 or 404 that names the field."""
    body = _load(raw)
    stripped = _strip(body)
    _check_model(body, model)
    for name, (wanted, check) in _FIELDS.items():
        value = body.get(name)
        if value is not None and not check(value):
            raise bad_request(f"`{name}` must be {wanted}", name, "invalid_type")
    if endpoint == "chat":
        _check_messages(body)
        obstacle = chat_obstacle(body)
    else:
        _check_prompt(body)
        obstacle = completion_obstacle(body)
    limit = body.get("max_completion_tokens") if endpoint == "chat" else None
    limit = limit if limit is not None else body.get("max_tokens")
    return ApiRequest(endpoint, raw, body, stripped, body.get("stream") is True, limit, obstacle)


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
    stripped = [name for name in STRIPPED_FIELDS if name in body]
    for name in stripped:
        del body[name]
    for container in _CONTAINERS:
        inner = body.get(container)
        if isinstance(inner, dict) and not STRIPPED_FIELDS.isdisjoint(inner):
            body[container] = {key: value for key, value in inner.items() if key not in STRIPPED_FIELDS}
            stripped.append(container)
    return tuple(stripped)


def _check_model(body: dict[str, Any], model: str) -> None:
    asked = body.get("model")
    if not isinstance(asked, str) or not asked:
        raise bad_request("`model` must be a non-empty string", "model", "invalid_type")
    if asked != model:
        raise ApiError(404, f"the model `{asked[:128]}` does not exist", code="model_not_found", param="model")


def _check_messages(body: dict[str, Any]) -> None:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise bad_request("`messages` must be a non-empty array", "messages", "invalid_type")
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise bad_request(f"`messages[{index}]` must be an object", "messages", "invalid_type")
        if not isinstance(message.get("role"), str) or not message["role"]:
            raise bad_request(f"`messages[{index}].role` must be a string", "messages", "invalid_type")
        content = message.get("content")
        if content is not None and not isinstance(content, str) and not _is_list_of(content, (dict, str)):  # type: ignore[arg-type]
            wanted = "a string, an array of parts, or null"
            raise bad_request(f"`messages[{index}].content` must be {wanted}", "messages", "invalid_type")


def _check_prompt(body: dict[str, Any]) -> None:
    prompt = body.get("prompt")
    if prompt is None and body.get("prompt_embeds") is not None:
        return
    if not _is_prompt(prompt):
        wanted = "a string, an array of strings, an array of token ids, or an array of arrays of token ids"
        raise bad_request(f"`prompt` must be {wanted}, and not empty", "prompt", "invalid_type")


def _is_prompt(prompt: Any) -> bool:
    if isinstance(prompt, str):
        return bool(prompt)
    if not isinstance(prompt, list) or not prompt:
        return False
    if isinstance(prompt[0], str):
        return all(isinstance(item, str) and item for item in prompt)
    return _are_token_ids(prompt) or all(isinstance(item, list) and item and _are_token_ids(item) for item in prompt)


def _are_token_ids(items: list[Any]) -> bool:
    # `type(...) is int` also refuses booleans, and is the cheapest check for prompts of 100,000 ids.
    return all(type(item) is int for item in items) and 0 <= min(items) and max(items) <= MAX_TOKEN_ID


def _single_prompt(prompt: Any) -> Prompt | None:
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
        only: Prompt = prompt[0]
        return only
    return prompt if isinstance(prompt, list) and isinstance(prompt[0], int) else None
