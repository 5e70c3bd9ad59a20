"""Conversions of instances, suggestions what would serve more, and who is out: log lines and counters."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from prfaas.core.control import actions as a
from prfaas.observe.journal import Noted
from prfaas.observe.metrics import Metrics

logger = logging.getLogger("prfaas.gateway")


class FleetLog:
    """Writes to the logger `prfaas.gateway`."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def note(self, now_s: float, event: Noted, actions: Sequence[a.Action]) -> None:
        """See `Fold`."""
        for action in actions:
            if isinstance(action, a.NoteConversion):
                self._converts(action)
            elif isinstance(action, a.NoteSuggestions):
                self._suggests(action)
            elif isinstance(action, a.NoteHealth):
                self._judges(action)

    def _converts(self, action: a.NoteConversion) -> None:
        done = action.conversion
        if done.is_under_way:
            logger.info("%s gets duty=%s instead of %s: %s", done.instance, done.to_duty, done.from_duty, done.why)
            return
        labels = {"cluster": done.cluster, "duty": str(done.to_duty), "outcome": str(done.phase)}
        self._metrics.counter("prfaas_conversions_total", **labels).inc()
        took_s = (done.ended_s or done.began_s) - done.began_s
        logger.info(
            "conversion of %s to duty=%s: %s after %.0f s %s",
            done.instance, done.to_duty, done.phase, took_s, done.detail,
        )  # fmt: skip

    def _judges(self, action: a.NoteHealth) -> None:
        if action.is_out:
            self._metrics.counter("prfaas_ejections_total", instance=action.instance).inc()
            logger.warning("instance %s gets no work for a while: %s", action.instance, action.why)
        else:
            logger.info("instance %s works again", action.instance)

    def _suggests(self, action: a.NoteSuggestions) -> None:
        if action.suggestions:
            logger.info("more could be served with %s", "; or ".join(map(str, action.suggestions)))
        else:
            logger.info("no stage binds any more")
