"""The history of recent requests by id: how each was served, and the proof of it."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import asdict, dataclass, field
from typing import Any, Final

#: About 2 KiB each. Older ones are in the log.
MAX_STORIES: Final = 4_096
#: How long the proof of an answered request takes at most in a healthy system.
SETTLING_WAIT_S: Final = 2.0


@dataclass(slots=True)
class Story:
    """One request. None means not known, or not yet. Times are seconds since the request was read.

    Clients can read what `public` gives. `hidden` are words that errors of nodes and engines may repeat and that no
    client may learn: with a transfer id and its claim secret, the landing could be loaded."""

    request_id: str
    endpoint: str
    stream: bool = False
    route: str | None = None
    reason: str | None = None
    outcome: str | None = None
    status: int | None = None
    prompt_tokens: int | None = None
    uncached_tokens: int | None = None
    skip_tokens: int | None = None
    completion_tokens: int | None = None
    decode_instance: str | None = None
    prefill_instance: str | None = None
    kv_bytes_expected: int | None = None
    kv_bytes_moved: int = 0
    kv_bytes_resent: int | None = None
    tokens_loaded: int | None = None
    tokens_recomputed: int | None = None
    landing_state: str | None = None
    fallback_reason: str | None = None
    fallback_detail: str | None = None
    decode_retried: bool = False
    error: str | None = None
    stripped_fields: tuple[str, ...] = ()
    ttft_s: float | None = None
    total_s: float | None = None
    phases_s: dict[str, float] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)
    hidden: tuple[str, ...] = field(default=(), repr=False)

    def public(self) -> dict[str, Any]:
        """As JSON, without `hidden`, which is blotted out of every text."""
        shown = asdict(self)
        for word in shown.pop("hidden"):
            shown = {
                name: value.replace(word, "…") if isinstance(value, str) else value for name, value in shown.items()
            }
        return shown


class StoryBook:
    """The last `max_stories` stories. A client's repeated id shows its latest request."""

    def __init__(self, max_stories: int = MAX_STORIES) -> None:
        self._max_stories = max_stories
        self._stories: OrderedDict[str, tuple[Story, asyncio.Event]] = OrderedDict()

    def open(self, story: Story) -> None:
        self._stories[story.request_id] = (story, asyncio.Event())
        self._stories.move_to_end(story.request_id)
        while len(self._stories) > self._max_stories:
            self._stories.popitem(last=False)

    def close(self, story: Story) -> None:
        """Nothing more will be learned of it."""
        known = self._stories.get(story.request_id)
        if known is not None and known[0] is story:
            known[1].set()

    async def read(self, request_id: str, wait_s: float | None = None) -> dict[str, Any] | None:
        """The story; None if unknown. Waits up to `wait_s` for its end; without it, only for the proof of a request
        that has answered its client already."""
        known = self._stories.get(request_id)
        if known is None:
            return None
        story, closed = known
        if wait_s is None:
            wait_s = 0.0 if story.outcome is None else SETTLING_WAIT_S
        if not closed.is_set() and wait_s > 0:
            try:
                async with asyncio.timeout(wait_s):
                    await closed.wait()
            except TimeoutError:
                pass
        return {**story.public(), "closed": closed.is_set()}
