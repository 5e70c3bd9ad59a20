"""What the fields that the gateway reads must be. Pure; everything here raises ApiError 400 with the field's name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final

import msgspec

from prfaas.gateway.api.errors import bad_request

#: As the OpenAI API has it; vLLM's own limit of 16,384 lets one request fill an engine.
MAX_N: Final = 128
MAX_TOKEN_ID: Final = 2**31 - 1

_TokenIds = list[Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKEN_ID)]]

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


def check_fields(body: dict[str, Any]) -> None:
    """Raise ApiError for the first scalar or container field of the wrong type. Null means absent."""
    for name, value in body.items():
        rule = _FIELDS.get(name)
        if rule is not None and value is not None and not rule[1](value):
            raise bad_request(f"`{name}` must be {rule[0]}", name, "invalid_type")


def check_messages(body: dict[str, Any]) -> None:
    """Raise ApiError unless `messages` is what the chat API takes."""
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


def check_prompt(body: dict[str, Any]) -> None:
    """Raise ApiError unless `prompt` is what the completions API takes."""
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
    try:
        # Refuses booleans too. In Python it would hold up everybody for 10 ms where a prompt has 100,000 ids.
        msgspec.convert(items, _TokenIds)
    except msgspec.ValidationError:
        return False
    return bool(items)
