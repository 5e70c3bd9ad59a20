"""Prompts become the token ids that the engine will see, or are left to the engine."""

from __future__ import annotations

import asyncio
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, processors

from prfaas.gateway.chat_template import ChatTemplate, ChatTemplateError
from prfaas.gateway.openai import parse
from prfaas.gateway.tokenize import NotCountable, PromptTokenizer, has_recurrent_state, load_tokenizer
from prfaas.testing.gateway_rig import write_tiny_model


def ids(tokenizer: PromptTokenizer, **fields: Any) -> list[int]:
    """Token ids of a request."""
    body = json.dumps({"model": "m", **fields}).encode()
    request = parse("chat" if "messages" in fields else "completions", body, "m")
    return asyncio.run(tokenizer.token_ids(request))


def reason(tokenizer: PromptTokenizer, **fields: Any) -> str:
    """Why a request cannot be counted."""
    with pytest.raises(NotCountable) as caught:
        ids(tokenizer, **fields)
    return caught.value.reason


def with_bos(model_dir: Path, **config: Any) -> PromptTokenizer:
    """A tokenizer whose tokenizer.json puts `<bos>` first."""
    write_tiny_model(model_dir)
    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    tokenizer.add_special_tokens(["<bos>"])
    bos = tokenizer.token_to_id("<bos>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", bos)])
    tokenizer.enable_truncation(3)
    tokenizer.save(str(model_dir / "tokenizer.json"))
    settings = {"bos_token": {"content": "<bos>"}, "chat_template": "{{ bos_token }}{{ messages[0].content }}"}
    (model_dir / "tokenizer_config.json").write_text(json.dumps({**settings, **config}))
    return load_tokenizer(model_dir)


def test_special_tokens_follow_vllm(tmp_path: Path) -> None:
    """Completions add them by default, chat does not; truncation in the file is ignored."""
    tokenizer = with_bos(tmp_path)
    user = [{"role": "user", "content": "abcdef"}]
    assert len(ids(tokenizer, prompt="abcdef")) == 7
    assert len(ids(tokenizer, prompt="abcdef", add_special_tokens=False)) == 6
    assert ids(tokenizer, messages=user) == ids(tokenizer, prompt="abcdef")
    assert len(ids(tokenizer, messages=user, add_special_tokens=True)) == 8


def test_a_tokenizer_that_contradicts_its_config_is_not_trusted(tmp_path: Path) -> None:
    """transformers would rebuild the post-processor."""
    assert reason(with_bos(tmp_path, add_bos_token=False), prompt="abc") == "special_tokens"
    assert len(ids(with_bos(tmp_path, add_bos_token=False), prompt="abc", add_special_tokens=False)) == 3
    assert len(ids(with_bos(tmp_path, add_bos_token=True), prompt="abc")) == 4


@pytest.mark.parametrize("name", ["self", "messages_", "extra", "max_chars", "variables", "caller", "loop", "range"])
def test_a_client_may_name_any_variable_of_the_template(tmp_path: Path, name: str) -> None:
    """Also one that our own code has: it must neither end in a server error nor change what the code does."""
    write_tiny_model(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    user = [{"role": "user", "content": "abc"}]
    assert ids(tokenizer, messages=user, chat_template_kwargs={name: 1}) == ids(tokenizer, messages=user)


def test_token_ids_pass_as_they_are_and_need_no_tokenizer(tmp_path: Path) -> None:
    """Whatever the model directory holds."""
    tokenizer = load_tokenizer(tmp_path)
    assert ids(tokenizer, prompt=[5, 6]) == [5, 6]
    assert reason(tokenizer, prompt="x") == "no_tokenizer"


def test_long_text_is_tokenized_in_a_thread_to_the_same_ids(tmp_path: Path) -> None:
    """The two ways agree."""
    write_tiny_model(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert ids(tokenizer, prompt="ab" * 10_000) == ids(tokenizer, prompt="ab") * 10_000


def test_templates_that_fail_leave_the_words_to_the_engine(tmp_path: Path) -> None:
    """No template, and one that refuses."""
    user = [{"role": "user", "content": "x"}]
    write_tiny_model(tmp_path, chat_template=None)
    assert reason(load_tokenizer(tmp_path), messages=user) == "no_chat_template"
    write_tiny_model(tmp_path, chat_template="{{ raise_exception('no') }}")
    assert reason(load_tokenizer(tmp_path), messages=user) == "template_error"
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    assert len(ids(load_tokenizer(tmp_path), messages=user)) == 2


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, False),
        ({"layer_types": ["full_attention", "sliding_attention"]}, False),
        ({"layer_types": ["linear_attention", "full_attention"]}, True),
        ({"text_config": {"layer_types": ["linear_attention"]}}, True),
        ({"linear_num_value_heads": 4}, True),
        ({"mamba_d_state": 16}, True),
    ],
)
def test_recurrent_models_are_recognised(tmp_path: Path, config: dict[str, Any], expected: bool) -> None:
    """By config.json."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert has_recurrent_state(tmp_path) is expected


QWEN_LIKE = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "<|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(count=0) %}
{% for message in messages %}
    {% if message.role == 'system' %}
        {% continue %}
    {% endif %}
    {% set ns.count = ns.count + 1 %}
    {% generation %}
<|im_start|>{{ message.role }}
{{ message.content | trim if trimmed else message.content }}<|im_end|>
    {% endgeneration %}
{% endfor %}
{% for document in documents or [] %}
[{{ document.title }}]
{% endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}
        {{- '<think>\\n\\n</think>' }}
    {%- endif %}
{%- endif %}
{{- ns.count }}{{ bos_token }}"""

