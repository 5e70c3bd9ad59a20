"""A request's prompt as the token ids that the engine will see, or the reason why they cannot be known here.

Rules of this file:
- Special tokens follow vLLM: completions add them unless `add_special_tokens` is false, chat only if it is true.
- Nothing is fetched: the tokenizer is the model directory's `tokenizer.json`.
- No text stops the event loop for longer than the interpreter's switch interval and a few milliseconds: long ones are
  handled in threads, one template is rendered at a time, and texts are encoded by `encode_batch_fast`, which lets go of
  the interpreter's lock. `encode` holds it from beginning to end, in whatever thread.
- No text costs more than a prompt that fits: rendering ends, and encoding does not begin, where no more tokens can fit;
  ids are made only of what fits; and only so many characters are tokenized at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer

from prfaas.gateway.api.openai import ApiRequest, check_length, prompt_too_long
from prfaas.gateway.prompt.chat_template import ChatTemplate, ChatTemplateError, RenderedTooLong
from prfaas.gateway.prompt.text_budget import TextBudget

#: Below this a hand-over to a thread costs more than the work (measured at about 1 ms per 8 KiB of text).
MAX_INLINE_CHARS: Final = 8 * 1024
#: The library takes up to 600 bytes of memory for a token while it encodes (measured at one token for two characters).
MAX_CHARS_AT_ONCE: Final = 4 << 20

_SPECIAL_TOKENS: Final = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


class NotCountable(Exception):
    """The prompt's tokens cannot be known here. `reason` is an obstacle of `features.OBSTACLES`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class PromptTokenizer:
    """Tokenizer and chat template of one model. Safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer | None, config: dict[str, Any], chat_template: str | None) -> None:
        self._tokenizer = tokenizer
        specials = _special_tokens(config)
        self._template = ChatTemplate(chat_template, specials) if chat_template is not None else None
        self._specials_known = tokenizer is not None and _adds_specials_as_configured(tokenizer, config, specials)
        # As vLLM reckons (`max_chars_per_token`), which refuses longer texts by the same product.
        self._max_chars_per_token = 0 if tokenizer is None else max(map(len, tokenizer.get_vocab()), default=0)
        self._budget = TextBudget(MAX_CHARS_AT_ONCE)
        # Not the loop's own: names are resolved there, and a connection shall not wait for a prompt. One processor is
        # left to the event loop.
        num_threads = max(2, len(os.sched_getaffinity(0)) - 1)
        self._threads = ThreadPoolExecutor(num_threads, "prfaas-tokenize")
        # Rendering is Python: of several at once, each would make the event loop wait for one more switch interval.
        self._one_renders = threading.Lock()

    def max_tokens(self, request: ApiRequest) -> int:
        """No fewer than the prompt's tokens, known without tokenizing: a token stands for at least one byte.

        A normalizer that expands ligatures could break that bound; then a prompt near the threshold stays local.
        """
        return len(request.raw) + (self._template.size_bytes if self._template and request.endpoint == "chat" else 0)

    async def token_ids(self, request: ApiRequest, max_model_tokens: int) -> list[int]:
        """The prompt's token ids. Raises NotCountable, or ApiError if it does not fit into the model's context."""
        prompt = request.prompt if request.endpoint == "completions" else None
        if isinstance(prompt, list):
            check_length(len(prompt), request.max_output_tokens, max_model_tokens)
            return prompt
        if request.endpoint == "completions" and prompt is None:
            raise NotCountable("several_prompts")
        if len(request.raw) <= MAX_INLINE_CHARS:
            return self._encode(request, prompt, max_model_tokens, contextlib.nullcontext())
        return await self._encoded_in_thread(request, prompt, max_model_tokens)

    async def _encoded_in_thread(self, request: ApiRequest, prompt: str | None, max_model_tokens: int) -> list[int]:
        def work() -> list[int]:
            return self._encode(request, prompt, max_model_tokens, self._one_renders)

        loop = asyncio.get_running_loop()
        if self._budget.is_full(len(request.raw)):
            request.forget_values()  # it may wait for long, and the thread reads them again
        share = await self._budget.take(len(request.raw))
        job = self._threads.submit(work)

        def give_back(_: Future[list[int]]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(self._budget.give_back, share)

        # When the thread is done, not when the wait is: a client that hangs up ends its wait, and the thread works on.
        job.add_done_callback(give_back)
        return await asyncio.wrap_future(job)

    def _encode(
        self,
        request: ApiRequest,
        prompt: str | None,
        max_model_tokens: int,
        rendering: contextlib.AbstractContextManager[object],
    ) -> list[int]:
        is_chat, body = request.endpoint == "chat", request.body
        asked = body.get("add_special_tokens")
        add_special_tokens = not is_chat if asked is None else bool(asked)
        if self._tokenizer is None:
            raise NotCountable("no_tokenizer")
        if add_special_tokens and not self._specials_known:
            raise NotCountable("special_tokens")
        max_chars = max_model_tokens * self._max_chars_per_token
        with rendering:
            text = self._render(body, max_chars, max_model_tokens) if prompt is None else prompt
        if len(text) > max_chars:
            raise prompt_too_long(max_chars, max_model_tokens)
        encoded = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0]
        check_length(len(encoded), request.max_output_tokens, max_model_tokens)
        ids: list[int] = encoded.ids
        return ids

    def _render(self, body: dict[str, Any], max_chars: int, max_model_tokens: int) -> str:
        if self._template is None:
            raise NotCountable("no_chat_template")
        generate = body.get("add_generation_prompt")
        tools = body.get("tools")
        try:
            return self._template.render(
                body["messages"],
                tools=None if tools is None else [_as_engine_sees(tool) for tool in tools],
                documents=body.get("documents"),
                add_generation_prompt=True if generate is None else generate,
                continue_final_message=bool(body.get("continue_final_message")),
                max_chars=max_chars,
                extra=body.get("chat_template_kwargs"),
            )
        except ChatTemplateError:
            raise NotCountable("template_error") from None
        except RenderedTooLong:
            raise prompt_too_long(max_chars, max_model_tokens) from None


def load_tokenizer(model_dir: Path) -> PromptTokenizer:
    """Read a model directory. Without tokenizer.json every text prompt is NotCountable, and token ids still work.
    Raises ValueError for a file that is broken. Has the library use no threads in this process, unless its environment
    says otherwise."""
    # One text at a time has nothing to share out, and waking the library's threads costs as much as a short prompt.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    path = model_dir / "tokenizer.json"
    tokenizer = _read_tokenizer(path) if path.is_file() else None
    if tokenizer is not None:
        # Files often carry the settings of a training run; serving neither truncates nor pads.
        tokenizer.no_truncation()
        tokenizer.no_padding()
    config = _read_json(model_dir / "tokenizer_config.json")
    return PromptTokenizer(tokenizer, config, _chat_template(model_dir, config))


def _read_tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:
        # The library raises nothing narrower.
        raise ValueError(f"{path} is not a tokenizer: {error}") from error


def _chat_template(model_dir: Path, config: dict[str, Any]) -> str | None:
    path = model_dir / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {item.get("name"): item.get("template") for item in template if isinstance(item, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}


def _special_tokens(config: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in _SPECIAL_TOKENS:
        value = config.get(name)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            found[name] = value
    return found


def _adds_specials_as_configured(tokenizer: Tokenizer, config: dict[str, Any], specials: dict[str, Any]) -> bool:
    """transformers rebuilds the post-processor when `add_bos_token` or `add_eos_token` disagree with tokenizer.json."""
    ids = tokenizer.encode("a", add_special_tokens=True).ids
    for setting, name, position in (("add_bos_token", "bos_token", 0), ("add_eos_token", "eos_token", -1)):
        if config.get(setting) is None or name not in specials:
            continue
        has_it = bool(ids) and ids[position] == tokenizer.token_to_id(specials[name])
        if has_it != bool(config[setting]):
            return False
    return True


def _as_engine_sees(tool: dict[str, Any]) -> dict[str, Any]:
    # vLLM parses tools into a model and dumps it again: fixed order, absent fields as null.
    function = tool["function"]
    dumped = {"name": function["name"], "description": function.get("description")}
    return {"type": "function", "function": {**dumped, "parameters": function.get("parameters")}}
