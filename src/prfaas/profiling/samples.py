"""What is sent and what is made of the answers. Pure: randomness and times are arguments."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from prfaas.core.errors import PrfaasError

#: Token ids that every vocabulary has and that are neither special nor out of range: byte-level ones start near here.
FIRST_TOKEN_ID: Final = 10
END_TOKEN_ID: Final = 250

_WORDS: Final = (
    "time",
    "house",
    "river",
    "seven",
    "green",
    "paper",
    "light",
    "stone",
    "water",
    "music",
    "north",
    "glass",
)


class TooFewTokens(PrfaasError):
    """The streams did not decode together long enough to see a step; the text says what to change."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One streamed answer. `sent_s` is on the sender's clock; `chunk_s` are seconds after it, one per chunk of output.
    Counts are the server's own; None where it does not tell."""

    sent_s: float
    chunk_s: tuple[float, ...]
    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None

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


def random_tokens(rng: random.Random, num: int) -> list[int]:
    """A prompt that no prefix cache has seen: its first tokens are random already."""
    return [rng.randrange(FIRST_TOKEN_ID, END_TOKEN_ID) for _ in range(num)]


def random_text(rng: random.Random, num_words: int) -> str:
    """The same for servers that take text only; about a token a word."""
    return " ".join(f"{rng.choice(_WORDS)}" for _ in range(num_words))


def step_s(samples: Sequence[Sample]) -> float:
    """Seconds of one decode step while all of the samples decode: the median gap between tokens from when the last of
    them has its first token to when the first of them ends. Raises TooFewTokens."""
    start = max(sample.sent_s + sample.chunk_s[0] for sample in samples)
    end = min(sample.sent_s + sample.chunk_s[-1] for sample in samples)
    gaps = []
    for sample in samples:
        times = [sample.sent_s + at for at in sample.chunk_s if start <= sample.sent_s + at <= end]
        # A server that sends several tokens in a chunk takes as many steps for it.
        per_chunk = (sample.completion_tokens or len(sample.chunk_s)) / len(sample.chunk_s)
        gaps += [(later - earlier) / per_chunk for earlier, later in pairwise(times)]
    if len(gaps) < 2 * len(samples):
        raise TooFewTokens(
            f"{len(samples)} sequences decoded together for {max(0.0, end - start):.3f} s only; raise --decode-tokens,"
            " or lower --decode-batches if the server queues that many"
        )
    return statistics.median(gaps)
