"""From text to tokens as the files of a model say, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

#: As many different tokens are answered with.
_MAX_ALPHABET: Final = 64


class NoText(ValueError):
    """Text cannot be made tokens here."""


class Texts:
    """Of one model directory. Without a tokenizer only token ids are understood, and answers have no text."""

    def __init__(self, model_dir: Path) -> None:
        path = model_dir / "tokenizer.json"
        self._tokenizer: Tokenizer | None = Tokenizer.from_file(str(path)) if path.is_file() else None
        self._template = _template(model_dir)
        self.alphabet = list(range(1, _MAX_ALPHABET)) if self._tokenizer is None else _alphabet(self._tokenizer)

    def tokens(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Raises NoText."""
        if self._tokenizer is None:
            raise NoText("this emulated engine has no tokenizer; send token ids to /v1/completions")
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def chat(self, body: Mapping[str, Any]) -> list[int]:
        """Of a chat request. Raises NoText."""
        if self._template is None:
            raise NoText("this emulated engine's model has no chat template")
        env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        messages = [{**message, "content": _content(message.get("content"))} for message in body["messages"]]
        try:
            text = env.from_string(self._template).render(
                messages=messages,
                tools=body.get("tools"),
                add_generation_prompt=body.get("add_generation_prompt", True),
            )
        except Exception as error:
            raise NoText(f"the chat template failed: {error}") from None
        return self.tokens(text, add_special_tokens=bool(body.get("add_special_tokens", False)))

    def text(self, token_ids: Sequence[int]) -> str:
        return "" if self._tokenizer is None else str(self._tokenizer.decode(list(token_ids)))


def _content(content: object) -> object:
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content


def _template(model_dir: Path) -> str | None:
    jinja = model_dir / "chat_template.jinja"
    if jinja.is_file():
        return jinja.read_text(encoding="utf-8")
    config = model_dir / "tokenizer_config.json"
    found = json.loads(config.read_bytes()).get("chat_template") if config.is_file() else None
    return found if isinstance(found, str) else None


def _alphabet(tokenizer: Tokenizer) -> list[int]:
    """Tokens that are small letters and blanks, which may stand in any order."""
    found = [
        number
        for number in range(tokenizer.get_vocab_size())
        if (text := tokenizer.decode([number]))
        and text.isascii()
        and text.replace(" ", "a").isalpha()
        and text.islower()
    ]
    blank = [number for number in range(tokenizer.get_vocab_size()) if tokenizer.decode([number]) == " "]
    return ([*found[:_MAX_ALPHABET], *blank * 5]) or [1]
