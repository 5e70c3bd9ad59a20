"""The log of requests: a line for each when all is known of it, and one for each failure. A fold over the journal."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

from prfaas.core.control import actions as a
from prfaas.core.control import events as e
from prfaas.core.control.lifecycle import was_loaded
from prfaas.observe.journal import Noted, RequestTurnedAway
from prfaas.observe.story import Stories, Story, story_of

logger = logging.getLogger("prfaas.gateway")

_LOGGED: Final = (
    "request_id", "endpoint", "outcome", "status", "route", "reason", "prompt_tokens", "uncached_tokens",
    "skip_tokens", "kv_bytes_moved", "tokens_loaded", "tokens_recomputed", "fallback_reason", "decode_instance",
    "prefill_instance", "ttft_s", "total_s",
)  # fmt: skip


_LOGGED_EVENTS: Final = frozenset({RequestTurnedAway, e.DecodeFailed, e.LandingSettled})


def log_line(story: Story) -> str:
    """`key=value` for everything that is known of a request."""
    pairs = ((name, getattr(story, name)) for name in _LOGGED)
    return " ".join(f"{k}={v:.4f}" if isinstance(v, float) else f"{k}={v}" for k, v in pairs if v is not None)


class RequestLog:
    """Writes to the logger `prfaas.gateway`, after the stories have been told."""

    def __init__(self, stories: Stories) -> None:
        self._stories = stories
        self._tells: dict[type, Callable[[Any], None]] = {
            a.Reserve: self._offloaded, a.Decode: self._decided, a.Refuse: self._decided, a.Close: self._closed,
        }  # fmt: skip

    def note(self, now_s: float, event: Noted, actions: Sequence[a.Action]) -> None:
        """See `Fold`."""
        if not actions and type(event) not in _LOGGED_EVENTS:
            return
        if isinstance(event, RequestTurnedAway):
            logger.info("%s", log_line(story_of(event)))
        elif isinstance(event, e.DecodeFailed):
            failure = event.failure
            logger.warning("decode lost request_id=%s error=%s", event.request_id, failure.detail)
        elif isinstance(event, e.LandingSettled) and event.record is not None and not was_loaded(event.record):
            record = event.record
            logger.warning(
                "fallback request_id=%s reason=not_loaded landing=%s detail=%s",
                event.request_id, record.state, record.reason,
            )  # fmt: skip
        for action in actions:
            tell = self._tells.get(type(action))
            if tell is not None:
                tell(action)

    def _offloaded(self, action: a.Reserve) -> None:
        # Only the log joins the two ids: the story, which clients can read, must not name the landing.
        logger.info("offload request_id=%s transfer_id=%s", action.request_id, action.transfer_id)

    def _decided(self, action: a.Decode | a.Refuse) -> None:
        failure = action.fallback
        if failure is not None:
            logger.warning(
                "fallback request_id=%s reason=%s detail=%s", action.request_id, failure.reason, failure.detail
            )

    def _closed(self, action: a.Close) -> None:
        if logger.isEnabledFor(logging.INFO):
            story = self._stories.get(action.request_id)
            if story is not None:
                logger.info("%s", log_line(story))
