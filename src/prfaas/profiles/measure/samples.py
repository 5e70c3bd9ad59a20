"""Which lengths are measured, and what is made of the answers. Pure: times are arguments."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NamedTuple

from prfaas.core.errors import PrfaasError
from prfaas.profiles.measure.stream import Usage

#: Arrivals closer than this part of the mean gap are one burst: the server, a proxy or the kernel held them together.
_BURST: Final = 0.25

#: A median of fewer waits per sequence says more of the network than of the server.
_MIN_WAITS: Final = 2


class TooFewTokens(PrfaasError):
    """The streams did not decode together long enough to see a step; the text says what to change."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One streamed answer. `sent_s` is on the sender's clock; `chunk_s` are seconds after it, one per chunk of output,
    never falling."""

    sent_s: float
    chunk_s: tuple[float, ...]
    usage: Usage

    @property
    def ttft_s(self) -> float:
        """Sent to first token."""
        return self.chunk_s[0]


@dataclass(frozen=True, slots=True)
class Timed:
    """Repeated measurements of one quantity at one point, in seconds."""

    at: int
    seconds: tuple[float, ...]

    @property
    def median_s(self) -> float:
        """The figure that is planned with."""
        return statistics.median(self.seconds)


def log_grid(low: int, high: int, num: int) -> list[int]:
    """Up to `num` different whole numbers from `low` to `high`, both included, evenly spaced in their logarithms."""
    if num < 2 or low == high:
        return sorted({low, high})
    return sorted({round(low * (high / low) ** (step / (num - 1))) for step in range(num)})


def prefill_times(samples: Mapping[int, Sequence[Sample]], *, by_own_count: bool) -> list[Timed]:
    """Times to first token by prompt length, rising. `by_own_count`: the keys are approximate and the server's counts,
    which must be there, are the lengths; the median of those that were meant to be as long."""
    seconds: dict[int, list[float]] = {}
    for wanted, group in samples.items():
        length = wanted
        if by_own_count:
            length = round(statistics.median(sample.usage.prompt_tokens or wanted for sample in group))
        seconds.setdefault(length, []).extend(sample.ttft_s for sample in group)
    return [Timed(length, tuple(seconds[length])) for length in sorted(seconds)]


def step_s(samples: Sequence[Sample]) -> float:
    """Seconds of one decode step while all of the samples decode: the median gap between tokens from when the last of
    them has its first token to when the first of them ends. Raises TooFewTokens."""
    # More chunks than tokens: the last ones only say why the output ended.
    arrivals = [
        [sample.sent_s + at for at in sample.chunk_s[: sample.usage.completion_tokens or None]] for sample in samples
    ]
    start = max(times[0] for times in arrivals)
    end = min(times[-1] for times in arrivals)
    waits: list[_Wait] = []
    num_seen = 0
    for sample, times in zip(samples, arrivals, strict=True):
        # A server that sends several tokens in a chunk takes as many steps for it.
        per_chunk = max(1.0, (sample.usage.completion_tokens or 0) / len(times))
        together = [at for at in times if start <= at <= end]
        num_seen += max(0, len(together) - 1)
        waits += [_Wait(wait.per_chunk_s / per_chunk, wait.num_chunks) for wait in _waits(together)]
    num_needed = _MIN_WAITS * len(samples)
    if len(waits) < num_needed <= num_seen:
        raise TooFewTokens(
            f"{num_seen} tokens of {len(samples)} sequences came in {len(waits)} bursts, so a step cannot be seen; the"
            " server's machine, this one, or a proxy between them is too busy to pass them on: free it and try again"
        )
    if len(waits) < num_needed:
        raise TooFewTokens(
            f"{len(samples)} sequences decoded together for {max(0.0, end - start):.3f} s only; lower"
            " --decode-batches or --decode-context if the server queues that many, or raise --decode-tokens"
        )
    return statistics.median(wait.per_chunk_s for wait in waits for _ in range(wait.num_chunks))


class _Wait(NamedTuple):
    """Time for each chunk of a burst: they share what the burst waited for. Never 0."""

    per_chunk_s: float
    num_chunks: int


def _waits(times: Sequence[float]) -> list[_Wait]:
    """One for every burst after the first; arrivals all at once are one burst."""
    if len(times) < 2:
        return []
    near_s = _BURST * (times[-1] - times[0]) / (len(times) - 1)
    bursts = [[times[0]]]
    for before, now in pairwise(times):
        if now - before <= near_s:
            bursts[-1].append(now)
        else:
            bursts.append([now])
    return [_Wait((late[0] - early[0]) / len(late), len(late)) for early, late in pairwise(bursts)]
