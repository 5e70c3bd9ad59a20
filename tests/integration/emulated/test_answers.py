"""Emulated engines as processes: real gateway, nodes and lanes."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from prfaas.testing.deployed import HttpError
from prfaas.testing.deployed import http as ask_http
from prfaas.testing.emulated_site import MODEL_NAME, EmulatedSite, emulated_document


@pytest.fixture(scope="module")
def site() -> Iterator[EmulatedSite]:
    """One PrfaaS instance, one that prefills and one that decodes."""
    with EmulatedSite(emulated_document()) as site:
        yield site


def prompt(num_tokens: int, seed: int) -> list[int]:
    """Nobody else's."""
    rng = random.Random(seed)
    return [rng.randrange(256) for _ in range(num_tokens)]


@pytest.mark.parametrize(("num_tokens", "route"), [(20_000, "remote"), (300, "pd_prefill")])
def test_an_answer_is_the_same_wherever_its_prompt_was_prefilled(
    site: EmulatedSite, num_tokens: int, route: str
) -> None:
    """Every byte of the landing was compared, and the decode engine asked alone answers the same."""
    ids = prompt(num_tokens, num_tokens)
    offloaded = site.ask(ids, 40)
    alone = site.ask(ids, 40, url=site.engine("east-1"))
    assert offloaded.route == route
    assert int(offloaded.headers["x-prfaas-kv-bytes"]) > 0
    assert offloaded.text == alone.text
    assert len(alone.text) == 40
    assert site.metric(site.engine("east-1"), "prfaas_emulated_wrong_parts_total") == 0


def test_text_is_counted_alike_by_gateway_and_engine(site: EmulatedSite) -> None:
    """A text and a chat that are long enough are offloaded, and loaded."""
    text = "a prompt of words " * 100
    assert site.ask(text).route == "remote"
    body = {"model": MODEL_NAME, "messages": [{"role": "user", "content": text}], "max_tokens": 5}
    reply, headers = ask_http(f"{site.gateway}/v1/chat/completions", body)
    assert {name.lower(): value for name, value in headers.items()}["x-prfaas-tokens-recomputed"] == "1"
    assert len(reply["choices"][0]["message"]["content"]) == 5


def test_a_stream_has_the_tokens_of_the_whole_answer(site: EmulatedSite) -> None:
    """The first event has one token; later ones at most `stream_interval` more than its multiple."""
    ids = prompt(5_000, 7)
    events = stream(site, {"prompt": ids, "max_tokens": 100, "return_token_ids": True,
                           "stream_options": {"include_usage": True}})  # fmt: skip
    pieces = [event["choices"][0] for event in events if event["choices"]]
    assert "".join(piece["text"] for piece in pieces) == site.ask(ids, 100).text
    assert sum(len(piece["token_ids"]) for piece in pieces) == 100
    assert pieces[-1]["finish_reason"] == "length"
    assert events[-1]["usage"]["completion_tokens"] == 100
    assert all("usage" not in event for event in events[:-1])


def test_usage_so_far_is_in_every_event_if_it_is_asked_for(site: EmulatedSite) -> None:
    """As guidellm asks, and aiperf with --per-chunk-usage: they learn how many tokens came with the first event."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = stream(site, {"prompt": prompt(400, 8), "max_tokens": 70, "stream_options": options})
    counts = [event["usage"]["completion_tokens"] for event in events]
    texts = [event["choices"][0]["text"] for event in events[:-1]]
    assert counts[:-1] == [sum(map(len, texts[: place + 1])) for place in range(len(texts))]
    assert (counts[0], counts[-1]) == (1, 70)
    assert {event["usage"]["prompt_tokens"] for event in events} == {400}


def stream(site: EmulatedSite, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of a completion through the gateway, before [DONE]."""
    whole = {"model": MODEL_NAME, "stream": True, **body}
    request = urllib.request.Request(
        f"{site.gateway}/v1/completions", json.dumps(whole).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        lines = [line[6:] for line in response.read().decode().splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_an_idle_connection_can_be_used_again(site: EmulatedSite) -> None:
    """The gateway keeps it longer than clients do: none sends a request into one that is being closed. Servers as
    uvicorn start with 5 s."""
    url = urlsplit(site.gateway)
    connection = http.client.HTTPConnection(str(url.hostname), url.port, timeout=120)
    connection.request("GET", "/live")
    connection.getresponse().read()
    used = connection.sock
    time.sleep(7.0)
    connection.request("GET", "/live")
    assert connection.getresponse().status == 200
    assert connection.sock is used


def test_what_was_asked_before_is_cached(site: EmulatedSite) -> None:
    """The engine says so in its usage, and the gateway learns of it: the follow-up of a long prompt stays."""
    ids = prompt(600, 11)
    engine = site.engine("east-0")
    site.ask(ids, 1, url=engine)
    again = site.ask([*ids, *prompt(200, 12)], 1, url=engine)
    assert again.usage["prompt_tokens_details"]["cached_tokens"] == 512


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        ({"model": "other", "prompt": "x"}, 404, "does not exist"),
        ({"prompt": [1], "n": 2}, 400, "n:"),
        ({"prompt": []}, 400, "prompt"),
        ({"prompt": [1], "max_tokens": 0}, 400, "max_tokens"),
        ({"prompt": [1] * 1000, "max_tokens": 139_500}, 400, "context length"),
        ([], 400, "object"),
    ],
)
def test_the_engine_refuses_what_it_cannot_do(site: EmulatedSite, body: object, status: int, word: str) -> None:
    """With a status and a sentence."""
    with pytest.raises(HttpError) as refused:
        ask_http(f"{site.engine('east-0')}/v1/completions", body)
    assert refused.value.status == status
    assert word in refused.value.body["error"]["message"]


def test_a_killed_engine_costs_no_request(site: EmulatedSite) -> None:
    """The PrfaaS cluster's engines are killed under a request: it is answered as without them."""
    ids = prompt(100_000, 5)
    expected = site.ask(ids, 8, url=site.engine("east-1")).text
    answers: list[str] = []
    fresh = {"cache_salt": "another"}
    asking = threading.Thread(target=lambda: answers.append(site.ask(ids, 8, **fresh).text))
    asking.start()
    site.kill("engines-west")
    asking.join()
    assert answers == [expected]
    site.restart("engines-west")
    site.wait_nothing_held()
