"""Which features of a request forbid prefilling it elsewhere. Pure; each obstacle is a route reason that clients see.

The gateway must know the prompt's tokens exactly as the engine will. What it cannot reproduce for certain runs locally:
a wrong guess would cost a prefill and a transfer that the decode engine then refuses (it compares `token_digest`).
"""

from __future__ import annotations

from typing import Any, Final

#: Obstacle -> what it stands for. docs/gateway.md lists them; a test compares.
OBSTACLES: Final[dict[str, str]] = {
    "several_choices": "`n` or `best_of` above 1",
    "beam_search": "`use_beam_search`",
    "several_prompts": "more than one prompt in one request",
    "echo": "`echo` needs the prompt's own logits",
    "prompt_logprobs": "`prompt_logprobs` needs the prompt's own logits",
    "suffix": "`suffix`",
    "prompt_embeds": "`prompt_embeds`",
    "truncated_prompt": "`truncate_prompt_tokens`",
    "client_chat_template": "`chat_template` in the request; the gateway never renders a client's template",
    "chat_template_kwargs": "`chat_template_kwargs` that replace what the gateway itself passes to the template",
    "content_parts": "message content that is not plain text",
    "messages": "messages whose rendering depends on the engine: tool calls and results, developer role, reasoning",
    "tools": "tools with fields beyond type, name, description and parameters, or `tool_choice: none`",
    "reasoning_effort": "`reasoning_effort`",
    "documents": "documents that are not plain strings",
    "special_tokens": "the tokenizer adds special tokens in a way that the gateway cannot reproduce",
    "no_chat_template": "the model has no chat template",
    "template_error": "the chat template refused the messages; the engine words the error",
    "no_tokenizer": "the model directory has no tokenizer.json",
}

_PLAIN_ROLES: Final = frozenset({"system", "user", "assistant"})
_PLAIN_KEYS: Final = frozenset({"role", "content"})
_RESERVED_KWARGS: Final = frozenset(
    {
        "messages",
        "conversation",
        "tools",
        "documents",
        "add_generation_prompt",
        "continue_final_message",
        "chat_template",
        "tokenize",
        "reasoning_effort",
        "return_assistant_tokens_mask",
        "tokenizer_kwargs",
        "padding",
        "truncation",
        "max_length",
        "return_tensors",
        "return_dict",
    }
)


def completion_obstacle(body: dict[str, Any]) -> str | None:
    """What in a /v1/completions body forbids offloading, or None."""
    if body.get("prompt_embeds") is not None:
        return "prompt_embeds"
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) > 1 and not isinstance(prompt[0], int):
        return "several_prompts"
    return "suffix" if body.get("suffix") else _common_obstacle(body)


def chat_obstacle(body: dict[str, Any]) -> str | None:
    """What in a /v1/chat/completions body forbids offloading, or None."""
    if body.get("chat_template") is not None:
        return "client_chat_template"
    if body.get("reasoning_effort") is not None:
        return "reasoning_effort"
    if not _RESERVED_KWARGS.isdisjoint(body.get("chat_template_kwargs") or ()):
        return "chat_template_kwargs"
    if not _plain_documents(body.get("documents")):
        return "documents"
    if body.get("tools") is not None and not _plain_tools(body):
        return "tools"
    return _message_obstacle(body["messages"]) or _common_obstacle(body)


def _common_obstacle(body: dict[str, Any]) -> str | None:
    if (body.get("n") or 1) > 1 or (body.get("best_of") or 1) > 1:
        return "several_choices"
    if body.get("use_beam_search"):
        return "beam_search"
    if body.get("echo"):
        return "echo"
    if body.get("prompt_logprobs") is not None:
        return "prompt_logprobs"
    return "truncated_prompt" if body.get("truncate_prompt_tokens") is not None else None


def _message_obstacle(messages: list[dict[str, Any]]) -> str | None:
    if any(not isinstance(message.get("content"), str) for message in messages):
        return "content_parts"
    for index, message in enumerate(messages):
        if message["role"] not in _PLAIN_ROLES or not _PLAIN_KEYS.issuperset(message):
            return "messages"
        # Engines may merge system messages that do not come first, depending on the template.
        if message["role"] == "system" and index > 0:
            return "messages"
    return None


def _plain_tools(body: dict[str, Any]) -> bool:
    return body.get("tool_choice") in (None, "auto") and all(_is_plain_tool(tool) for tool in body["tools"])


def _is_plain_tool(tool: dict[str, Any]) -> bool:
    function = tool.get("function")
    if tool.keys() != {"type", "function"} or tool["type"] != "function" or not isinstance(function, dict):
        return False
    known = function.keys() <= {"name", "description", "parameters"}
    return known and isinstance(function.get("name"), str)


def _plain_documents(documents: list[dict[str, Any]] | None) -> bool:
    return all(isinstance(value, str) for document in documents or () for value in document.values())
