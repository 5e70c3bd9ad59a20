"""Renders a model's chat template exactly as Hugging Face's `apply_chat_template` does.

The template comes from the model directory and is run in a sandbox all the same; a client's own template is never run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from datetime import datetime
from typing import Any, Final, NoReturn

from jinja2 import nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

_CONTINUE_TAG: Final = "CONTINUE_FINAL_MESSAGE_TAG "


class ChatTemplateError(ValueError):
    """The template refused these messages, or is broken."""


class RenderedTooLong(Exception):
    """Rendering was ended, because the text is longer than was asked for."""


class _GenerationBlock(Extension):
    """`{% generation %}` marks what an assistant wrote, for training; rendering passes it through."""

    tags = {"generation"}  # noqa: RUF012 - the type is jinja2's

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_pass_through", [])
        return nodes.CallBlock(call, [], [], body).set_lineno(lineno)

    def _pass_through(self, caller: Any) -> str:
        return str(caller())


class ChatTemplate:
    """One compiled template. `variables` are the special tokens by name (`bos_token` and so on)."""

    def __init__(self, source: str, variables: dict[str, Any]) -> None:
        self._source = source
        #: Bounds what the template itself adds to the messages, but for what it repeats with each.
        self.size_bytes = len(source.encode("utf-8"))
        self._variables = variables
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, LoopControlExtension]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise ChatTemplateError(f"the chat template does not compile: {error}") from error

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        documents: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        extra: Mapping[str, Any] | None = None,
        max_chars: int | None = None,
    ) -> str:
        """The prompt's text. `extra` are variables that the client named; those of this method win over them. Raises
        ChatTemplateError, or RenderedTooLong soon after `max_chars` are there."""
        if continue_final_message:
            messages = self._marked(messages, add_generation_prompt)
        variables = {**self._variables, **(extra or {}), "messages": messages, "tools": tools, "documents": documents}
        variables["add_generation_prompt"] = add_generation_prompt
        try:
            pieces = self._template.generate(variables)
            text = "".join(pieces if max_chars is None else _no_more_than(max_chars + self.size_bytes, pieces))
        except RenderedTooLong:
            raise
        except Exception as error:
            # A template is a program with inputs from outside; whatever it raises means only that it cannot be used.
            raise ChatTemplateError(f"the chat template failed: {error}") from error
        return _cut_at_mark(text, messages) if continue_final_message else text

    def _marked(self, messages: list[dict[str, Any]], add_generation_prompt: bool) -> list[dict[str, Any]]:
        if add_generation_prompt:
            raise ChatTemplateError("continue_final_message and add_generation_prompt exclude each other")
        if "content" not in self._source or not isinstance(messages[-1].get("content"), str):
            raise ChatTemplateError("there is no final text to continue")
        marked = deepcopy(messages)
        marked[-1]["content"] += _CONTINUE_TAG
        return marked


def _no_more_than(max_chars: int, pieces: Iterator[str]) -> Iterator[str]:
    # Callers leave room for what comes after the mark of a continued message, which is cut off again.
    num_chars = 0
    for piece in pieces:
        num_chars += len(piece)
        if num_chars > max_chars:
            raise RenderedTooLong
        yield piece


def _cut_at_mark(text: str, marked: list[dict[str, Any]]) -> str:
    final = str(marked[-1]["content"]).removesuffix(_CONTINUE_TAG)
    at = text.rfind(_CONTINUE_TAG.strip())
    if at < 0 or final.strip() not in text:
        raise ChatTemplateError("the template does not show the final message, so it cannot be continued")
    # A template that trims its messages also trimmed the tag's space; then trailing space of the text goes as well.
    return text[:at] if text[at:].startswith(_CONTINUE_TAG) else text[:at].rstrip()


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja2's own filter escapes HTML, which no model was trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
