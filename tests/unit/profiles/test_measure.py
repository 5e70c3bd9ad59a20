"""The order of measurements, on an endpoint whose clock is made up."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from prfaas.profiles.measure.endpoint import EndpointError, Rejected
from prfaas.profiles.measure.measurement import Measured, Measurement
from prfaas.profiles.measure.options import Schedule
from prfaas.profiles.measure.samples import Sample, TooFewTokens
from prfaas.profiles.measure.stream import Usage

SCHEDULE = Schedule((100, 400, 1600), 3, (1, 4), 8, 128, 64)
STEP_S = 0.01


@dataclass
class MadeUp:
    """A millisecond of prefill per token, `extra_s` more the first time that a length is seen. Sequences of a batch are
    prefilled one after another. `refuses` names what is answered with 400; `failures` happen first."""

    extra_s: float = 5.0
    refuses: frozenset[str] = frozenset()
    failures: list[EndpointError] = field(default_factory=list)
    usage: Usage | None = None
    tokens_per_word: int = 3
    queues: bool = False
    seen: list[tuple[int, int]] = field(default_factory=list)
    prompts: list[Sequence[int] | str] = field(default_factory=list)
    busy_until_s: float = 0.0

    async def complete(self, prompt: Sequence[int] | str, max_tokens: int, *, ignore_eos: bool) -> Sample:
        """Every request is sent at time 0."""
        if ("text" if isinstance(prompt, str) else "ids") in self.refuses or (ignore_eos and "eos" in self.refuses):
            raise Rejected("the server refused the request (400): no")
        if self.failures:
            raise self.failures.pop()
        # As where every space is a token: one less than there are words.
        num = len(prompt.split()) * self.tokens_per_word - 1 if isinstance(prompt, str) else len(prompt)
        first_s = num / 1000 + (self.extra_s if (num, max_tokens) not in self.seen else 0)
        self.seen.append((num, max_tokens))
        self.prompts.append(prompt)
        if max_tokens > 1:
            first_s = self.busy_until_s = self.busy_until_s + num / 1000
        chunk_s = tuple(first_s + number * STEP_S for number in range(max_tokens))
        if self.queues:
            self.busy_until_s = chunk_s[-1]
        return Sample(0.0, chunk_s, self.usage or Usage(num, max_tokens, 0))


def _measurement(endpoint: MadeUp, seed: int, steps: list[str]) -> Measurement:
    return Measurement(endpoint, random.Random(seed), random.Random(f"prompts {seed}"), steps.append, 0.0)


def measure(endpoint: MadeUp, seed: int = 0) -> tuple[Measured, list[str]]:
    """What was measured, and the steps in their order."""
    steps: list[str] = []
    return asyncio.run(_measurement(endpoint, seed, steps).run(SCHEDULE)), steps


def test_medians_are_those_of_the_counted_samples() -> None:
    """The first of every length is slow, and is not counted."""
    measured, steps = measure(MadeUp())
    assert [(row.at, row.seconds) for row in measured.prefill] == [(n, (n / 1000,) * 3) for n in (100, 400, 1600)]
    assert [row.at for row in measured.decode] == [1, 4]
    assert all(row.median_s == pytest.approx(STEP_S) for row in measured.decode)
    assert len(steps) == SCHEDULE.num_steps
    assert (measured.num_retries, measured.sends_text) == (0, False)


def test_order_and_prompts_come_from_the_seed() -> None:
    """The same seed asks the same, another seed something else; every round has every length once."""
    first, again, other = MadeUp(), MadeUp(), MadeUp()
    order = measure(first)[1]
    assert measure(again)[1] == order
    assert again.prompts == first.prompts
    assert measure(other, seed=1)[1] != order
    rounds = [order[number : number + 3] for number in range(0, 12, 3)]
    assert {tuple(sorted(names)) for names in rounds} == {tuple(sorted(rounds[0]))}


def test_no_prompt_is_sent_twice_nor_begins_like_another() -> None:
    """Not within a batch either, nor when a sample is repeated."""
    endpoint = MadeUp(failures=[EndpointError("x", transient=True)])
    measure(endpoint)
    assert Counter(tuple(prompt[:16]) for prompt in endpoint.prompts).most_common(1)[0][1] == 1


def test_sequences_that_hardly_overlap_get_more_output() -> None:
    """64 tokens of prefill take as long as 6.4 steps, four times; 8 tokens of output end before the last one starts."""
    endpoint = MadeUp()
    measured, _ = measure(endpoint)
    assert {output for _, output in endpoint.seen} == {1, 8, 16, 32}
    assert measured.decode[-1].median_s == pytest.approx(STEP_S)


def test_a_server_that_queues_a_batch_is_refused() -> None:
    """However much output it is given, up to the limit."""
    endpoint = MadeUp(queues=True)
    with pytest.raises(TooFewTokens, match="if the server queues that many"):
        measure(endpoint)
    assert max(output for _, output in endpoint.seen) == SCHEDULE.max_decode_tokens


def test_passing_failures_are_repeated_and_counted() -> None:
    """Twice per sample; the third time in a row is the end. What does not pass is not repeated."""
    busy = EndpointError("busy", transient=True)
    assert measure(MadeUp(failures=[busy, busy]))[0].num_retries == 2
    with pytest.raises(EndpointError, match="busy"):
        measure(MadeUp(failures=[busy] * 3))
    endpoint = MadeUp(failures=[busy, EndpointError("gone")])
    with pytest.raises(EndpointError, match="gone"):
        measure(endpoint)
    assert len(endpoint.failures) == 1


@pytest.mark.parametrize(
    ("refuses", "sends_text"), [({"eos"}, False), ({"ids"}, True), ({"ids", "eos"}, True)]
)  # fmt: skip
def test_the_best_form_that_is_taken_is_found(refuses: set[str], sends_text: bool) -> None:
    """Token ids before text; and a server that refuses token ids still gets ignore_eos."""
    assert measure(MadeUp(refuses=frozenset(refuses)))[0].sends_text is sends_text
    with pytest.raises(Rejected):
        measure(MadeUp(refuses=frozenset({"ids", "text"})))


def test_lengths_of_text_are_the_servers() -> None:
    """Less than a word and a reserve below those asked for, never above, with the times measured at them."""
    measured, _ = measure(MadeUp(refuses=frozenset({"ids"}), tokens_per_word=3))
    assert all(row.median_s == row.at / 1000 for row in measured.prefill)
    assert [row.at for row in measured.prefill] == [92, 392, 1592]


@pytest.mark.parametrize(
    ("refuses", "usage", "message"),
    [
        ({"ids"}, Usage(), "does not say how many tokens"),
        (set(), Usage(50, 1, 0), "counts 50 tokens in a prompt of"),
        (set(), Usage(None, None, 96), "found 96 tokens of a random prompt in its prefix cache"),
    ],
)
def test_what_would_spoil_the_table_is_an_error(refuses: set[str], usage: Usage, message: str) -> None:
    """Lengths that are not known, prompts that are not those sent, prefill that did not happen."""
    with pytest.raises(EndpointError, match=message):
        measure(MadeUp(refuses=frozenset(refuses), usage=usage))


def test_a_token_or_two_of_the_servers_own_do_not_matter() -> None:
    """A BOS token is counted, and cached, on some."""
    endpoint = MadeUp(usage=Usage(None, None, 2))
    assert [row.at for row in measure(endpoint)[0].prefill] == [100, 400, 1600]