CASES: list[dict[str, Any]] = [
    {},
    {"add_generation_prompt": False},
    {"enable_thinking": False},
    {"tools": [{"type": "function", "function": {"name": "f", "description": '<é> & "q"', "parameters": None}}]},
    {"documents": [{"title": "T", "text": "x"}]},
    {"add_generation_prompt": False, "continue_final_message": True},
    {"add_generation_prompt": False, "continue_final_message": True, "trimmed": True},
]
CONVERSATIONS = [
    [{"role": "user", "content": "hé <b>\n\n  two "}],
    [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}, {"role": "assistant", "content": "So far "}],
]


#: What `ChatTemplate.render` takes by name; the rest are variables for the template.
OPTIONS = ("tools", "documents", "add_generation_prompt", "continue_final_message")


def rendered(template: ChatTemplate, messages: list[dict[str, Any]], **case: Any) -> str:
    """A prompt's text, of options and variables in one dict as transformers takes them."""
    options = {name: case.pop(name) for name in OPTIONS if name in case}
    return template.render(messages, **options, extra=case)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("messages", CONVERSATIONS, ids=["one", "three"])
def test_rendering_equals_transformers(messages: list[dict[str, Any]], case: dict[str, Any]) -> None:
    """Character for character, where transformers is installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = pytest.importorskip("transformers.utils.chat_template_utils")
        variables = {"bos_token": "<bos>"}
        options = {"tools": None, "documents": None, "add_generation_prompt": True, **case}
        (expected,), _ = reference.render_jinja_template(
            conversations=[messages], chat_template=QWEN_LIKE, **options, **variables
        )
    assert rendered(ChatTemplate(QWEN_LIKE, variables), messages, **case) == expected


def test_rendering_is_what_it_was() -> None:
    """A golden text, for machines without transformers."""
    text = rendered(ChatTemplate(QWEN_LIKE, {"bos_token": "<bos>"}), CONVERSATIONS[1], enable_thinking=False)
    assert text == (
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\nSo far <|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>2<bos>"
    )


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{% for i in range(10**9) %}x{% endfor %}",
        "{{ raise_exception('x') }}",
        "{{ messages[5].content }}{{ undefined_thing.attribute }}",
    ],
)
def test_templates_run_in_a_sandbox(source: str) -> None:
    """Nothing but ChatTemplateError comes out."""
    with pytest.raises(ChatTemplateError):
        ChatTemplate(source, {}).render([{"role": "user", "content": "x"}])


@pytest.mark.parametrize(
    ("source", "case"),
    [
        ("{{ messages[0].role }}", {"add_generation_prompt": False, "continue_final_message": True}),
        ("{{ messages[0].content[:1] }}", {"add_generation_prompt": False, "continue_final_message": True}),
        ("{{ messages[0].content }}", {"add_generation_prompt": True, "continue_final_message": True}),
    ],
)
def test_a_message_that_cannot_be_continued(source: str, case: dict[str, Any]) -> None:
    """Is an error, as in transformers."""
    with pytest.raises(ChatTemplateError):
        ChatTemplate(source, {}).render([{"role": "assistant", "content": "xyz"}], **case)


def test_a_broken_template_is_an_error_at_start() -> None:
    """Not at the first request."""
    with pytest.raises(ChatTemplateError, match="does not compile"):
        ChatTemplate("{% if %}", {})
