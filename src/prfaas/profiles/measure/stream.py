"""The event stream of a completion. Pure: bytes in, events out, however the network cut them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import orjson

from prfaas.core.errors import PrfaasError

#: Longest line; an event of one token has some hundred bytes.
MAX_LINE_BYTES: Final = 1 << 20

#: Longest part of a server's own words that is shown.
_SHOWN: Final = 300


class BadStream(PrfaasError):
    """The stream is not what OpenAI's API describes, or tells of an error; the text says what."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the server counts them; None where it does not tell."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """`has_output`: it carries one token or more. `is_end`: nothing that matters follows."""

    has_output: bool = False
    usage: Usage | None = None
    is_end: bool = False


class EventReader:
    """One stream. Feed it what arrives, in order."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Event]:
        """Events that are complete now. Raises BadStream."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield _event(line[5:].strip())
        if len(self._rest) > MAX_LINE_BYTES:
            raise BadStream(f"the stream has a line of more than {MAX_LINE_BYTES >> 20} MiB")


def said(body: object) -> str:
    """The server's own words in an error of whatever shape, on one line and not too long."""
    if isinstance(body, dict):
        inner = body.get("error")
        body = body.get("message") or (inner.get("message") if isinstance(inner, dict) else inner) or body
    return " ".join(str(body).split())[:_SHOWN]


def _event(data: bytes) -> Event:
    if data == b"[DONE]":
        return Event(is_end=True)
    try:
        content = orjson.loads(data)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise BadStream("the stream has an event that is not a JSON object")
    if content.get("error"):
        raise BadStream(f"the server failed: {said(content)}")
    return Event(bool(content.get("choices")), _usage(content.get("usage")))


def _usage(raw: Any) -> Usage | None:
    if not isinstance(raw, dict):
        return None
    details = raw.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return Usage(_count(raw.get("prompt_tokens")), _count(raw.get("completion_tokens")), _count(cached))


def _count(raw: object) -> int | None:
    return raw if type(raw) is int and raw >= 0 else None
