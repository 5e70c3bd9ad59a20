"""The small parts: request ids, stories, bodies, errors, prefill answers, and the documents that list them."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas.core.cache.engine_cache import EngineCache
from prfaas.core.control.router import RouteReason
from prfaas.core.model.layout import KVGroupKind
from prfaas.core.wire.contract import from_values
from prfaas.core.wire.node_api import EngineHealth, LandingRecord, NodeHealth
from prfaas.engines.dialect import PrefillAnswer, PrefillFault
from prfaas.engines.kinds import STEERING_FIELDS
from prfaas.gateway.api.errors import ApiError
from prfaas.gateway.api.http import ClientGone, Response, read_body
from prfaas.gateway.app import log_line, request_id_of
from prfaas.gateway.fallback import FallbackReason, OffloadFailed, check_landed, check_prefill
from prfaas.gateway.fleet import MAX_SILENT_PROBES, Instance
from prfaas.gateway.prompt.offload_eligibility import OBSTACLES
from prfaas.gateway.story import Story, StoryBook
from prfaas.gateway.upstream.nodes import NodeRefused, read_answer

DOCS = Path(__file__).parents[3] / "docs"


@given(st.binary(max_size=300))
def test_any_request_id_becomes_a_safe_one(asked: bytes) -> None:
    """Bounded, printable, no header or path can be broken with it."""
    made = request_id_of(asked)
    assert 1 <= len(made) <= 128
    assert all(character.isalnum() or character in "._:-" for character in made)
    assert made.isascii()


def test_a_good_request_id_is_kept() -> None:
    """It is the client's handle on the story."""
    assert request_id_of(b"req-1.2:3_a") == "req-1.2:3_a"
    assert len(request_id_of(None)) == 32


def test_the_book_is_bounded_and_newest_wins() -> None:
    """The oldest goes; a repeated id shows the latest request."""

    async def main() -> None:
        book = StoryBook(2)
        for name in ("a", "b", "a", "c"):
            book.open(Story(name, "chat", status=len(name)))
        assert await book.read("b") is None
        assert await book.read("a") is not None
        newest = Story("a", "completions")
        book.open(newest)
        book.close(Story("a", "chat"))
        story = await book.read("a", 0.0)
        assert story is not None
        assert (story["endpoint"], story["closed"]) == ("completions", False)
        book.close(newest)
        story = await book.read("a", 5.0)
        assert story is not None
        assert story["closed"]

    asyncio.run(main())


def test_the_log_line_leaves_out_what_is_unknown() -> None:
    """key=value, one line."""
    assert log_line(Story("r", "chat", route="local", ttft_s=0.5)) == (
        "request_id=r endpoint=chat route=local kv_bytes_moved=0 ttft_s=0.5000"
    )


def body_of(*messages: dict[str, Any], headers: dict[bytes, bytes] | None = None, limit: int = 10) -> bytes:
    """What `read_body` makes of ASGI messages."""
    queue = list(messages)

    async def receive() -> dict[str, Any]:
        return queue.pop(0)

    return asyncio.run(read_body(receive, headers or {}, limit))


def test_bodies_are_read_whole_and_bounded() -> None:
    """In one part or many; the limit itself is allowed."""
    part = {"type": "http.request", "body": b"12345", "more_body": True}
    last = {"type": "http.request", "body": b"", "more_body": False}
    assert body_of(part, part, last) == b"1234512345"
    assert body_of({"type": "http.request"}) == b""
    with pytest.raises(ApiError):
        body_of(part, part, part)
    with pytest.raises(ApiError):
        body_of(headers={b"content-length": b"11"})
    with pytest.raises(ClientGone):
        body_of(part, {"type": "http.disconnect"})


def test_an_error_is_told_in_the_form_that_is_left() -> None:
    """A response, an event, or nothing."""

    async def main() -> None:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        error = ApiError(429, "later", code="overloaded", retry_after_s=2)
        fresh = Response(send)
        fresh.set_header(b"x-a", "1\r\nx-evil: 2")
        await fresh.error(error)
        assert sent[0]["status"] == 429
        assert (b"retry-after", b"2") in sent[0]["headers"]
        assert (b"x-a", b"1  x-evil: 2") in sent[0]["headers"]
        assert json.loads(sent[1]["body"])["error"]["type"] == "overloaded_error"
        started = Response(send)
        await started.start(200, b"text/event-stream")
        await started.error(error)
        assert sent[-1]["body"].endswith(b"\n\ndata: [DONE]\n\n")
        num_sent = len(sent)
        await started.error(error)
        assert len(sent) == num_sent

    asyncio.run(main())


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (PrefillFault.HTTP_ERROR, FallbackReason.PREFILL_HTTP_ERROR),
        (PrefillFault.NO_TRANSFER, FallbackReason.ZERO_BYTES),
        (PrefillFault.FAILED, FallbackReason.PREFILL_FAILED),
        (PrefillFault.NO_BYTES, FallbackReason.ZERO_BYTES),
    ],
)
def test_every_fault_of_a_prefill_engine_falls_back(fault: PrefillFault, reason: FallbackReason) -> None:
    """With the engine's own words."""
    check_prefill(PrefillAnswer(5))
    with pytest.raises(OffloadFailed) as caught:
        check_prefill(PrefillAnswer(0, fault, "no room"))
    assert (caught.value.reason, caught.value.detail) == (reason, "no room")


