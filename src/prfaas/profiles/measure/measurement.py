"""The order of measurements, retries, and what spoils them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

from prfaas.profiles.measure.endpoint import Completes, EndpointError, Rejected, together
from prfaas.profiles.measure.options import Schedule
from prfaas.profiles.measure.prompts import FORMS, PROBE_WORDS, WordSize, random_text, random_tokens, word_size
from prfaas.profiles.measure.samples import Sample, Timed, TooFewTokens, prefill_times, step_s

#: A sample that fails for a passing reason is tried this often before measuring fails.
_TRIES: Final = 3

#: Servers add a BOS token or two, and may find them cached; more means that the prefix cache, or something that changes
#: prompts, is at work.
_FEW_TOKENS: Final = 16

_Result = TypeVar("_Result")

#: Called after each measurement with what was measured.
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Measured:
    """Prefill times by length and step times by batch at one context length, and how many samples were repeated."""

    prefill: tuple[Timed, ...]
    decode: tuple[Timed, ...]
    decode_context_tokens: int
    num_retries: int
    sends_text: bool


class Measurement:
    """One run against one endpoint. `order` shuffles lengths. `prompts` makes prompts, and must not repeat what it made
    in an earlier run: the server may have that cached. A retry waits `pause_s`, the next twice that."""

    def __init__(
        self,
        endpoint: Completes,
        order: random.Random,
        prompts: random.Random,
        progress: Progress,
        pause_s: float = 0.5,
    ) -> None:
        self._endpoint = endpoint
        self._order = order
        self._prompts = prompts
        self._progress = progress
        self._pause_s = pause_s
        self._num_retries = 0
        self._form = FORMS[0]
        self._word_size = WordSize(1.0, 0)

    async def run(self, schedule: Schedule) -> Measured:
        """Everything in the schedule. Raises EndpointError or TooFewTokens."""
        await self._find_form(schedule.lengths[0])
        prefill = await self._prefill(schedule)
        decode = [await self._decode(schedule, batch) for batch in schedule.decode_batches]
        context = schedule.decode_context_tokens
        return Measured(tuple(prefill), tuple(decode), context, self._num_retries, self._form.sends_text)

    async def _find_form(self, length: int) -> None:
        """The best form that the server takes, found once: a refusal later on means something else."""
        for form in FORMS:
            self._form = form
            try:
                if form.sends_text:
                    await self._count_words()
                else:
                    await self._try(partial(self._send, random_tokens(self._prompts, length)))
            except Rejected:
                if form == FORMS[-1]:
                    raise
            else:
                return

    async def _count_words(self) -> None:
        """How many tokens a word has, and how many a text has besides: from two texts."""
        few, many = [await self._try(partial(self._count, num)) for num in (PROBE_WORDS, 2 * PROBE_WORDS)]
        found = word_size(few, many)
        if found is None:
            raise _uncounted()
        self._word_size = found

    async def _count(self, num_words: int) -> int:
        sample = await self._send(random_text(self._prompts, num_words))
        return sample.usage.prompt_tokens or 0

    async def _prefill(self, schedule: Schedule) -> list[Timed]:
        """Lengths in shuffled rounds, so that a slow minute of the server spoils one repeat of each, not all of one.
        The first round warms up: kernels are compiled and graphs captured per size."""
        counted: dict[int, list[Sample]] = {}
        for number in range(schedule.repeats + 1):
            for length in self._order.sample(schedule.lengths, len(schedule.lengths)):
                try:
                    sample = await self._try(partial(self._one, length))
                except Rejected as error:
                    raise EndpointError(
                        f"{error}; is a prompt of {length} tokens too long? Lower --max-tokens"
                    ) from None
                if number:
                    counted.setdefault(length, []).append(sample)
                self._progress(f"prefill of {length} tokens")
        return prefill_times(counted, by_own_count=self._form.sends_text)

    async def _one(self, length: int) -> Sample:
        sample = await self._send(self._prompt(length))
        counted, cached = sample.usage.prompt_tokens, sample.usage.cached_tokens or 0
        if self._form.sends_text and not counted:
            raise _uncounted()
        if not self._form.sends_text and counted and abs(counted - length) > _FEW_TOKENS:
            raise EndpointError(
                f"the server counts {counted} tokens in a prompt of {length}; it must not change prompts: turn off"
                " truncation and templates"
            )
        if cached > _FEW_TOKENS:
            raise EndpointError(
                f"the server found {cached} tokens of a random prompt in its prefix cache;"
                " the times would be too short; turn prefix caching off for the measurement"
            )
        return sample

    async def _send(self, prompt: list[int] | str) -> Sample:
        return await self._endpoint.complete(prompt, 1, ignore_eos=self._form.ignore_eos)

    async def _decode(self, schedule: Schedule, batch: int) -> Timed:
        seconds = []
        num_tokens = schedule.decode_tokens
        for number in range(schedule.repeats + 1):
            try:
                step, num_tokens = await self._step(schedule, batch, num_tokens)
            except Rejected as error:
                raise EndpointError(f"{error}; lower --decode-context or --decode-tokens") from None
            if number:
                seconds.append(step)
            self._progress(f"decode of {batch} at once")
        return Timed(batch, tuple(seconds))

    async def _step(self, schedule: Schedule, batch: int, num_tokens: int) -> tuple[float, int]:
        """Seconds of a step, and the output tokens that it took to see one: doubled while the first sequences end
        before the last ones start."""
        while True:
            samples = await self._try(partial(self._all, schedule, batch, num_tokens))
            try:
                return step_s(samples), num_tokens
            except TooFewTokens:
                if 2 * num_tokens > schedule.max_decode_tokens:
                    raise
                num_tokens *= 2

    async def _all(self, schedule: Schedule, batch: int, num_tokens: int) -> list[Sample]:
        prompts = [self._prompt(schedule.decode_context_tokens) for _ in range(batch)]
        return await together(self._endpoint, prompts, num_tokens, ignore_eos=self._form.ignore_eos)

    def _prompt(self, length: int) -> list[int] | str:
        if not self._form.sends_text:
            return random_tokens(self._prompts, length)
        return random_text(self._prompts, self._word_size.num_words(length))

    async def _try(self, attempt: Callable[[], Awaitable[_Result]]) -> _Result:
        for number in range(1, _TRIES):
            try:
                return await attempt()
            except EndpointError as error:
                if not error.transient:
                    raise
                self._num_retries += 1
                await asyncio.sleep(number * self._pause_s)
        return await attempt()


def _uncounted() -> EndpointError:
    return EndpointError(
        "the server takes text only and does not say how many tokens it has (usage.prompt_tokens), so lengths are"
        " unknown; measure the engine itself"
    )
