"""An engine whose time comes from a profile: one prompt is prefilled at a time, and a batch is decoded.

Laws of this file:
- Prompts are prefilled in the order in which they came, each in `prefill_s` of its uncached length.
- A decode step gives every sequence of the batch one token, and takes what `steps` say of a batch of that size; without
  them `step_s` however many there are, as in the paper (Eq. 5). At most `max_batch` sequences are in the batch; others
  wait in order. A sequence joins when the step that goes on has ended.
- An engine that does both prefills in chunks, as engines do: every chunk is a step of the batch too, which gets one
  token of it. So a long prompt slows the batch down, and the batch does not slow the prompt.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from prfaas.core.model.curve import Curve
from prfaas.core.model.decode import StepTimes
from prfaas.sim.kernel import Kernel, Planned

#: Less of a step is a float that fell short of a whole one.
_STEP_FRACTION: Final = 1e-6
#: Of times between a power of two and the next: those in one place differ by half a percent at most.
_PLACES: Final = 200


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """`prefill_s`: seconds for a prompt of l uncached tokens, of which a step takes `chunk_tokens`. `step_s`: of a step
    with a full batch; `steps`: by the batch, None if that makes no difference."""

    prefill_s: Curve
    max_batch: int
    step_s: float
    chunk_tokens: int = 8_192
    steps: StepTimes | None = None


class Prefill:
    """One prompt. How many tokens are to compute is asked when its turn comes: it depends on what is cached then.
    `on_start` is told when it will be done."""

    __slots__ = ("is_over", "num_tokens", "on_done", "on_start")

    def __init__(
        self, num_tokens: Callable[[], int], on_start: Callable[[float], object], on_done: Callable[[], object]
    ) -> None:
        self.num_tokens = num_tokens
        self.on_start = on_start
        self.on_done = on_done
        self.is_over = False


class Sequence:
    """One answer: `num_tokens` to come. `on_first` comes with the first of them, in the batch's step `first_step`."""

    __slots__ = ("first_step", "is_over", "num_tokens", "on_done", "on_first")

    def __init__(self, num_tokens: int, on_first: Callable[[], object], on_done: Callable[[], object]) -> None:
        self.num_tokens = num_tokens
        self.on_first = on_first
        self.on_done = on_done
        self.first_step = math.inf
        self.is_over = False


class Gaps:
    """How long answers wait from one token to the next: by the time, how many tokens did. Times within half a percent
    of each other count as the longest of them."""

    def __init__(self) -> None:
        self._num: dict[int, float] = {}
        self._longest_s: dict[int, float] = {}

    def add(self, gap_s: float, num_tokens: float) -> None:
        if gap_s > 0.0:
            part, exponent = math.frexp(gap_s)
            place = exponent * _PLACES + int(part * (2 * _PLACES))
            self._num[place] = self._num.get(place, 0.0) + num_tokens
            self._longest_s[place] = max(gap_s, self._longest_s.get(place, 0.0))

    def take(self, other: Gaps) -> None:
        """Those of another too."""
        for place, num_tokens in other._num.items():
            self.add(other._longest_s[place], num_tokens)

    def percentile_s(self, percent: float) -> float | None:
        """The shortest that `percent` of all do not exceed; None of none."""
        left = math.fsum(self._num.values()) * percent / 100
        for place in sorted(self._num):
            left -= self._num[place]
            if left <= 0.0:
                return self._longest_s[place]
        return max(self._longest_s.values(), default=None)


