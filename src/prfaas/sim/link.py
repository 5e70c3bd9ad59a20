"""A link that all transfers between two clusters share, as a fluid.

Laws of this file:
- Transfers share the link fairly: each gets the same rate, but never more than it has to send (max-min fairness).
- A transfer has to send what prefill has made final. It becomes final evenly over the prefill's time, or, if nothing
  leaves before the prefill ends, all at once.
- Bytes are conserved: the sum of the rates never exceeds the link's, and a transfer is over when its last byte is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import Final

from prfaas.sim.kernel import Kernel, Planned

#: What is left is nothing if it is this little, or crosses in so short a time: a clock of floats cannot show less.
_NOTHING_BYTES: Final = 1e-3
_NOTHING_S: Final = 1e-9


class Transfer:
    """One request's KVCache on its way. It grows from `starts_s` to `ends_s`."""

    __slots__ = ("ends_s", "num_bytes", "on_sent", "produced_per_s", "rate_bytes_per_s", "sent_bytes", "starts_s")

    def __init__(self, num_bytes: float, starts_s: float, ends_s: float, on_sent: Callable[[], object]) -> None:
        self.num_bytes = num_bytes
        self.starts_s = starts_s
        self.ends_s = ends_s
        self.on_sent = on_sent
        self.sent_bytes = 0.0
        self.rate_bytes_per_s = 0.0
        self.produced_per_s = num_bytes / (ends_s - starts_s) if ends_s > starts_s else math.inf

    def backlog_bytes(self, now_s: float) -> float:
        """What is final and not sent."""
        if now_s >= self.ends_s:
            return self.num_bytes - self.sent_bytes
        return max(0.0, self.produced_per_s * (now_s - self.starts_s) - self.sent_bytes)


class SharedLink:
    """`bytes_per_s` is finite, and may change at any time; 0 is a link that is cut."""

    def __init__(self, kernel: Kernel, bytes_per_s: float) -> None:
        assert 0 <= bytes_per_s < math.inf, bytes_per_s
        self._kernel = kernel
        self._bytes_per_s = bytes_per_s
        self._transfers: list[Transfer] = []
        self._updated_s = kernel.now_s
        self._next: Planned | None = None
        self._sent_bytes = 0.0
        #: The rates that are still to come, if it drifts or varies.
        self.course: Iterator[float] | None = None

    @property
    def num_transfers(self) -> int:
        return len(self._transfers)

    @property
    def rate_bytes_per_s(self) -> float:
        """What crosses now."""
        return math.fsum(transfer.rate_bytes_per_s for transfer in self._transfers)

    @property
    def backlog_bytes(self) -> float:
        """What is final and has not been sent, of all transfers."""
        self.advance()
        now_s = self._kernel.now_s
        return math.fsum(transfer.backlog_bytes(now_s) for transfer in self._transfers)

    @property
    def bytes_per_s(self) -> float:
        """What it can carry now."""
        return self._bytes_per_s

    @property
    def sent_bytes(self) -> float:
        """Of all transfers, up to now."""
        self.advance()
        return self._sent_bytes

    def set_rate(self, bytes_per_s: float) -> None:
        self.advance()
        self._bytes_per_s = bytes_per_s
        self._share()

    def send(self, num_bytes: float, starts_s: float, ends_s: float, on_sent: Callable[[], object]) -> Transfer:
        """Begin a transfer whose bytes become final from now (`starts_s`) to `ends_s`. `on_sent` is called when the
        last byte has left; a transfer of nothing is over at `ends_s`."""
        transfer = Transfer(num_bytes, starts_s, ends_s, on_sent)
        self.advance()
        self._transfers.append(transfer)
        self._share()
        return transfer

    def stop(self, transfer: Transfer) -> None:
        """Nobody wants the rest. Idempotent."""
        if transfer in self._transfers:
            self.advance()
            self._transfers.remove(transfer)
            self._share()

    def advance(self) -> None:
        """Count what has crossed until now."""
        now_s = self._kernel.now_s
        elapsed_s = now_s - self._updated_s
        self._updated_s = now_s
        if elapsed_s <= 0:
            return
        for transfer in self._transfers:
            sent = min(transfer.rate_bytes_per_s * elapsed_s, transfer.num_bytes - transfer.sent_bytes)
            transfer.sent_bytes += sent
            self._sent_bytes += sent

    def _share(self) -> None:
        now_s, nothing_bytes = self._kernel.now_s, self._nothing_bytes()
        caps = []
        for transfer in self._transfers:
            is_capped = now_s < transfer.ends_s and transfer.backlog_bytes(now_s) <= nothing_bytes
            caps.append((transfer.produced_per_s if is_capped else math.inf, transfer))
        if len(caps) > 1:
            caps.sort(key=itemgetter(0))
        left, num_left = self._bytes_per_s, len(caps)
        for cap, transfer in caps:
            fair = left / num_left
            transfer.rate_bytes_per_s = min(cap, fair)
            left -= transfer.rate_bytes_per_s
            num_left -= 1
        self._plan(now_s, nothing_bytes)

    def _plan(self, now_s: float, nothing_bytes: float) -> None:
        if self._next is not None:
            self._next.cancel()
            self._next = None
        due_s = min([_changes_at_s(transfer, now_s, nothing_bytes) for transfer in self._transfers], default=math.inf)
        if due_s < math.inf:
            self._next = self._kernel.at(due_s, self._due)

    def _nothing_bytes(self) -> float:
        """What is left is nothing now if it is no more."""
        shortest_s = max(_NOTHING_S, 2 * math.ulp(self._kernel.now_s))
        return max(_NOTHING_BYTES, self._bytes_per_s * shortest_s)

    def _due(self) -> None:
        self._next = None
        self.advance()
        now_s, nothing_bytes = self._kernel.now_s, self._nothing_bytes()
        over = [
            transfer for transfer in self._transfers
            if now_s >= transfer.ends_s and transfer.num_bytes - transfer.sent_bytes <= nothing_bytes
        ]  # fmt: skip
        for transfer in over:
            self._transfers.remove(transfer)
        self._share()
        for transfer in over:
            transfer.on_sent()


def _changes_at_s(transfer: Transfer, now_s: float, nothing_bytes: float) -> float:
    """When its rate will have to change, or it is over."""
    rate = transfer.rate_bytes_per_s
    if now_s >= transfer.ends_s:
        left = transfer.num_bytes - transfer.sent_bytes
        return now_s if left <= nothing_bytes else now_s + left / rate if rate > 0 else math.inf
    backlog = transfer.backlog_bytes(now_s)
    if backlog > nothing_bytes and rate > transfer.produced_per_s:
        return min(transfer.ends_s, now_s + backlog / (rate - transfer.produced_per_s))
    return transfer.ends_s
