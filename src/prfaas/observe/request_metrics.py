"""Metrics of requests. A fold over the journal, after the stories, of which it reads what is finished."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from prometheus_client import Counter, Histogram

from prfaas.core.control import actions as a
from prfaas.core.control import events as e
from prfaas.core.control.fallback import FallbackReason
from prfaas.core.control.lifecycle import was_loaded
from prfaas.observe.journal import Noted, RequestTurnedAway
from prfaas.observe.metrics import Metrics
from prfaas.observe.story import Stories, Story

_DECISIONS: Final = frozenset({a.Decode, a.Refuse})


class _OfRoute(NamedTuple):
    """What every request counts in, looked up once for each route; `requests` by outcome."""

    prompt_tokens: Counter
    uncached_tokens: Counter
    ttft: Histogram
    duration: Histogram
    requests: dict[str, Counter]


class RequestMetrics:
    """Counts each fact when it is noted, and once."""

    def __init__(self, metrics: Metrics, stories: Stories) -> None:
        self._metrics = metrics
        self._stories = stories
        self._of_route: dict[str, _OfRoute] = {}
        self._takes: dict[type, Callable[[Any, float], None]] = {
            RequestTurnedAway: self._turned_away,
            e.PromptCounted: self._counted,
            e.LandingEnded: self._landed,
            e.AnswerBegan: self._began,
            e.AnswerEnded: self._ended,
            e.RequestAbandoned: self._ended,
            e.LandingSettled: self._settled,
        }

    def note(self, now_s: float, event: Noted, actions: Sequence[a.Action]) -> None:
        """See `Fold`."""
        take = self._takes.get(type(event))
        if take is not None:
            take(event, now_s)
        for action in actions:
            if type(action) in _DECISIONS:
                self._decided(action)

    def _decided(self, action: Any) -> None:
        if action.fallback is not None:
            self._fell_back(action.fallback.reason)
        if isinstance(action, a.Decode) and action.is_retry:
            self._count("prfaas_decode_retries_total")

    def _turned_away(self, event: RequestTurnedAway, now_s: float) -> None:
        self._count("prfaas_requests_total", route="none", outcome=event.outcome)

    def _count(self, name: str, by: float = 1, **labels: str) -> None:
        self._metrics.counter(name, **labels).inc(by)

    def _fell_back(self, reason: FallbackReason) -> None:
        self._count("prfaas_fallback_total", reason=reason)
        if reason in (FallbackReason.ZERO_BYTES, FallbackReason.NOT_LOADED):
            self._count("prfaas_zero_byte_offloads_total")

    def _counted(self, event: e.PromptCounted, now_s: float) -> None:
        """A prompt that is counted after its answer is added here; one counted before is added at its end."""
        story = self._stories.get(event.request_id)
        if story is not None and story.outcome is not None:
            self._tokens(story)

    def _tokens(self, story: Story) -> None:
        of_route = self._route(story)
        if story.prompt_tokens is not None:
            of_route.prompt_tokens.inc(story.prompt_tokens)
        if story.uncached_tokens is not None:
            of_route.uncached_tokens.inc(story.uncached_tokens)

    def _route(self, story: Story) -> _OfRoute:
        route = story.route or "none"
        found = self._of_route.get(route)
        if found is None:
            metrics = self._metrics
            found = self._of_route[route] = _OfRoute(
                metrics.counter("prfaas_prompt_tokens_total", route=route),
                metrics.counter("prfaas_uncached_tokens_total", route=route),
                metrics.histogram("prfaas_time_to_first_token_seconds", route=route),
                metrics.histogram("prfaas_request_duration_seconds", route=route),
                {},
            )
        return found

    def _landed(self, event: e.LandingEnded, now_s: float) -> None:
        story = self._stories.get(event.request_id)
        if story is not None and event.failure is None and story.phases_s.keys() >= {"landed", "routed"}:
            self._count("prfaas_kv_bytes_moved_total", event.num_bytes)
            took_s = story.phases_s["landed"] - story.phases_s["routed"]
            self._metrics.histogram("prfaas_kv_landed_seconds").observe(took_s)

    def _began(self, event: e.AnswerBegan, now_s: float) -> None:
        story = self._stories.get(event.request_id)
        if story is not None and story.stream and story.ttft_s is not None:
            self._route(story).ttft.observe(story.ttft_s)

    def _ended(self, event: e.AnswerEnded | e.RequestAbandoned, now_s: float) -> None:
        story = self._stories.get(event.request_id)
        if story is None or story.total_s is None or story.is_counted:
            return  # a client that leaves may end its request a second time
        story.is_counted = True
        of_route = self._route(story)
        counter = of_route.requests.get(event.outcome)
        if counter is None:
            counter = self._metrics.counter("prfaas_requests_total", route=story.route or "none", outcome=event.outcome)
            of_route.requests[event.outcome] = counter
        counter.inc()
        of_route.duration.observe(story.total_s)
        self._tokens(story)

    def _settled(self, event: e.LandingSettled, now_s: float) -> None:
        story = self._stories.get(event.request_id)
        if event.record is None:
            self._count("prfaas_unproven_offloads_total")
            return
        if not was_loaded(event.record):
            self._fell_back(FallbackReason.NOT_LOADED)
        self._count("prfaas_tokens_recomputed_total", (story.tokens_recomputed or 0) if story is not None else 0)
