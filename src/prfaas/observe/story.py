"""The story of a request: how it was served, and the proof of it. A fold over the journal."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from prfaas.core.control import actions as a
from prfaas.core.control import events as e
from prfaas.core.control.fallback import Failure, FallbackReason
from prfaas.core.control.lifecycle import was_loaded
from prfaas.core.control.route import Considered, Option, Route
from prfaas.observe.journal import Noted, RequestTurnedAway

#: About 2 KiB each. Older ones are in the log.
MAX_STORIES: Final = 4_096


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
    considered: tuple[Considered, ...] = ()
    options: tuple[Option, ...] = ()
    events: list[str] = field(default_factory=list)
    hidden: tuple[str, ...] = field(default=(), repr=False)
    began_s: float = 0.0
    is_closed: bool = False
    is_counted: bool = False

    def public(self) -> dict[str, Any]:
        """As JSON, without `hidden`, which is blotted out of every text. `began_s` is this process's own clock,
        `is_counted` says whether it is in the metrics."""
        shown = asdict(self)
        del shown["began_s"], shown["is_counted"]
        shown["closed"] = shown.pop("is_closed")
        for word in shown.pop("hidden"):
            shown = {
                name: value.replace(word, "…") if isinstance(value, str) else value for name, value in shown.items()
            }
        return shown


class Stories:
    """Those of all requests that go on, which admission bounds, and the last `max_stories` that are closed. A client's
    repeated id shows its latest request. `on_close` is called when nothing more will be learned of a request."""

    def __init__(self, max_stories: int = MAX_STORIES, on_close: Callable[[Story], None] = lambda story: None) -> None:
        self.on_close = on_close
        self._max_stories = max_stories
        self._open: dict[str, Story] = {}
        self._closed: OrderedDict[str, Story] = OrderedDict()

    @property
    def num_open(self) -> int:
        """Of requests that go on."""
        return len(self._open)

    @property
    def num_closed(self) -> int:
        return len(self._closed)

    def get(self, request_id: str) -> Story | None:
        return self._open.get(request_id) or self._closed.get(request_id)

    def hide(self, request_id: str, *words: str) -> None:
        """No text of this story may show `words`."""
        story = self._open.get(request_id)
        if story is not None:
            story.hidden += words

    def note(self, now_s: float, event: Noted, actions: Sequence[a.Action]) -> None:
        """See `Fold`."""
        take = _EVENTS.get(type(event))
        if take is not None:
            story = self._open.get(event.request_id)  # type: ignore[union-attr]  # all of these have one
            if story is not None:
                take(story, event, now_s - story.began_s)
        elif isinstance(event, e.RequestArrived):
            self._begin(now_s, event)
        for action in actions:
            told = _ACTIONS.get(type(action))
            if isinstance(action, a.FleetAction):
                continue
            if told is not None:
                story = self._open.get(action.request_id)
                if story is not None:
                    told(story, action, now_s - story.began_s)
            elif isinstance(action, a.Close) and action.request_id in self._open:
                self._close(self._open[action.request_id])

    def _begin(self, now_s: float, event: e.RequestArrived) -> None:
        story = Story(event.request_id, event.endpoint, event.is_stream, stripped_fields=event.stripped_fields)
        story.began_s, story.hidden = now_s, (event.transfer_id,)
        self._closed.pop(event.request_id, None)
        self._open[event.request_id] = story

    def _close(self, story: Story) -> None:
        story.is_closed = True
        self._closed[story.request_id] = self._open.pop(story.request_id)
        while len(self._closed) > self._max_stories:
            self._closed.popitem(last=False)
        self.on_close(story)


def story_of(event: RequestTurnedAway) -> Story:
    """All that there is to tell of it."""
    return Story(event.request_id, event.endpoint, outcome=event.outcome, status=event.status, error=event.error)


def _reach(story: Story, phase: str, at_s: float) -> None:
    """The first time counts."""
    story.phases_s.setdefault(phase, at_s)


def _counted(story: Story, event: e.PromptCounted, at_s: float) -> None:
    story.prompt_tokens = event.num_tokens
    if story.outcome is None:
        _reach(story, "tokenized", at_s)


def _uncountable(story: Story, event: e.PromptUncountable, at_s: float) -> None:
    if story.outcome is None:
        _reach(story, "tokenized", at_s)


def _reserved(story: Story, event: e.LandingReserved, at_s: float) -> None:
    story.kv_bytes_expected = event.num_bytes
    _reach(story, "reserved", at_s)


def _prefilled(story: Story, event: e.PrefillEnded, at_s: float) -> None:
    if event.failure is None and "fell_back" not in story.phases_s:
        _reach(story, "prefilled", at_s)


def _landed(story: Story, event: e.LandingEnded, at_s: float) -> None:
    if event.failure is None and event.num_bytes and "fell_back" not in story.phases_s:
        story.kv_bytes_moved = event.num_bytes
        _reach(story, "landed", at_s)


def _began(story: Story, event: e.AnswerBegan, at_s: float) -> None:
    if story.ttft_s is None:
        story.ttft_s = at_s
        _reach(story, "first_byte", at_s)


def _ended(story: Story, event: e.AnswerEnded | e.RequestAbandoned, at_s: float) -> None:
    if story.outcome is not None:
        return
    story.outcome, story.status, story.error, story.total_s = event.outcome, event.status, event.error, at_s
    if isinstance(event, e.AnswerEnded):
        story.completion_tokens = event.completion_tokens


def _settled(story: Story, event: e.LandingSettled, at_s: float) -> None:
    record = event.record
    if record is None:
        story.events.append("the node gave no final record")
        return
    story.landing_state, story.kv_bytes_resent = record.state, record.bytes_resent
    story.tokens_loaded, story.tokens_recomputed = record.tokens_loaded, record.tokens_recomputed
    if not was_loaded(record):
        if story.tokens_recomputed is None:
            story.tokens_recomputed = story.prompt_tokens
        story.fallback_reason, story.fallback_detail = str(FallbackReason.NOT_LOADED), str(record.reason)


def _routed(story: Story, route: Route, at_s: float) -> None:
    story.route, story.reason = str(route.kind), str(route.reason)
    story.considered, story.options = route.considered, route.options
    if story.prompt_tokens is not None and story.uncached_tokens is None:
        story.uncached_tokens = route.num_uncached_tokens
    _reach(story, "routed", at_s)


def _fell_back(story: Story, failure: Failure | None, at_s: float) -> None:
    if failure is not None:
        story.fallback_reason, story.fallback_detail = str(failure.reason), failure.detail
        _reach(story, "fell_back", at_s)


def _reserve(story: Story, action: a.Reserve, at_s: float) -> None:
    _routed(story, action.route, at_s)
    story.skip_tokens = action.skip_tokens
    story.decode_instance, story.prefill_instance = action.route.decode, action.route.prefill


def _decode(story: Story, action: a.Decode, at_s: float) -> None:
    _fell_back(story, action.fallback, at_s)
    _routed(story, action.route, at_s)
    story.decode_instance = action.instance
    story.decode_retried = story.decode_retried or action.is_retry


def _refuse(story: Story, action: a.Refuse, at_s: float) -> None:
    _fell_back(story, action.fallback, at_s)
    _routed(story, action.route, at_s)


def _uncached(story: Story, action: a.NoteUncached, at_s: float) -> None:
    story.uncached_tokens = action.num_uncached_tokens


_EVENTS: Final[dict[type, Callable[[Story, Any, float], None]]] = {
    e.PromptCounted: _counted,
    e.PromptUncountable: _uncountable,
    e.LandingReserved: _reserved,
    e.PrefillEnded: _prefilled,
    e.LandingEnded: _landed,
    e.AnswerBegan: _began,
    e.AnswerEnded: _ended,
    e.RequestAbandoned: _ended,
    e.LandingSettled: _settled,
}
_ACTIONS: Final[dict[type, Callable[[Story, Any, float], None]]] = {
    a.Reserve: _reserve,
    a.Decode: _decode,
    a.Refuse: _refuse,
    a.NoteUncached: _uncached,
}
