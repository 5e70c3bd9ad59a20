"""A piece of work that a simulated gateway does for one request, and what of it is still told once it was stopped."""

from __future__ import annotations

from collections.abc import Callable

from prfaas.core.control import events as e

Tell = Callable[["Work", float, e.RequestEvent], None]


class Work:
    """It is over when it was stopped, or when its last event was planned. `tell` plans an event; see the gateway."""

    def __init__(self, request_id: str, name: str, tell: Tell) -> None:
        self.request_id, self.name = request_id, name
        self.is_over = False
        self.is_stopped = False
        #: Called when the gateway stops it, while it is under way: the far end sees its connection close.
        self.on_stop: Callable[[], None] | None = None
        self._tell = tell

    def then(self, event: e.RequestEvent, delay_s: float) -> None:
        """An event on its way, more may follow."""
        self._tell(self, delay_s, event)

    def ends(self, event: e.RequestEvent, delay_s: float) -> None:
        """The last event of this work. Nothing, if it is over."""
        if not self.is_over:
            self.is_over = True
            self._tell(self, delay_s, event)

    def stop(self) -> None:
        """The gateway wants it no more."""
        if not self.is_stopped:
            self.is_stopped = True
            if not self.is_over and self.on_stop is not None:
                self.on_stop()
            self.is_over = True