class Engine:
    """One instance. `gaps` of its answers go there."""

    def __init__(self, kernel: Kernel, profile: EngineProfile, gaps: Gaps | None = None) -> None:
        self._gaps = Gaps() if gaps is None else gaps
        #: Tokens of all answers since the step last took another time.
        self._gap_tokens = 0.0
        self._kernel = kernel
        self._profile = profile
        self._prompts: deque[Prefill] = deque()
        self._prefilling: Prefill | None = None
        self._prefill_ends: Planned | None = None
        self._waiting: deque[Sequence] = deque()
        self._num_decoding = 0
        #: Of those in the batch, who has had its first token, and not its last.
        self._num_begun = 0
        #: Steps done since the start, fractions of one too: a sequence that joined at s has its n-th token at s + n,
        #: and s is whole.
        self._steps = 0.0
        self._step_s = profile.step_s
        #: Of the prompt that is being prefilled; 0.0 without one.
        self._chunk_s = 0.0
        self._advanced_at_s = kernel.now_s
        self._milestones: list[tuple[float, int, bool, Sequence]] = []
        self._number = 0
        self._next: Planned | None = None
        self.slowness = 1.0
        #: Seconds with a prompt, up to the last change.
        self.prefilling_s = 0.0

    @property
    def num_prompts(self) -> int:
        """Waiting and being prefilled."""
        return len(self._prompts) + (self._prefilling is not None)

    @property
    def num_sequences(self) -> int:
        """Waiting and in the batch."""
        return len(self._waiting) + self._num_decoding

    @property
    def num_decoding(self) -> int:
        return self._num_decoding

    @property
    def step_s(self) -> float:
        """Seconds of a decode step as the batch is now; of one with a prompt's chunk in it, as long as there is one."""
        return self._step_s

    @property
    def decode_step_s(self) -> float:
        """Seconds of a step of this batch without a chunk."""
        profile = self._profile
        return profile.step_s if profile.steps is None else profile.steps.at(self._num_decoding)

    def slow_down(self, factor: float) -> None:
        """Prompts that begin from now on take so many times as long as the profile says."""
        self.slowness = factor

    def stop(self) -> None:
        """It does nothing more, and tells nobody."""
        self._advance()
        self._note_gaps()
        for planned in (self._prefill_ends, self._next):
            if planned is not None:
                planned.cancel()

    @property
    def gaps(self) -> Gaps:
        self._note_gaps()
        return self._gaps

    def _note_gaps(self) -> None:
        if self._gap_tokens:
            self._gaps.add(self._step_s, self._gap_tokens)
            self._gap_tokens = 0.0

    # Prefill

    def prefill(self, prompt: Prefill) -> None:
        self._prompts.append(prompt)
        if self._prefilling is None:
            self._start_prefill()

    def drop_prefill(self, prompt: Prefill) -> None:
        """Nobody waits for it any more. Idempotent."""
        if prompt.is_over:
            return
        prompt.is_over = True
        if prompt is not self._prefilling:
            self._prompts.remove(prompt)
            return
        assert self._prefill_ends is not None, "what is being prefilled will end"
        self._prefill_ends.cancel()
        self._start_prefill()

    def _start_prefill(self) -> None:
        self._advance()
        self._prefilling = self._prompts.popleft() if self._prompts else None
        self._chunk_s = 0.0
        if self._prefilling is not None:
            num_tokens = self._prefilling.num_tokens()
            takes_s = self._profile.prefill_s.at(num_tokens) * self.slowness
            self._chunk_s = takes_s / math.ceil(num_tokens / self._profile.chunk_tokens)
            ends_s = self._kernel.now_s + takes_s
            self._prefill_ends = self._kernel.at(ends_s, self._prefilled, self._prefilling)
            self._prefilling.on_start(ends_s)
        self._plan()

    def _prefilled(self, prompt: Prefill) -> None:
        prompt.is_over = True
        self._start_prefill()
        prompt.on_done()

    # Decode

    def decode(self, sequence: Sequence) -> None:
        self._waiting.append(sequence)
        self._advance()
        self._admit()
        self._plan()

    def num_tokens_of(self, sequence: Sequence) -> int:
        """How many tokens of an answer there are by now."""
        if sequence.is_over:
            return sequence.num_tokens
        self._advance()
        since_first = self._steps + _STEP_FRACTION - sequence.first_step
        return 0 if since_first < 0.0 else min(sequence.num_tokens, math.floor(since_first) + 1)

    def drop_sequence(self, sequence: Sequence) -> None:
        """Nobody waits for it any more. Idempotent."""
        if sequence.is_over:
            return
        sequence.is_over = True
        if sequence in self._waiting:
            self._waiting.remove(sequence)
            return
        self._advance()
        self._num_decoding -= 1
        self._num_begun -= sum(
            1 for milestone in self._milestones if milestone[3] is sequence and _has_begun(milestone)
        )
        self._milestones = [milestone for milestone in self._milestones if milestone[3] is not sequence]
        heapq.heapify(self._milestones)
        self._admit()
        self._plan()

    def _advance(self) -> None:
        now_s = self._kernel.now_s
        elapsed_s, self._advanced_at_s = now_s - self._advanced_at_s, now_s
        if self._prefilling is not None:
            self.prefilling_s += elapsed_s
        steps = elapsed_s / self._step_s
        self._gap_tokens += steps * self._num_begun
        self._steps += steps

    def _admit(self) -> None:
        while self._waiting and self._num_decoding < self._profile.max_batch:
            sequence = self._waiting.popleft()
            if not self._num_decoding:
                self._steps = float(math.ceil(self._steps))  # the step of an idle engine begins at once
            self._num_decoding += 1
            self._number += 1
            first = sequence.first_step = math.ceil(self._steps - _STEP_FRACTION) + 1.0
            heapq.heappush(self._milestones, (first, self._number, sequence.num_tokens <= 1, sequence))

    def _plan(self) -> None:
        if self._next is not None:
            self._next.cancel()
            self._next = None
        step_s = max(self._chunk_s, self.decode_step_s)
        if step_s != self._step_s:
            self._note_gaps()
            self._step_s = step_s
        if self._milestones:
            steps = self._milestones[0][0] - self._steps
            due_s = self._kernel.now_s + max(0.0, steps) * step_s
            self._next = self._kernel.at(due_s, self._due)

    def _due(self) -> None:
        self._next = None
        self._advance()
        # The clock was set for this one; of its own place a float may fall a hair short.
        steps, number, is_last, sequence = heapq.heappop(self._milestones)
        self._steps = max(self._steps, steps)
        if is_last:
            sequence.is_over = True
            self._num_decoding -= 1
            self._num_begun -= sequence.num_tokens > 1
            self._admit()
        else:
            self._num_begun += 1
            heapq.heappush(self._milestones, (steps + sequence.num_tokens - 1, number, True, sequence))
        self._plan()
        if not is_last or sequence.num_tokens <= 1:
            sequence.on_first()
        if is_last:
            sequence.on_done()


def _has_begun(milestone: tuple[float, int, bool, Sequence]) -> bool:
    _, _, is_last, sequence = milestone
    return is_last and sequence.num_tokens > 1
