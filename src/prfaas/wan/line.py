"""One direction of a link: a bottleneck that its flows share, then the way. Pure: time and chance are arguments.

A *flow* is one direction of one TCP connection. Its bytes wait for the bottleneck, are on the way, have arrived, and
are delivered, in this order. The caller holds the bytes and moves them; this module says how many and when.

Laws of this file:
- What a flow delivers is a prefix of what it was offered: nothing overtakes, jitter or not.
- A flow holds at most bandwidth × rtt and its share of the queue, so that its sender feels the link.
- A flow that is stalled or held takes no part of the bandwidth: the others have it.
- Which bits flip depends on how many bytes came in before, of all flows together, and on the seed.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from prfaas.wan.bucket import Bucket, Turns
from prfaas.wan.settings import LinkSettings

#: How long the deviation of a way stays the same: routes and neighbours change, but not from packet to packet.
JITTER_EVERY_S: Final = 0.02
#: A turn at the bottleneck: half a millisecond, so that n flows take turns within n / 2 ms.
QUANTUM_S: Final = 0.0005
MIN_QUANTUM: Final = 2048
MAX_QUANTUM: Final = 64 << 10
#: The link is looked at no more often, so that a look moves more bytes than it costs.
TICK_S: Final = 0.002
#: A link is in use for at most so long after bytes have passed, as far as stalls per second are concerned.
USE_GAP_S: Final = 0.1
#: Where bandwidth × rtt is huge or unknown: of one flow, and of all flows of a line.
MAX_FLOW_BYTES: Final = 64 << 20
MAX_LINE_BYTES: Final = 256 << 20
#: Of one flow where there is no limit: for what moves, not for what waits.
FREE_FLOW_BYTES: Final = 16 << 20
MIN_FLOW_BYTES: Final = 64 << 10


class Way:
    """How long bytes of one link are on their way: half of its round trip, more or less jitter."""

    def __init__(self, settings: LinkSettings, rng: random.Random) -> None:
        self.settings = settings
        self._rng = rng
        self._deviation = 0.0
        self._until_s = -math.inf

    def delay_s(self, now_s: float) -> float:
        """Of bytes that pass the bottleneck now."""
        if not self.settings.jitter:
            return self.settings.rtt / 2
        if now_s >= self._until_s:
            self._deviation = self._rng.uniform(-1.0, 1.0)
            self._until_s = now_s + JITTER_EVERY_S
        return max(0.0, self.settings.rtt / 2 + self._deviation * self.settings.jitter)


@dataclass(eq=False, slots=True)
class Flow:
    """`arrived` bytes may be delivered now. `has_ended`: nothing more will arrive."""

    way: Way
    stalled_until_s: float
    arrived: int = 0
    has_ended: bool = False
    is_held: bool = False
    #: Accepted and not delivered.
    held_bytes: int = 0
    is_ending: bool = False
    on_the_way: deque[tuple[float, int]] = field(default_factory=deque)
    last_due_s: float = -math.inf
    #: When it is looked at again; other wakes of it are old.
    wake_s: float = math.inf


class Line:
    """`settings` has what the flows share: bandwidth, queue, stalls, flips. `Way` has what is a connection's own."""

    def __init__(self, settings: LinkSettings, rng: random.Random, now_s: float) -> None:
        self.settings = settings
        self._rng = rng
        self._bucket = Bucket(settings.bandwidth, now_s)
        self._turns: Turns[Flow] = Turns()
        self._wakes: list[tuple[float, int, Flow]] = []
        self._numbers = itertools.count()
        self._flows: set[Flow] = set()
        self._passed_at_s = now_s
        self._used_s_to_stall = self._bytes_to_stall = math.inf
        self._bytes_to_flip = math.inf
        self._draw_damage()
        self.held_bytes = 0
        self.carried_bytes = 0
        self.num_stalls = 0
        self.num_flips = 0

    @property
    def queue_bytes(self) -> int:
        """Waiting for the bottleneck."""
        return sum(self._turns.waiting(flow) for flow in self._flows)

    def waiting(self, flow: Flow) -> int:
        """Of one flow."""
        return self._turns.waiting(flow)

    def change(self, settings: LinkSettings, now_s: float) -> None:
        """From now on. What is on the way arrives when it would have."""
        self.settings = settings
        self._bucket.set_rate(settings.bandwidth, now_s)
        self._draw_damage()

    def open(self, way: Way, first_at_s: float) -> Flow:
        """A flow whose bytes pass from `first_at_s` on: its connection is being made until then."""
        flow = Flow(way, first_at_s)
        self._flows.add(flow)
        self._turns.pause(flow)
        self._wake_at(flow, first_at_s)
        return flow

    def close(self, flow: Flow) -> None:
        """Forget it, with what it holds."""
        self._turns.remove(flow)
        self._flows.discard(flow)
        self.held_bytes -= flow.held_bytes
        flow.held_bytes, flow.has_ended = 0, True
        flow.on_the_way.clear()

    def room(self, flow: Flow) -> int:
        """Bytes that the flow may be offered now; 0 rather than a few."""
        if flow.is_ending or flow not in self._flows:
            return 0
        rate, waiting = self.settings.bandwidth, self._turns.waiting(flow)
        if rate is None:
            share = most = FREE_FLOW_BYTES
        else:
            num = self._turns.num_ready + (not waiting)
            share = max(2 * self._quantum, int(rate * self.settings.queue / max(1, num)))
            in_flight = rate * (flow.way.settings.rtt + 2 * flow.way.settings.jitter)
            most = min(MAX_FLOW_BYTES, max(MIN_FLOW_BYTES, int(in_flight) + share))
        room = min(share - waiting, most - flow.held_bytes, MAX_LINE_BYTES - self.held_bytes)
        return room if room >= min(16384, share // 2) else 0

    def flip(self, memory: memoryview) -> None:
        """Damage bytes that come in at the near end, before they are offered."""
        while self._bytes_to_flip < len(memory):
            place = int(self._bytes_to_flip)
            memory[place] ^= 1 << self._rng.randrange(8)
            self.num_flips += 1
            # Never the same bit twice: that would be no damage.
            self._bytes_to_flip = place + 1 + self._draw(self.settings.flips_per_mb) * 1e6
        self._bytes_to_flip -= len(memory)

    def offer(self, flow: Flow, num_bytes: int, now_s: float) -> None:
        """Bytes came in at the near end."""
        if not self._turns.ready_bytes:
            self._bucket.rest(now_s)
        flow.held_bytes += num_bytes
        self.held_bytes += num_bytes
        self._turns.add(flow, num_bytes)

    def end(self, flow: Flow, now_s: float) -> None:
        """The near end sends no more; `has_ended` follows the last byte at the other end."""
        flow.is_ending = True
        if flow in self._flows and not self._turns.waiting(flow) and not flow.on_the_way:
            self._send_off(flow, 0, now_s)

    def hold(self, flow: Flow) -> None:
        """Nothing of it passes or arrives until `release`."""
        flow.is_held = True
        self._turns.pause(flow)

    def release(self, flow: Flow, now_s: float) -> None:
        """What arrived meanwhile is delivered at once, as if it had been sent again."""
        flow.is_held = False
        self._wake_at(flow, max(now_s, flow.stalled_until_s))

    def delivered(self, flow: Flow, num_bytes: int) -> None:
        """The far end took so many of the bytes that have arrived."""
        flow.arrived -= num_bytes
        flow.held_bytes -= num_bytes
        self.held_bytes -= num_bytes

    def step(self, now_s: float) -> list[Flow]:
        """Let time pass: flows of which more has arrived, or that have ended."""
        news = self._due(now_s)
        if self._turns.ready_bytes:
            self._pass(now_s)
            news |= self._due(now_s)
        return list(news)

    def next_s(self, now_s: float) -> float | None:
        """When `step` has something to do again, unless something is offered before."""
        wake_s = self._wakes[0][0] if self._wakes else math.inf
        if self._turns.ready_bytes:
            rate = self.settings.bandwidth
            batch = self._turns.ready_bytes
            if rate is not None:
                batch = min(batch, max(self._quantum, int(rate * TICK_S)))
            wake_s = min(wake_s, max(now_s, self._bucket.when(batch)))
        return None if wake_s == math.inf else wake_s

    @property
    def _quantum(self) -> int:
        rate = self.settings.bandwidth
        return MAX_QUANTUM if rate is None else min(MAX_QUANTUM, max(MIN_QUANTUM, int(rate * QUANTUM_S)))

    def _pass(self, now_s: float) -> None:
        passed = self._turns.serve(self._bucket.available(now_s), self._quantum)
        total = sum(passed.values())
        if self.settings.bandwidth is not None:
            self._bucket.take(total)
        self.carried_bytes += total
        for flow, count in passed.items():
            self._send_off(flow, count, now_s)
            self._bytes_to_stall -= count
            if self._bytes_to_stall <= 0:
                self._stall(flow, now_s)
                self._bytes_to_stall = self._draw(self.settings.stalls_per_mb) * 1e6
        self._used_s_to_stall -= min(now_s - self._passed_at_s, USE_GAP_S)
        self._passed_at_s = now_s
        if self._used_s_to_stall <= 0 and passed:
            self._stall(self._rng.choice(list(passed)), now_s)
            self._used_s_to_stall = self._draw(self.settings.stalls_per_s)

    def _send_off(self, flow: Flow, num_bytes: int, now_s: float) -> None:
        due_s = flow.last_due_s = max(flow.last_due_s, now_s + flow.way.delay_s(now_s))
        if not flow.on_the_way:
            self._wake_at(flow, due_s)
        flow.on_the_way.append((due_s, num_bytes))

    def _due(self, now_s: float) -> dict[Flow, None]:
        news: dict[Flow, None] = {}  # in order, so that a seed decides everything
        while self._wakes and self._wakes[0][0] <= now_s:
            at_s, _, flow = heapq.heappop(self._wakes)
            if at_s != flow.wake_s:
                continue
            flow.wake_s = math.inf
            if flow.is_held or flow not in self._flows:
                continue
            if now_s < flow.stalled_until_s:
                self._wake_at(flow, flow.stalled_until_s)
                continue
            self._turns.resume(flow)
            if self._arrive(flow, now_s):
                news[flow] = None
        return news

    def _arrive(self, flow: Flow, now_s: float) -> bool:
        before = flow.arrived
        while flow.on_the_way and flow.on_the_way[0][0] <= now_s:
            flow.arrived += flow.on_the_way.popleft()[1]
        if flow.on_the_way:
            self._wake_at(flow, flow.on_the_way[0][0])
        elif flow.is_ending and not self._turns.waiting(flow):
            flow.has_ended = True
        return flow.arrived > before or flow.has_ended

    def _stall(self, flow: Flow, now_s: float) -> None:
        self.num_stalls += 1
        flow.stalled_until_s = max(flow.stalled_until_s, now_s + flow.way.settings.stall_s)
        self._turns.pause(flow)
        self._wake_at(flow, flow.stalled_until_s)

    def _wake_at(self, flow: Flow, at_s: float) -> None:
        if at_s < flow.wake_s:
            flow.wake_s = at_s
            heapq.heappush(self._wakes, (at_s, next(self._numbers), flow))

    def _draw(self, per: float) -> float:
        return self._rng.expovariate(per) if per else math.inf

    def _draw_damage(self) -> None:
        self._used_s_to_stall = self._draw(self.settings.stalls_per_s)
        self._bytes_to_stall = self._draw(self.settings.stalls_per_mb) * 1e6
        self._bytes_to_flip = self._draw(self.settings.flips_per_mb) * 1e6
