"""A simulated engine."""

from __future__ import annotations

import pytest

from prfaas.core.model.curve import polynomial
from prfaas.core.model.decode import DecodePoint, StepTimes
from prfaas.sim.engine import Engine, EngineProfile, Prefill, Sequence
from prfaas.sim.kernel import Kernel


class Bench:
    """An engine that prefills a token in 10 ms and decodes two sequences at 100 ms a step."""

    def __init__(self, chunk_tokens: int = 8_192, steps: StepTimes | None = None) -> None:
        self.kernel = Kernel()
        profile = EngineProfile(polynomial(0.0, 0.01), 2, 0.1, chunk_tokens, steps)
        self.engine = Engine(self.kernel, profile)
        self.told: dict[str, float] = {}

    def note(self, what: str) -> None:
        self.told[what] = round(self.kernel.now_s, 9)

    def prompt(self, name: str, num_tokens: int) -> Prefill:
        return Prefill(
            lambda: num_tokens, lambda ends_s: self.note(f"{name} starts"), lambda: self.note(f"{name} done")
        )

    def sequence(self, name: str, num_tokens: int) -> Sequence:
        return Sequence(num_tokens, lambda: self.note(f"{name} first"), lambda: self.note(f"{name} done"))


def test_prompts_are_prefilled_in_turn() -> None:
    """Each when the one before is done."""
    bench = Bench()
    bench.engine.prefill(bench.prompt("a", 100))
    bench.engine.prefill(bench.prompt("b", 50))
    assert bench.engine.num_prompts == 2
    bench.kernel.run(10.0)
    assert bench.told == {"a starts": 0.0, "a done": 1.0, "b starts": 1.0, "b done": 1.5}
    assert bench.engine.prefilling_s == pytest.approx(1.5)


def test_a_prompt_that_nobody_waits_for_makes_room() -> None:
    """Whether it is being prefilled or waits."""
    bench = Bench()
    first, second, third = (bench.prompt(name, 100) for name in "abc")
    for prompt in (first, second, third):
        bench.engine.prefill(prompt)
    bench.engine.drop_prefill(second)
    bench.kernel.at(0.5, bench.engine.drop_prefill, first)
    bench.kernel.at(0.6, bench.engine.drop_prefill, first)
    bench.kernel.run(10.0)
    assert bench.told == {"a starts": 0.0, "c starts": 0.5, "c done": 1.5}
    assert bench.engine.num_prompts == 0
    assert bench.engine.prefilling_s == pytest.approx(1.5)


def test_a_sequence_has_a_token_each_step() -> None:
    """The first after one step; a step takes as long for two as for one. Who comes during a step joins at its end."""
    bench = Bench()
    bench.engine.decode(bench.sequence("a", 4))
    bench.kernel.at(0.05, bench.engine.decode, bench.sequence("b", 2))
    bench.kernel.run(10.0)
    assert bench.told == {"a first": 0.1, "b first": 0.2, "b done": 0.3, "a done": 0.4}


def test_what_does_not_fit_into_the_batch_waits_in_order() -> None:
    """Until a place is free."""
    bench = Bench()
    for name, num_tokens in (("a", 3), ("b", 2), ("c", 1), ("d", 1)):
        bench.engine.decode(bench.sequence(name, num_tokens))
    assert (bench.engine.num_sequences, bench.engine.num_decoding) == (4, 2)
    bench.kernel.run(10.0)
    assert bench.told["c first"] == bench.told["c done"] == 0.3
    assert bench.told["d done"] == 0.4
    assert bench.engine.num_sequences == 0


def test_each_chunk_of_a_prompt_is_a_step_of_the_batch() -> None:
    """Half a step is done when the prompt comes, in two chunks of 0.5 s: the other half of it takes 0.25 s, and the last
    token another half second."""
    bench = Bench(chunk_tokens=50)
    bench.engine.decode(bench.sequence("a", 3))
    bench.kernel.at(0.15, bench.engine.prefill, bench.prompt("p", 100))
    bench.kernel.run(10.0)
    assert bench.told == {"a first": 0.1, "p starts": 0.15, "a done": 0.9, "p done": 1.15}


def test_the_batch_is_as_fast_as_before_when_the_prompt_is_done() -> None:
    """A prompt of one chunk: half a step during its second, the rest at 0.1 s a step."""
    bench = Bench()
    bench.engine.decode(bench.sequence("a", 3))
    bench.kernel.at(0.15, bench.engine.prefill, bench.prompt("p", 100))
    bench.kernel.run(10.0)
    assert bench.told == {"a first": 0.1, "p starts": 0.15, "p done": 1.15, "a done": 1.2}


def test_a_dropped_sequence_gives_its_place_to_the_next() -> None:
    """At once."""
    bench = Bench()
    gone, waiting = bench.sequence("gone", 100), bench.sequence("waiting", 1)
    for sequence in (gone, bench.sequence("b", 50), waiting, bench.sequence("d", 1)):
        bench.engine.decode(sequence)
    bench.engine.drop_sequence(waiting)
    bench.kernel.at(1.0, bench.engine.drop_sequence, gone)
    bench.kernel.run(10.0)
    assert bench.told == {"gone first": 0.1, "b first": 0.1, "d first": 1.1, "d done": 1.1, "b done": 5.0}


def test_a_step_takes_what_its_batch_takes() -> None:
    """Alone 40 ms, two 100 ms: the second comes when the first has five of ten tokens, and both have the next five
    together; the second has the rest alone."""
    bench = Bench(steps=StepTimes([DecodePoint(1, 0.04), DecodePoint(2, 0.1)]))
    bench.engine.decode(bench.sequence("a", 10))
    bench.kernel.at(0.2, lambda: bench.engine.decode(bench.sequence("b", 10)))
    bench.kernel.run(10.0)
    assert bench.told == {"a first": 0.04, "b first": 0.3, "a done": 0.7, "b done": 0.9}


def test_a_chunk_is_a_step_however_few_decode() -> None:
    """A prompt of one second in one chunk: whoever decodes has one token of it, and the next at its own pace."""
    bench = Bench(steps=StepTimes([DecodePoint(1, 0.04), DecodePoint(2, 0.1)]))
    bench.engine.prefill(bench.prompt("p", 100))
    bench.engine.decode(bench.sequence("a", 2))
    bench.kernel.run(10.0)
    assert bench.told["a first"] == 1.0
    assert bench.told["a done"] == 1.04


def test_gaps_are_those_between_the_tokens_of_an_answer() -> None:
    """Two answers of three tokens have two each, and one of one token none; the wait for a first token is none."""
    bench = Bench()
    for name, num_tokens in (("a", 3), ("b", 3), ("c", 1)):
        bench.engine.decode(bench.sequence(name, num_tokens))
    bench.kernel.run(10.0)
    assert sum(bench.engine.gaps._num.values()) == pytest.approx(4.0)
    assert bench.engine.gaps.percentile_s(99) == pytest.approx(0.1)
    lonely = Bench()
    lonely.engine.decode(lonely.sequence("a", 1))
    lonely.kernel.run(10.0)
    assert lonely.engine.gaps.percentile_s(99) is None


def test_an_engine_that_was_stopped_tells_nothing_more() -> None:
    """Neither of prompts nor of answers."""
    bench = Bench()
    bench.engine.decode(bench.sequence("a", 3))
    bench.engine.prefill(bench.prompt("p", 100))
    bench.kernel.run(0.01)
    bench.engine.stop()
    before = dict(bench.told)
    bench.kernel.run(100.0)
    assert bench.told == before
