"""A request's prompt as the token ids that the engine will see, or the reason why they cannot be known here.

Rules of this file:
- Special tokens follow vLLM: completions add them unless `add_special_tokens` is false, chat only if it is true.
- Nothing is fetched: the tokenizer is the model directory's `tokenizer.json`.
- Long texts are tokenized in a thread, so that one 100,000-token prompt does not hold up every stream.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer

from prfaas.gateway.chat_template import ChatTemplate, ChatTemplateError
from prfaas.gateway.openai import ApiRequest

#: Below this a hand-over to a thread costs more than the work (measured at about 1 ms per 8 KiB of text).
MAX_INLINE_CHARS: Final = 8 * 1024

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

    def max_tokens(self, request: ApiRequest) -> int:
        """No fewer than the prompt's tokens, known without tokenizing: a token stands for at least one byte.

        A normalizer that expands ligatures could break that bound; then a prompt near the threshold stays local.
        """
        return len(request.raw) + (self._template.size_bytes if self._template and request.endpoint == "chat" else 0)

    async def token_ids(self, request: ApiRequest) -> list[int]:
        """The prompt's token ids. Raises NotCountable."""
        prompt = request.prompt if request.endpoint == "completions" else None
        if isinstance(prompt, list):
            return prompt
        if request.endpoint == "completions" and prompt is None:
            raise NotCountable("several_prompts")
        if len(request.raw) <= MAX_INLINE_CHARS:
            return self._encode(request, prompt)
        return await asyncio.get_running_loop().run_in_executor(None, self._encode, request, prompt)

    def _encode(self, request: ApiRequest, prompt: str | None) -> list[int]:
        is_chat = request.endpoint == "chat"
        asked = request.body.get("add_special_tokens")
        add_special_tokens = not is_chat if asked is None else bool(asked)
        if self._tokenizer is None:
            raise NotCountable("no_tokenizer")
        if add_special_tokens and not self._specials_known:
            raise NotCountable("special_tokens")
        text = self._render(request.body) if prompt is None else prompt
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def _render(self, body: dict[str, Any]) -> str:
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
                extra=body.get("chat_template_kwargs"),
            )
        except ChatTemplateError:
            raise NotCountable("template_error") from None


def load_tokenizer(model_dir: Path) -> PromptTokenizer:
    """Read a model directory. Without tokenizer.json every text prompt is NotCountable, and token ids still work.
    Raises ValueError for a file that is broken."""
    path = model_dir / "tokenizer.json"
    tokenizer = _read_tokenizer(path) if path.is_file() else None
    if tokenizer is not None:
        # Files often carry the settings of a training run; serving neither truncates nor pads.
        tokenizer.no_truncation()
        tokenizer.no_padding()
    config = _read_json(model_dir / "tokenizer_config.json")
    return PromptTokenizer(tokenizer, config, _chat_template(model_dir, config))


def has_recurrent_state(model_dir: Path) -> bool:
    """Whether any layer keeps recurrent state, by config.json; unknown models count as if they did not."""
    config = _read_json(model_dir / "config.json")
    config = config.get("text_config") or config
    kinds = [*(config.get("layer_types") or ()), *(config.get("layers_block_type") or ())]
    if any(kind in ("linear_attention", "mamba", "mamba2", "recurrent", "linear") for kind in kinds):
        return True
    # Qwen3-Next's older configs give an interval instead of a list; the others name their state space's size.
    return any(config.get(key) for key in ("linear_num_value_heads", "mamba_d_state", "ssm_state_size", "state_size"))


def has_sliding_window(model_dir: Path) -> bool:
    """Whether any layer attends to a window only, by config.json."""
    config = _read_json(model_dir / "config.json")
    config = config.get("text_config") or config
    kinds = config.get("layer_types")
    if kinds:
        return any(kind == "sliding_attention" for kind in kinds)
    return bool(config.get("sliding_window")) and config.get("use_sliding_window", True) is not False


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
