"""The small parts: request ids, stories, bodies, errors, prefill answers, and the documents that list them."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from prfaas.core.control.actions import Close
from prfaas.core.control.events import AnswerEnded, RequestAbandoned, RequestArrived, Tick
from prfaas.core.control.fallback import FallbackReason
from prfaas.core.control.instance import MAX_SILENT_PROBES, Instance
from prfaas.core.control.route import RouteReason
from prfaas.core.topology import Duty
from prfaas.core.topology import Instance as Member
from prfaas.core.wire.node_api import VERSION, NodeHealth
from prfaas.engines.dialect import PrefillAnswer, PrefillFault
from prfaas.engines.kinds import STEERING_FIELDS
from prfaas.gateway.api.errors import ApiError
from prfaas.gateway.api.http import ClientGone, Response, read_body
from prfaas.gateway.app import request_id_of
from prfaas.gateway.background import Background
from prfaas.gateway.front.held_bytes import HeldBytes
from prfaas.gateway.prompt.offload_eligibility import OBSTACLES
from prfaas.gateway.story_book import StoryBook
from prfaas.gateway.transfers import failure_of
from prfaas.gateway.upstream.nodes import NodeRefused, read_answer
from prfaas.observe.journal import Journal
from prfaas.observe.metrics import build
from prfaas.observe.request_log import log_line
from prfaas.observe.request_metrics import RequestMetrics
from prfaas.observe.story import Stories, Story

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
    """The oldest that is closed goes; a repeated id shows the latest request."""

    async def main() -> None:
        stories = Stories(2)
        book = StoryBook(stories)
        for name in ("a", "b", "a", "c"):
            stories.note(0.0, RequestArrived(name, "0f", 1, endpoint="chat"), [])
            stories.note(0.0, Tick(), [Close(name)])
        assert await book.read("b") is None
        assert await book.read("a") is not None
        stories.note(1.0, RequestArrived("a", "0f", 1, endpoint="completions"), [])
        story = await book.read("a", 0.0)
        assert story is not None
        assert (story["endpoint"], story["closed"]) == ("completions", False)
        reading = asyncio.create_task(book.read("a", 5.0))
        await asyncio.sleep(0)
        stories.note(2.0, Tick(), [Close("a")])
        story = await reading
        assert story is not None
        assert story["closed"]

    asyncio.run(main())


def test_a_request_that_goes_on_is_told_to_its_end_however_many_come_meanwhile() -> None:
    """A long answer is not missing in story, metrics and log because short ones overtook it."""
    metrics, stories = build(CollectorRegistry(), "gateway"), Stories(2)
    journal = Journal([stories, RequestMetrics(metrics, stories)])
    journal.note(0.0, RequestArrived("long", "0f", 1, endpoint="chat"))
    for number in range(3):
        journal.note(1.0, RequestArrived(f"short-{number}", "0f", 1, endpoint="chat"))
        journal.note(2.0, AnswerEnded(f"short-{number}", "ok", 200), [Close(f"short-{number}")])
    journal.note(3.0, AnswerEnded("long", "ok", 200), [Close("long")])
    story = stories.get("long")
    assert story is not None
    assert (story.outcome, story.total_s) == ("ok", 3.0)
    assert metrics.registry.get_sample_value("prfaas_requests_total", {"route": "none", "outcome": "ok"}) == 4


def test_a_request_is_counted_once_however_often_it_ends() -> None:
    """A client that leaves may end it a second time, also when it is closed."""
    metrics, stories = build(CollectorRegistry(), "gateway"), Stories(2)
    journal = Journal([stories, RequestMetrics(metrics, stories)])
    journal.note(0.0, RequestArrived("r", "0f", 1, endpoint="chat"))
    journal.note(1.0, AnswerEnded("r", "ok", 200))
    journal.note(1.0, RequestAbandoned("r", "cancelled"), [Close("r")])
    journal.note(1.0, AnswerEnded("r", "ok", 200))
    assert metrics.registry.get_sample_value("prfaas_requests_total", {"route": "none", "outcome": "ok"}) == 1
    assert metrics.registry.get_sample_value("prfaas_request_duration_seconds_count", {"route": "none"}) == 1


def test_what_cancelled_work_gives_back_is_waited_for() -> None:
    """The landing of a reservation that did not end in time is dropped."""

    async def main() -> None:
        background, done = Background(), asyncio.Event()

        async def drop() -> None:
            await asyncio.sleep(0)
            done.set()

        task = background.spawn(asyncio.sleep(600))
        task.add_done_callback(lambda _: background.spawn(drop()))
        await background.drain(0.01)
        assert done.is_set()

    asyncio.run(main())


def test_work_that_follows_from_other_work_is_done_before_the_gateway_ends() -> None:
    """A landing that was asked for at the very end is dropped when the node has answered."""

    async def main() -> None:
        background, done = Background(), asyncio.Event()

        async def drop() -> None:
            await asyncio.sleep(0)
            done.set()

        async def reserve() -> None:
            await asyncio.sleep(0)

        task = background.spawn(reserve())
        task.add_done_callback(lambda _: background.spawn(drop()))
        await background.drain(60.0)
        assert done.is_set()

    asyncio.run(main())


def test_the_log_line_leaves_out_what_is_unknown() -> None:
    """key=value, one line."""
    assert log_line(Story("r", "chat", route="local", ttft_s=0.5)) == (
        "request_id=r endpoint=chat route=local kv_bytes_moved=0 ttft_s=0.5000"
    )


def body_of(
    *messages: dict[str, Any], headers: dict[bytes, bytes] | None = None, limit: int = 10, held: int = 1000
) -> bytes:
    """What `read_body` makes of ASGI messages, where all bodies together may have `held` bytes."""
    queue = list(messages)

    async def receive() -> dict[str, Any]:
        return queue.pop(0)

    with HeldBytes(lambda: held).share() as share:
        return asyncio.run(read_body(receive, headers or {}, limit, share.take))


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


def test_bodies_together_are_bounded_in_bytes() -> None:
    """The one that would be too many is refused, and what it had is given back."""
    part = {"type": "http.request", "body": b"12345", "more_body": True}
    with pytest.raises(ApiError) as refused:
        body_of(part, part, held=9)
    assert (refused.value.status, refused.value.retry_after_s) == (429, 1)
    held = HeldBytes(lambda: 9)
    with held.share() as first:
        first.take(5)
        with held.share() as second:
            second.take(4)
            with pytest.raises(ApiError):
                second.take(1)
        assert held.num_bytes == 5
    assert held.num_bytes == 0


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
    assert failure_of(PrefillAnswer(5)) is None
    failure = failure_of(PrefillAnswer(0, fault, "no room"))
    assert failure is not None
    assert (failure.reason, failure.detail) == (reason, "no room")


def instance() -> Instance:
    """One that nobody has seen yet."""
    return Instance(Member("a-0", "a", Duty.BOTH, "http://e", "http://n", "l"))


def test_an_engine_is_down_when_refused_or_silent_thrice() -> None:
    """A busy engine may answer late."""
    seen = instance()
    seen.engine_seen(True, None)
    for _ in range(MAX_SILENT_PROBES - 1):
        seen.engine_silent(refused=False)
        assert seen.engine_healthy
    seen.engine_silent(refused=False)
    assert not seen.engine_healthy
    seen.engine_seen(True, None)
    seen.engine_silent(refused=True)
    assert not seen.engine_healthy


NOW, OTHER = str(VERSION), str(VERSION + 1)


@pytest.mark.parametrize(
    ("status", "version", "body", "code"),
    [
        (200, NOW, b"{}", "bad_answer"),
        (200, NOW, b'{"engines": []}', "bad_answer"),
        (200, NOW, b'{"engines": 5}', "bad_answer"),
        (200, NOW, b"[5]", "bad_answer"),
        (200, NOW, b"\xff", "bad_answer"),
        (200, None, b"{}", "version"),
        (404, None, b"not found", "version"),
        (200, OTHER, b"{}", "version"),
        (200, "two", b"{}", "version"),
        (500, NOW, b"oops", "bad_answer"),
        (503, NOW, b'{"error": {"code": "no_engine", "message": "none yet"}}', "no_engine"),
        (503, NOW, b'{"error": {"code": "no_engine"}}', "bad_answer"),
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