def landing_record(**said: Any) -> LandingRecord:
    """A node's record of a landing."""
    blank = dict.fromkeys(LandingRecord.__struct_fields__)
    counts = dict.fromkeys(("num_bytes", "bytes_landed", "num_prompt_tokens", "skip_tokens", "bytes_resent"), 0)
    return from_values(LandingRecord, {**blank, "transfer_id": "t", **counts, **said})


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"state": "landed", "bytes_landed": 0}, FallbackReason.ZERO_BYTES),
        ({"state": "expired"}, FallbackReason.LANDING_EXPIRED),
        ({"state": "aborted", "reason": "sender gone"}, FallbackReason.LANDING_ABORTED),
        ({"state": "consumed"}, FallbackReason.LANDING_ABORTED),
    ],
)
def test_only_landed_bytes_are_a_landing(said: dict[str, Any], reason: FallbackReason) -> None:
    """Everything else falls back."""
    assert check_landed(landing_record(state="landed", bytes_landed=7)) == 7
    with pytest.raises(OffloadFailed) as caught:
        check_landed(landing_record(**said))
    assert caught.value.reason is reason


def test_an_engine_is_down_when_refused_or_silent_thrice() -> None:
    """A busy engine may answer late."""
    instance = Instance("a-0", "a", "pd", "", "", EngineCache(1))
    instance.engine_answered(True)
    for _ in range(MAX_SILENT_PROBES - 1):
        instance.engine_silent(refused=False)
        assert instance.engine_healthy
    instance.engine_silent(refused=False)
    assert not instance.engine_healthy
    instance.engine_answered(True)
    instance.engine_silent(refused=True)
    assert not instance.engine_healthy


def test_a_node_without_an_engine_is_not_ready() -> None:
    """Also if it had one before."""
    instance = Instance("a-0", "a", "pd", "", "", EngineCache(1))
    engine = EngineHealth(
        engine_id="e", engine_boot_id="b", fingerprint="f", block_tokens=4, max_model_tokens=100,
        kv_group_kinds=(KVGroupKind.FULL_ATTENTION,),
    )  # fmt: skip
    health = NodeHealth(
        status="ok",
        node="n",
        boot_id="b",
        arena_bytes=1,
        arena_free_bytes=1,
        engines=(engine,),
        peers={},
        lanes_from={},
    )
    instance.node_answered(health)
    assert (instance.node_ready, instance.block_tokens) == (True, 4)
    instance.node_answered(msgspec.structs.replace(health, engines=()))
    assert not instance.node_ready


@pytest.mark.parametrize(
    ("status", "version", "body", "code"),
    [
        (200, "2", b"{}", "bad_answer"),
        (200, "2", b'{"engines": []}', "bad_answer"),
        (200, "2", b'{"engines": 5}', "bad_answer"),
        (200, "2", b"[5]", "bad_answer"),
        (200, "2", b"\xff", "bad_answer"),
        (200, None, b"{}", "version"),
        (404, None, b"not found", "version"),
        (200, "3", b"{}", "version"),
        (200, "two", b"{}", "version"),
        (500, "2", b"oops", "bad_answer"),
        (503, "2", b'{"error": {"code": "no_engine", "message": "none yet"}}', "no_engine"),
        (503, "2", b'{"error": {"code": "no_engine"}}', "bad_answer"),
    ],
)
def test_an_answer_that_breaks_the_contract_is_a_refusal(
    status: int, version: str | None, body: bytes, code: str
) -> None:
    """Whatever a node answers, also one of another version or something that is no node."""
    with pytest.raises(NodeRefused) as refused:
        read_answer(NodeHealth, status, version, body)
    assert refused.value.code == code


def test_the_gateways_page_lists_every_reason_route_header_and_stripped_field() -> None:
    """Documentation is part of the interface."""
    page = (DOCS / "gateway.md").read_text(encoding="utf-8")
    routes = ["/v1/models", "/v1/completions", "/v1/chat/completions", "/health", "/live", "/ready", "/version"]
    routes += ["/metrics", "/prfaas/requests/"]
    headers = ["x-request-id", "x-prfaas-route", "x-prfaas-reason", "x-prfaas-kv-bytes", "x-prfaas-tokens-recomputed"]
    for word in [*OBSTACLES, *FallbackReason, *RouteReason, *STEERING_FIELDS, *headers, *routes]:
        assert f"`{word}" in page or f" {word}" in page, word


def test_the_gateways_page_lists_every_field_of_a_story() -> None:
    """And names none that is not answered."""
    page = (DOCS / "gateway.md").read_text(encoding="utf-8")
    section = page.split("## The story of a request")[1].split("\n## ")[0]
    listed = re.search(r"^Fields: (.*?)`phases_s`", section, re.MULTILINE | re.DOTALL)
    assert listed is not None
    answered = {*Story("id", "chat").public(), "closed"}
    named = set(re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", listed[1])))
    assert named == answered - {"phases_s"}
    assert "`phases_s`" in section
