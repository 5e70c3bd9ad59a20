"""What a client tells of one run, in the same units whichever client it is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figures:
    """Milliseconds, but for the rates: requests and tokens a second. `ttft_ms_sent_mean` counts from when a request was
    sent, also of a client whose TTFT counts from when it was to be sent. `tpot_ms_mean`: mean over answers of (end −
    first) / (tokens − 1)."""

    num_completed: int
    num_failed: int
    num_refused: int
    ttft_ms_mean: float
    ttft_ms_p50: float
    ttft_ms_p99: float
    ttft_ms_sent_mean: float
    tpot_ms_mean: float
    requests_per_s: float
    output_tokens_per_s: float


@dataclass(frozen=True)
class Exchange:
    """A prompt that was sent, token ids or text, and the answer's text. `num_tokens` were asked for."""

    prompt: list[int] | str
    num_tokens: int
    answer: str
