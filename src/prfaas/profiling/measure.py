"""The order of measurements, retries, and what spoils them."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from prfaas.profiling.endpoint import Endpoint, EndpointError, Rejected, together
from prfaas.profiling.samples import Sample, Timed, random_text, random_tokens, step_s

#: A sample that fails for a passing reason is tried this often before measuring fails.
_TRIES: Final = 3

#: Servers count a BOS token or two as cached; more means that the prefix cache is at work.
_MAX_CACHED_TOKENS: Final = 16

_Result = TypeVar("_Result")

#: Called after each measurement with what was measured.
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Schedule:
    """What to measure: prompt lengths, batches of decoding sequences, and how often."""

    lengths: tuple[int, ...]
    repeats: int
    decode_batches: tuple[int, ...]
    decode_tokens: int
    decode_context_tokens: int

    @property
    def num_steps(self) -> int:
        """How often Progress is called."""
        return len(self.lengths) * (self.repeats + 1) + len(self.decode_batches) * (self.repeats + 1)


@dataclass(frozen=True, slots=True)
class Measured:
    """Prefill times by length and step times by batch at one context length, and how many samples were repeated."""

    prefill: tuple[Timed, ...]
    decode: tuple[Timed, ...]
    decode_context_tokens: int
    num_retries: int
    sends_text: bool


class Measurement:
    """One run against one endpoint. `rng` decides prompts and order."""

    def __init__(self, endpoint: Endpoint, rng: random.Random, progress: Progress) -> None:
        self._endpoint = endpoint
        self._rng = rng
        self._progress = progress
        self._num_retries = 0
        self._sends_text = False

    async def run(self, schedule: Schedule) -> Measured:
        """Everything in the schedule. Raises EndpointError or TooFewTokens."""
        await self._find_prompt_form(schedule.lengths[0])
        prefill = await self._prefill(schedule)
        decode = [await self._decode(schedule, batch) for batch in schedule.decode_batches]
        context = schedule.decode_context_tokens
        return Measured(tuple(prefill), tuple(decode), context, self._num_retries, self._sends_text)

    async def _find_prompt_form(self, length: int) -> None:
        """Token ids if the server takes them, so that lengths are exact; text otherwise."""
        try:
            await self._try(lambda: self._endpoint.complete(self._prompt(length), 1))
        except Rejected:
            self._sends_text = True
            await self._try(lambda: self._endpoint.complete(self._prompt(length), 1))

    async def _prefill(self, schedule: Schedule) -> list[Timed]:
        """Lengths in shuffled rounds, so that a slow minute of the server spoils one repeat of each, not all of one.
        The first round warms up: kernels are compiled and graphs captured per size."""
        seconds: dict[int, list[float]] = {}
        for number in range(schedule.repeats + 1):
            order = self._rng.sample(schedule.lengths, len(schedule.lengths))
            for length in order:
                sample = await self._try(lambda length=length: self._endpoint.complete(self._prompt(length), 1))  # type: ignore[misc]
                self._check_uncached(sample)
                # With text the server's count is the length; it varies a little, so that the grid's number names it.
                true_length = sample.prompt_tokens if self._sends_text and sample.prompt_tokens else length
                if number:
                    seconds.setdefault(length, []).append(sample.ttft_s * length / true_length)
                self._progress(f"prefill of {length} tokens")
        return [Timed(length, tuple(seconds[length])) for length in sorted(seconds)]

    async def _decode(self, schedule: Schedule, batch: int) -> Timed:
        seconds = []
        for number in range(schedule.repeats + 1):
            prompts = [self._prompt(schedule.decode_context_tokens) for _ in range(batch)]
            samples = await self._try(lambda prompts=prompts: self._all(prompts, schedule.decode_tokens))  # type: ignore[misc]
            if number:
                seconds.append(step_s(samples))
            self._progress(f"decode of {batch} at once")
        return Timed(batch, tuple(seconds))

    async def _all(self, prompts: list[list[int] | str], max_tokens: int) -> list[Sample]:
        try:
            return await together(self._endpoint, prompts, max_tokens)
        except* EndpointError as group:
            first = group.exceptions[0]
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
        raise first

    def _prompt(self, length: int) -> list[int] | str:
        return random_text(self._rng, length) if self._sends_text else random_tokens(self._rng, length)

    async def _try(self, attempt: Callable[[], Awaitable[_Result]]) -> _Result:
        for _ in range(_TRIES - 1):
            try:
                return await attempt()
            except EndpointError as error:
                if not error.transient:
                    raise
                self._num_retries += 1
        return await attempt()

    def _check_uncached(self, sample: Sample) -> None:
        if (sample.cached_tokens or 0) > _MAX_CACHED_TOKENS:
            raise EndpointError(
                f"the server found {sample.cached_tokens} tokens of a random prompt in its prefix cache;"
                " the times would be too short; turn prefix caching off for the measurement"
            )
