"""Validation: a body is accepted, or refused with ApiError, and nothing else ever happens."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas.engines.kinds import STEERING_FIELDS
from prfaas.gateway.api.errors import ApiError
from prfaas.gateway.api.openai import ApiRequest, Endpoint, check_length, parse
from prfaas.gateway.prompt.offload_eligibility import OBSTACLES


def completion(**fields: Any) -> ApiRequest:
    """A parsed completion with a valid prompt unless `fields` say otherwise."""
    return parse("completions", json.dumps({"model": "m", "prompt": "x", **fields}).encode(), "m")


def chat(*messages: Any, **fields: Any) -> ApiRequest:
    """A parsed chat."""
    return parse("chat", json.dumps({"model": "m", "messages": list(messages), **fields}).encode(), "m")


USER = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": None}, {"prompt": ""}, {"prompt": []}, {"prompt": 5}, {"prompt": {}}, {"prompt": [""]},
        {"prompt": ["a", 1]}, {"prompt": [1, "a"]}, {"prompt": [1, [2]]}, {"prompt": [[]]}, {"prompt": [True]},
        {"prompt": [-1]}, {"prompt": [2**31]}, {"prompt": [[1.5]]}, {"n": 129}, {"n": "2"}, {"n": 1.0},
        {"max_tokens": 0}, {"max_tokens": "5"}, {"max_tokens": -1}, {"stream": "yes"}, {"stream_options": []},
        {"temperature": "hot"}, {"seed": 1.5}, {"echo": 1}, {"cache_salt": 4}, {"best_of": 0}, {"suffix": 1},
    ],
)  # fmt: skip
def test_wrong_completion_field_is_named(fields: dict[str, Any]) -> None:
    """400 with the field in `param`."""
    with pytest.raises(ApiError) as caught:
        completion(**fields)
    assert (caught.value.status, caught.value.param) == (400, next(iter(fields)))


@pytest.mark.parametrize(
    "messages",
    [[], [5], [{}], [{"role": 1, "content": "x"}], [{"role": "user", "content": 5}], [{"role": "", "content": "x"}],
     [{"role": "user", "content": [1]}]],
)  # fmt: skip
def test_wrong_messages_are_refused(messages: list[Any]) -> None:
    """400 on `messages`."""
    with pytest.raises(ApiError) as caught:
        chat(*messages)
    assert (caught.value.status, caught.value.param) == (400, "messages")


@pytest.mark.parametrize("fields", [{"tools": {}}, {"tools": [1]}, {"documents": "x"}, {"chat_template_kwargs": []}])
def test_wrong_chat_field_is_named(fields: dict[str, Any]) -> None:
    """400 with the field in `param`."""
    with pytest.raises(ApiError) as caught:
        chat(USER, **fields)
    assert caught.value.param == next(iter(fields))


def test_null_means_absent() -> None:
    """As the OpenAI API has it."""
    request = completion(n=None, max_tokens=None, stream=None, stream_options=None, temperature=None)
    assert (request.stream, request.max_output_tokens, request.obstacle) == (False, None, None)


def test_max_completion_tokens_wins_in_chat() -> None:
    """Over the older name."""
    assert chat(USER, max_tokens=9, max_completion_tokens=4).max_output_tokens == 4
    assert chat(USER, max_tokens=9).max_output_tokens == 9


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [("x", "x"), (["x"], "x"), ([1, 2], [1, 2]), ([[1, 2]], [1, 2]), (["x", "y"], None), ([[1], [2]], None)],
)
def test_the_single_prompt(prompt: Any, expected: Any) -> None:
    """A list of one counts as one prompt."""
    assert completion(prompt=prompt).prompt == expected


def test_untouched_body_is_forwarded_as_it_came() -> None:
    """Byte for byte, with its spaces and its number formats."""
    raw = b'{"model" : "m", "prompt": "x", "logit_bias": {"1": 1.50e0}}'
    assert parse("completions", raw, "m").raw == raw


@pytest.mark.parametrize("name", sorted(STEERING_FIELDS))
def test_steering_fields_go_and_everything_else_stays(name: str) -> None:
    """At the top and inside vllm_xargs."""
    request = completion(**{name: {"a": 1}, "vllm_xargs": {name: "x", "y": 1}, "tools": [{"z": [None, 1.5]}]})
    assert orjson.loads(request.raw) == {
        "model": "m", "prompt": "x", "vllm_xargs": {"y": 1}, "tools": [{"z": [None, 1.5]}],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "obstacle"),
    [
        ({}, None),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}, None),
        ({"tools": [{"type": "function", "function": {"name": "f", "strict": True}}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "none"}, "tools"),
        ({"chat_template": "{{ x }}"}, "client_chat_template"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, None),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"documents": [{"title": "t", "text": "x"}]}, None),
        ({"documents": [{"title": 1}]}, "documents"),
        ({"continue_final_message": True, "add_generation_prompt": False}, None),
        ({"n": 2}, "several_choices"),
        ({"logprobs": True, "top_logprobs": 3, "response_format": {"type": "json_object"}}, None),
    ],
)
def test_chat_obstacles(fields: dict[str, Any], obstacle: str | None) -> None:
    """What keeps a chat local."""
    assert chat(USER, **fields).obstacle == obstacle


@pytest.mark.parametrize(
    ("messages", "obstacle"),
    [
        ([{"role": "system", "content": "s"}, USER], None),
        ([USER, {"role": "system", "content": "s"}], "messages"),
        ([{"role": "developer", "content": "s"}, USER], "messages"),
        ([{"role": "user", "content": [{"type": "text", "text": "x"}]}], "content_parts"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "content_parts"),
        ([USER, {"role": "assistant", "content": "x", "tool_calls": []}], "messages"),
        ([USER, {"role": "tool", "content": "x", "tool_call_id": "1"}], "messages"),
        ([{"role": "assistant", "content": None}], "content_parts"),
    ],
)
def test_message_obstacles(messages: list[Any], obstacle: str | None) -> None:
    """What keeps messages local."""
    assert chat(*messages).obstacle == obstacle


def test_every_obstacle_is_in_the_table() -> None:
    """So that docs/gateway.md, which is compared with the table, has them all."""
    assert {"prompt_embeds", "several_prompts", "suffix", "echo", "tools", "messages"} <= OBSTACLES.keys()
    request = parse("completions", b'{"model":"m","prompt_embeds":"x"}', "m")
    assert (request.obstacle, request.prompt) == ("prompt_embeds", None)


@pytest.mark.parametrize(
    ("prompt", "output", "fits"), [(9, None, True), (10, None, False), (5, 5, True), (5, 6, False)]
)
def test_length(prompt: int, output: int | None, fits: bool) -> None:
    """Prompt and output share the context of 10; without a limit at least one token must fit."""
    if fits:
        check_length(prompt, output, 10)
    else:
        with pytest.raises(ApiError, match="context is 10"):
            check_length(prompt, output, 10)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
field_names = st.sampled_from(
    ["prompt", "messages", "n", "best_of", "max_tokens", "max_completion_tokens", "stream", "stream_options", "tools",
     "documents", "chat_template_kwargs", "chat_template", "add_special_tokens", "suffix", "echo", "cache_salt",
     "kv_transfer_params", "vllm_xargs", "prompt_embeds", "reasoning_effort", "tool_choice", "truncate_prompt_tokens"]
)  # fmt: skip
endpoints: st.SearchStrategy[Endpoint] = st.sampled_from(["completions", "chat"])
nearly = st.fixed_dictionaries({"model": st.just("m") | json_values}).flatmap(
    lambda base: st.dictionaries(field_names, json_values | st.lists(st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "system", "tool"]) | json_values, "content": json_values}), max_size=3),
        max_size=6).map(lambda more: {**base, **more})
)  # fmt: skip


def check_refusal(error: ApiError) -> None:
    """A client's fault, in OpenAI's shape."""
    assert error.status in (400, 404)
    assert orjson.loads(error.body())["error"].keys() == {"message", "type", "param", "code"}


@given(endpoints, nearly)
def test_any_json_is_accepted_or_refused_and_an_accepted_one_can_be_forwarded(
    endpoint: Endpoint, body: dict[str, Any]
) -> None:
    """No other exception, and no steering field survives."""
    try:
        request = parse(endpoint, json.dumps(body).encode(), "m")
    except ApiError as refusal:
        check_refusal(refusal)
        return
    assert request.obstacle is None or request.obstacle in OBSTACLES
    assert STEERING_FIELDS.isdisjoint(orjson.loads(request.raw))


@given(endpoints, st.binary(max_size=200))
def test_any_bytes_are_refused_or_accepted(endpoint: Endpoint, raw: bytes) -> None:
    """No other exception."""
    with pytest.raises(ApiError):
        parse(endpoint, raw, "m")
