"""Bodies of requests that are being read or served, in bytes: what a gateway's memory is spent on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prfaas.gateway.api.errors import ApiError


class HeldBytes:
    """`most` is asked for anew each time: a deployment file may change it."""

    def __init__(self, most: Callable[[], int]) -> None:
        self._most = most
        self.num_bytes = 0

    @contextmanager
    def share(self) -> Iterator[Share]:
        """One request's, empty; given back at the end."""
        share = Share(self)
        try:
            yield share
        finally:
            self.num_bytes -= share.num_bytes

    def take(self, num_bytes: int) -> None:
        """Raises ApiError 429 if there would be too many."""
        if self.num_bytes + num_bytes > self._most():
            raise ApiError(429, "too many bytes of requests in flight", code="overloaded", retry_after_s=1)
        self.num_bytes += num_bytes


class Share:
    """Of one request."""

    __slots__ = ("_held", "num_bytes")

    def __init__(self, held: HeldBytes) -> None:
        self._held = held
        self.num_bytes = 0

    def take(self, num_bytes: int) -> None:
        """So many more. Raises ApiError 429 if all requests together would hold too many."""
        self._held.take(num_bytes)
        self.num_bytes += num_bytes
