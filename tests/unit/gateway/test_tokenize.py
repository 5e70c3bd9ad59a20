"""Prompts become the token ids that the engine will see, or are left to the engine."""

from __future__ import annotations

import asyncio
import json
import threading
import warnings
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from prfaas.gateway.api.errors import ApiError
from prfaas.gateway.api.openai import parse
from prfaas.gateway.prompt.chat_template import ChatTemplate, ChatTemplateError
from prfaas.gateway.prompt.tokenize import (
    MAX_CHARS_AT_ONCE,
    NotCountable,
    PromptTokenizer,
    load_tokenizer,
)
from prfaas.testing.gateway_rig import until, write_tiny_model

#: More than any prompt here has.
MODEL_TOKENS = 1 << 20
SEED = 20_261_125


def ids(tokenizer: PromptTokenizer, **fields: Any) -> list[int]:
    """Token ids of a request."""
    body = json.dumps({"model": "m", **fields}).encode()
    request = parse("chat" if "messages" in fields else "completions", body, "m")
    return asyncio.run(tokenizer.token_ids(request, MODEL_TOKENS))


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


def texts() -> list[str]:
    """What prompts are made of: words, code, other scripts, marks that combine, special tokens whole and broken."""
    pieces = ["the ", "def f(x):\n", "  ", "\t", "é", "e\u0301", "漢字", "🙂", "👩\u200d👧", "ﬁ", "\u0000", "\ufeff", "<bos>",
              "<bo", "<|user|>", "<unk>", "\r\n", "0123", "…", "\U0010ffff", "\u00a0"]  # fmt: skip
    random = Random(SEED)
    mixed = ["".join(random.choices(pieces, k=random.randrange(1, 200))) for _ in range(200)]
    return ["", " ", "a", "a" * 5000, *pieces, *mixed]


def bytes_tokenizer() -> Tokenizer:
    """As those of today's models: byte-level BPE after a split into words, NFC before; file says to cut and to pad."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(r"\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, special_tokens=["<bos>"],
                                  show_progress=False)  # fmt: skip
    tokenizer.train_from_iterator(texts(), trainer)
    bos = tokenizer.token_to_id("<bos>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", bos)])
    tokenizer.enable_truncation(7)
    tokenizer.enable_padding(length=9)
    return tokenizer


@pytest.mark.parametrize("kind", ["bytes", "characters"])
@pytest.mark.parametrize("special", [False, True])
def test_a_prompt_has_the_ids_that_the_library_gives_it(tmp_path: Path, kind: str, special: bool) -> None:
    """Those of `Tokenizer.encode`, which engines call: we call another function of the library."""
    write_tiny_model(tmp_path)
    if kind == "bytes":
        bytes_tokenizer().save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    reference = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    reference.no_truncation()
    reference.no_padding()
    for text in filter(None, texts()):
        expected = reference.encode(text, add_special_tokens=special).ids
        assert ids(tokenizer, prompt=text, add_special_tokens=special) == expected, f"seed {SEED}: {text!r}"


def refusal(tokenizer: PromptTokenizer, max_model_tokens: int, **fields: Any) -> str:
    """The words of the refusal of a prompt that is too long."""
    body = json.dumps({"model": "m", **fields}).encode()
    request = parse("chat" if "messages" in fields else "completions", body, "m")
    with pytest.raises(ApiError) as caught:
        asyncio.run(tokenizer.token_ids(request, max_model_tokens))
    assert (caught.value.status, caught.value.code) == (400, "context_length_exceeded")
    return caught.value.message


def test_a_text_that_cannot_fit_is_refused_without_tokenizing(tmp_path: Path) -> None:
    """No token is longer than five characters, `<unk>`: 50 of them cannot be fewer than 10 tokens, 51 cannot be 10."""
    write_tiny_model(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert "the prompt has 50 and 1 more" in refusal(tokenizer, 10, prompt="x" * 50)
    assert "more than 50 characters" in refusal(tokenizer, 10, prompt="x" * 51)
    user = [{"role": "user", "content": "x" * 51}]
    assert "more than 50 characters" in refusal(tokenizer, 10, messages=user)


def test_rendering_ends_where_the_text_cannot_fit_any_more(tmp_path: Path) -> None:
    """A template may make much of little: this one would write for ever and a day."""
    endless = "{% for i in range(90000) %}{% for j in range(90000) %}abc{% endfor %}{% endfor %}"
    write_tiny_model(tmp_path, chat_template=endless)
    assert "more than 50 characters" in refusal(
        load_tokenizer(tmp_path), 10, messages=[{"role": "user", "content": "x"}]
    )


class Gate:
    """Holds whoever wants to render, until it is opened."""

    def __init__(self) -> None:
        self.num_inside = 0
        self.opened = threading.Event()

    def __enter__(self) -> None:
        self.num_inside += 1
        assert self.opened.wait(30), "nobody opened the gate"

    def __exit__(self, *_: object) -> None: ...


def test_a_client_that_hangs_up_does_not_give_its_share_back_before_its_text_is_done(tmp_path: Path) -> None:
    """Else who hangs up at once could have any number of texts tokenized at once."""
    write_tiny_model(tmp_path)
    tokenizer, gate = load_tokenizer(tmp_path), Gate()
    tokenizer._one_renders = gate  # type: ignore[assignment]
    user = [{"role": "user", "content": "x" * MAX_CHARS_AT_ONCE}]
    request = parse("chat", json.dumps({"model": "m", "messages": user}).encode(), "m")

    async def scenario() -> None:
        leaving = asyncio.create_task(tokenizer.token_ids(request, 10))
        await until(lambda: gate.num_inside == 1)
        leaving.cancel()
        await asyncio.wait([leaving])
        staying = asyncio.create_task(tokenizer.token_ids(request, 10))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(staying), 0.1)
        assert gate.num_inside == 1
        gate.opened.set()
        with pytest.raises(ApiError, match="characters"):
            await staying
        assert gate.num_inside == 2

    asyncio.run(scenario())


def test_templates_that_fail_leave_the_words_to_the_engine(tmp_path: Path) -> None:
    """No template, and one that refuses."""
    user = [{"role": "user", "content": "x"}]
    write_tiny_model(tmp_path, chat_template=None)
    assert reason(load_tokenizer(tmp_path), messages=user) == "no_chat_template"
    write_tiny_model(tmp_path, chat_template="{{ raise_exception('no') }}")
    assert reason(load_tokenizer(tmp_path), messages=user) == "template_error"
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    assert len(ids(load_tokenizer(tmp_path), messages=user)) == 2


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
