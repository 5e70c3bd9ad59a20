"""What of a link's chunks has arrived, and how much may be on its way."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas.core.link.arrivals import (
    AHEAD_S,
    GROWS,
    MAX_FLIGHT_BYTES,
    MIN_FLIGHT_BYTES,
    PATIENCE_S,
    REMEMBERED_S,
    Arrivals,
)
from prfaas.core.link.lane_plan import MIN_CHUNK_BYTES

CHUNK = MIN_CHUNK_BYTES
LOOK_S = 0.1


class Link:
    """One lane that always has the next chunk, over a link that carries `bytes_per_s`."""

    def __init__(self, bytes_per_s: float) -> None:
        self.arrivals = Arrivals()
        self.bytes_per_s = bytes_per_s
        self.now_s = 100.0
        self._waiting: list[tuple[tuple[int, int], float]] = []
        self._free_s = self.now_s
        self._num = 0

    def run(self, seconds: float, most: int = 40) -> None:
        """With at most so many chunks in the sockets' buffers."""
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            while self.arrivals.has_room and len(self._waiting) < most:
                key = (1, self._num)
                self._num += 1
                self.arrivals.begun(0, key, CHUNK, self.now_s)
                self._waiting.append((key, CHUNK))
            self.now_s += LOOK_S
            self._read()
            self.arrivals.look(0.0, self.now_s)
            self.arrivals.check()

    def _read(self) -> None:
        self._free_s = max(self._free_s, self.now_s - LOOK_S)
        while self._waiting and self._free_s + self._waiting[0][1] / self.bytes_per_s <= self.now_s:
            key, length = self._waiting.pop(0)
            self._free_s += length / self.bytes_per_s
            self.arrivals.answered(key, self._free_s)
        if self._waiting and self._free_s < self.now_s:
            key, length = self._waiting[0]
            self._waiting[0] = key, length - (self.now_s - self._free_s) * self.bytes_per_s
            self._free_s = self.now_s


def test_a_link_that_delivers_in_time_is_not_limited() -> None:
    """However much it carries, and nothing is said of it."""
    link = Link(1e9)
    link.run(3.0)
    assert not link.arrivals.is_late
    assert link.arrivals.limit_bytes is link.arrivals.bytes_per_s is None
    assert link.arrivals.chunk_bytes(16 << 20) == 16 << 20


def test_buffers_that_take_everything_do_not_hide_a_slow_link() -> None:
    """They take ten seconds' worth at once. Within a second it is known, and soon only a moment's worth is on its way."""
    link = Link(1.2e6)
    link.run(0.5)
    assert link.arrivals.is_late
    assert link.arrivals.bytes_per_s == pytest.approx(1.2e6, rel=0.6), "two chunks are a coarse measure"
    link.run(20.0)
    assert link.arrivals.bytes_per_s == pytest.approx(1.2e6, rel=0.25)
    assert link.arrivals.flight_bytes <= MIN_FLIGHT_BYTES * GROWS + CHUNK
    assert link.arrivals.chunk_bytes(16 << 20) == MIN_CHUNK_BYTES


def test_a_link_that_falls_to_a_tenth_is_seen_within_half_a_second() -> None:
    """As what has arrived since bytes are late, not as the mean over the fall."""
    link = Link(12e6)
    link.run(5.0)
    assert link.arrivals.flight_bytes <= 12e6 * (AHEAD_S + 0.2) + CHUNK
    link.bytes_per_s = 1.2e6
    link.run(0.5)
    assert link.arrivals.bytes_per_s is not None
    assert link.arrivals.bytes_per_s < 3e6


def test_a_link_that_is_back_is_used_in_full_again() -> None:
    """The limit grows while it is reached; then nothing is late, and nothing is said."""
    link = Link(1.2e6)
    link.run(20.0)
    link.bytes_per_s = 1e9
    link.run(4.0, most=600)
    assert link.arrivals.limit_bytes is None or link.arrivals.limit_bytes > 100 * MIN_FLIGHT_BYTES
    assert link.arrivals.bytes_per_s is None
    assert MAX_FLIGHT_BYTES > 100 * MIN_FLIGHT_BYTES


def test_what_nobody_wants_any_more_is_on_its_way_all_the_same() -> None:
    """It is not late, since nobody waits for it, and it takes the place of others until the peer has read it."""
    arrivals = Arrivals()
    arrivals.begun(0, (1, 0), CHUNK, 0.0)
    arrivals.begun(0, (1, CHUNK), CHUNK, 0.0)
    arrivals.begun(1, (2, 0), CHUNK, 0.0)
    arrivals.over(1)
    assert (arrivals.flight_bytes, arrivals.unwanted_bytes) == (3 * CHUNK, 2 * CHUNK)
    arrivals.answered((2, 0), 0.1)
    arrivals.look(0.0, 5.0)
    assert not arrivals.is_late
    arrivals.discarded(1, 5.0)
    assert arrivals.unwanted_bytes == CHUNK
    arrivals.begun(0, (3, 0), CHUNK, 5.0)
    arrivals.answered((3, 0), 5.1)
    assert arrivals.flight_bytes == arrivals.unwanted_bytes == 0, "lanes are in order"
    arrivals.check()


def test_a_long_way_is_no_delay() -> None:
    """Two round trips are allowed for."""
    arrivals = Arrivals()
    arrivals.begun(0, (1, 0), CHUNK, 0.0)
    arrivals.look(0.3, PATIENCE_S + 0.6)
    assert not arrivals.is_late
    arrivals.look(0.3, PATIENCE_S + 0.61)
    assert arrivals.is_late


def test_late_bytes_are_forgotten() -> None:
    """A second after the last of them nothing is said any more."""
    link = Link(1.2e6)
    link.run(3.0)
    assert link.arrivals.bytes_per_s is not None
    link.arrivals.lost(0)
    link.arrivals.look(0.0, link.now_s + REMEMBERED_S + 0.1)
    assert link.arrivals.bytes_per_s is None
    assert link.arrivals.flight_bytes == 0


def test_a_stall_is_no_rate_of_zero_at_once() -> None:
    """A chunk that takes long is a slow link until it takes very long."""
    link = Link(12e6)
    link.run(5.0)
    link.bytes_per_s = 1.0
    seen = []
    for _ in range(30):
        link.run(LOOK_S)
        seen.append(link.arrivals.bytes_per_s or 0.0)
    assert all(after <= before for before, after in pairwise(seen[10:]))
    assert 0.0 < seen[-1] <= CHUNK / 2.5


step = st.tuples(st.sampled_from(("begun", "answered", "discarded", "over", "lost", "look")), st.integers(0, 3))


@given(st.lists(step, max_size=60))
def test_books_are_right_whatever_happens(steps: list[tuple[str, int]]) -> None:
    """Also for chunks that are not known, or answered twice."""
    arrivals, now_s, num = Arrivals(), 0.0, 0
    for what, number in steps:
        now_s += 0.15
        if what == "begun":
            num += 1
            arrivals.begun(number % 2, (number, num), CHUNK, now_s)
        elif what == "answered":
            arrivals.answered((number, num), now_s)
        elif what == "discarded":
            arrivals.discarded(number, now_s)
        elif what == "over":
            arrivals.over(number)
        elif what == "lost":
            arrivals.lost(number % 2)
        else:
            arrivals.look(0.0, now_s)
        arrivals.check()
