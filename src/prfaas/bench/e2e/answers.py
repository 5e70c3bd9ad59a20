"""The event stream of one answer as it comes: bytes and a time in, times and counts out. Pure.

Laws of this file:
- An event counts as output if it has a choice with text or tokens. A chat's opening event, which has a role and no
  text, and a closing one, which has a reason and no text, do not; an event of a completion always does, because a token
  may have no text of its own.
- Events that arrive together have one time: the wait between them is 0.
- Tokens are counted by the server (`usage`); else by the ids that it sends; else every event of output is one.
"""

from __future__ import annotations

from typing import Any, Final

import orjson

from prfaas.profiles.measure.stream import MAX_LINE_BYTES, said
from prfaas.sim.engine import Gaps

#: `Gaps` keeps logarithms: events that arrive together count as so far apart.
TOGETHER_S: Final = 1e-6
#: What carries output in the `delta` of a chat.
_SAYS: Final = ("content", "reasoning_content", "reasoning", "tool_calls")


class AnswerReader:
    """One stream. Feed it what arrives, in order. `keeps`: the answer itself too. `error` is what the stream itself
    says went wrong."""

    __slots__ = (
        "_gaps", "_keeps", "_rest", "completion_tokens_said", "error", "first_s", "is_done", "last_s", "num_events",
        "num_ids", "prompt_tokens", "text", "token_ids",
    )  # fmt: skip

    def __init__(self, gaps: Gaps, *, keeps: bool = False) -> None:
        self._gaps = gaps
        self._keeps = keeps
        self._rest = b""
        self.first_s: float | None = None
        self.last_s = 0.0
        self.num_events = 0
        self.num_ids = 0
        self.completion_tokens_said: int | None = None
        self.prompt_tokens: int | None = None
        self.is_done = False
        self.error: str | None = None
        self.text: list[str] = []
        self.token_ids: list[int] = []

    @property
    def output_tokens(self) -> int:
        """See the laws."""
        if self.completion_tokens_said is not None:
            return self.completion_tokens_said
        return self.num_ids or self.num_events

    @property
    def counted_by(self) -> str:
        """`usage`, `token_ids` or `events`."""
        if self.completion_tokens_said is not None:
            return "usage"
        return "token_ids" if self.num_ids else "events"

    def feed(self, data: bytes, now_s: float) -> None:
        """It arrived at `now_s`."""
        if self._rest:
            data = self._rest + data
        if data.endswith(b"\n"):
            self._rest = b""
        else:
            end = data.rfind(b"\n") + 1
            data, self._rest = data[:end], data[end:]
            if len(self._rest) > MAX_LINE_BYTES:
                self.error = f"the stream has a line of more than {MAX_LINE_BYTES >> 20} MiB"
                self._rest = b""
        for line in data.split(b"\n"):
            if line.startswith(b"data:"):
                self._event(line[5:], now_s)

    def _event(self, data: bytes, now_s: float) -> None:
        try:
            content = orjson.loads(data)
        except ValueError:
            if data.strip() == b"[DONE]":
                self.is_done = True
            else:
                self.error = "the stream has an event that is not JSON"
            return
        if not isinstance(content, dict):
            self.error = "the stream has an event that is not a JSON object"
            return
        if content.get("error"):
            self.error = said(content)
            return
        usage = content.get("usage")
        if isinstance(usage, dict):
            self._count(usage)
        choices = content.get("choices")
        if choices and self._is_output(choices[0]):
            if self.first_s is None:
                self.first_s = now_s
            else:
                self._gaps.add(max(now_s - self.last_s, TOGETHER_S), 1.0)
            self.last_s = now_s
            self.num_events += 1

    def _is_output(self, choice: Any) -> bool:
        if not isinstance(choice, dict):
            return False
        token_ids = choice.get("token_ids")
        if token_ids:
            self.num_ids += len(token_ids)
            if self._keeps:
                self.token_ids += token_ids
        delta = choice.get("delta")
        text = delta.get("content") if isinstance(delta, dict) else choice.get("text")
        if self._keeps and isinstance(text, str):
            self.text.append(text)
        if not isinstance(delta, dict):
            return "text" in choice
        return bool(token_ids) or any(delta.get(name) for name in _SAYS)

    def _count(self, usage: dict[str, Any]) -> None:
        for name, value in (("completion_tokens_said", "completion_tokens"), ("prompt_tokens", "prompt_tokens")):
            count = usage.get(value)
            if type(count) is int and count >= 0:
                setattr(self, name, count)
