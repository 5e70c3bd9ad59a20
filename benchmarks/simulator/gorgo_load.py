"""Requests with the statistics that GORGO's authors publish of their windows (arXiv 2602.11688, appendix A).

Every prompt of a user begins alike. It asks something single, or goes on with a conversation; those may be older than
the window, so that the first prompt is long already. What is not published is assumed: see the constants.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist
from typing import Final, NamedTuple

from prfaas.sim.arrivals import Arrival

#: The authors count reuse in blocks of so many tokens.
BLOCK_TOKENS: Final = 256
MAX_TOKENS: Final = 24_000
OUTPUT_TOKENS: Final = 128
WINDOW_S: Final = 1_800.0

# Fitted to the published lengths: log-normal, and those over the limit are left out, as the authors do.
MEDIAN_TOKENS: Final = 4_600
SIGMA: Final = 1.2
# Assumed. Of the variance of a logarithm, what is the user's own; the rest is the prompt's.
USERS_SHARE: Final = 0.7
#: A prompt has at least so much of its own.
MIN_OWN_TOKENS: Final = 200
#: Requests of a user are log-normal, a few send hundreds; so far apart on average, or less if they would not fit.
REQUESTS_SIGMA: Final = 1.2
GAP_S: Final = 45.0


@dataclass(frozen=True)
class Window:
    """Half an hour of the trace, replayed `time_scale` times as slowly. Fitted to the published reuse: `preamble`, the
    share of a user's usual length with which all its prompts begin; a conversation has so many `turns` in the window on
    average, and grows by `growth_tokens` from one to the next."""

    name: str
    num_requests: int
    num_users: int
    multi_turn: float
    preamble: float
    turns: float
    growth_tokens: float
    time_scale: float


APR5: Final = Window("Apr 5", 7_195, 579, 0.739, 0.6, 16.0, 150.0, 1.0)
APR6: Final = Window("Apr 6", 7_630, 606, 0.741, 0.6, 14.0, 150.0, 2.0)
APR7: Final = Window("Apr 7", 8_663, 540, 0.737, 0.8, 40.0, 60.0, 3.0)


class Statistics(NamedTuple):
    """Of a window. `reuse`: tokens in blocks that came before, over all."""

    num_requests: int
    requests_per_user: float
    multi_turn: float
    median_tokens: float
    mean_tokens: float
    p95_tokens: float
    reuse: float


PUBLISHED: Final = {
    APR5: Statistics(7_195, 12.8, 0.739, 5_638, 6_877, 19_886, 0.788),
    APR6: Statistics(7_630, 12.9, 0.741, 5_787, 7_008, 20_974, 0.776),
    APR7: Statistics(8_663, 16.4, 0.737, 5_745, 7_148, 20_435, 0.879),
}


class Asked(NamedTuple):
    """One request, and whether it goes on with a conversation."""

    arrival: Arrival
    is_multi_turn: bool


class _User:
    """Draws the prompts of one user, in order."""

    def __init__(self, rng: random.Random, window: Window, number: int, place: float) -> None:
        self._rng, self._window, self._number = rng, window, number
        self._usual = place * math.sqrt(USERS_SHARE) * SIGMA
        self._preamble_tokens = round(window.preamble * min(MAX_TOKENS, MEDIAN_TOKENS * math.exp(self._usual)))
        self._num_talks = 0
        self._talk = self._talk_tokens = 0

    def asks(self, at_s: float) -> Asked:
        rng = self._rng
        is_multi_turn = rng.random() < self._window.multi_turn
        if not is_multi_turn:
            return Asked(self._arrival(at_s, self._new_talk(), self._new_length()), False)
        grown = self._talk_tokens + round(rng.expovariate(1.0 / self._window.growth_tokens))
        if not self._talk_tokens or grown > MAX_TOKENS or rng.random() < 1.0 / self._window.turns:
            self._talk, grown = self._new_talk(), self._new_length()
        self._talk_tokens = grown
        return Asked(self._arrival(at_s, self._talk, grown), True)

    def _new_talk(self) -> int:
        self._num_talks += 1
        return self._num_talks

    def _new_length(self) -> int:
        while True:
            own = self._rng.gauss(0.0, math.sqrt(1.0 - USERS_SHARE) * SIGMA)
            tokens = round(MEDIAN_TOKENS * math.exp(self._usual + own))
            tokens = max(tokens, self._preamble_tokens + MIN_OWN_TOKENS)
            if tokens <= MAX_TOKENS:
                return tokens

    def _arrival(self, at_s: float, talk: int, num_tokens: int) -> Arrival:
        num_alike = self._preamble_tokens // BLOCK_TOKENS
        blocks = tuple(
            f"{self._number}:{0 if index < num_alike else talk}:{index}".encode()
            for index in range(num_tokens // BLOCK_TOKENS)
        )
        return Arrival(at_s, num_tokens, OUTPUT_TOKENS, tenant=f"user-{self._number}", blocks=blocks)


def asked(window: Window, seed: int, time_scale: float | None = None) -> list[Asked]:
    """The whole window, in order; the same for one seed."""
    rng = random.Random(f"{window.name} {seed}")
    scale = window.time_scale if time_scale is None else time_scale
    found = []
    places = _normals(rng, window.num_users)
    for number, num in enumerate(_requests_of_users(rng, window)):
        user = _User(rng, window, number, places[number])
        found += [user.asks(at_s * scale) for at_s in _times_s(rng, num)]
    return sorted(found, key=lambda one: one.arrival.at_s)


def _normals(rng: random.Random, num: int) -> list[float]:
    """In an order by chance, and evenly over the distribution: few users send most, and windows shall be alike."""
    found = [NormalDist().inv_cdf((index + 0.5) / num) for index in range(num)]
    rng.shuffle(found)
    return found


def _requests_of_users(rng: random.Random, window: Window) -> list[int]:
    """At least one each."""
    shares = [math.exp(REQUESTS_SIGMA * normal) for normal in _normals(rng, window.num_users)]
    left = window.num_requests - window.num_users
    ends = [0.0]
    for share in shares:
        ends.append(ends[-1] + share)
    marks = [round(end / ends[-1] * left) for end in ends]
    return [1 + high - low for low, high in pairwise(marks)]


def _times_s(rng: random.Random, num: int) -> list[float]:
    """Of one user's requests, from a time on by chance."""
    gap_s = min(GAP_S, WINDOW_S / num)
    times = [0.0]
    for _ in range(num - 1):
        times.append(times[-1] + rng.expovariate(1.0 / gap_s))
    squeeze = min(1.0, WINDOW_S / times[-1]) if times[-1] else 1.0
    start_s = rng.uniform(0.0, WINDOW_S - times[-1] * squeeze)
    return [start_s + at_s * squeeze for at_s in times]


def statistics_of(found: Sequence[Asked]) -> Statistics:
    """As the authors count them."""
    tokens = sorted(one.arrival.num_tokens for one in found)
    num = len(found)
    return Statistics(
        num,
        num / len({one.arrival.tenant for one in found}),
        sum(one.is_multi_turn for one in found) / num,
        statistics.median(tokens),
        statistics.fmean(tokens),
        tokens[math.ceil(0.95 * num) - 1],
        _reuse([one.arrival for one in found]),
    )


def _reuse(arrivals: Iterable[Arrival]) -> float:
    seen: set[bytes] = set()
    num_reused = num_tokens = 0
    for arrival in arrivals:
        num_tokens += arrival.num_tokens
        num_reused += sum(BLOCK_TOKENS for block in arrival.blocks if block in seen)
        seen.update(arrival.blocks)
    return num_reused / num_tokens
