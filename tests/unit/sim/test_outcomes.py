"""What a run keeps of requests that have ended."""

from __future__ import annotations

import io
import json
import random
import sys

from prfaas.sim.outcomes import FAILED, OK, UNAVAILABLE, Outcomes
from prfaas.sim.simulation import Life
from prfaas.simulator.command import _Lines
from prfaas.testing.troubled import troubled


def test_what_is_kept_is_what_became_of_each_request() -> None:
    """Of deployments whose engines die, in whatever order requests end."""
    for seed in range(30):
        run = troubled(seed)
        kept, lives = run.outcomes, sorted(run.ended, key=lambda life: life.number)
        assert list(kept.ended()) == [life.number - 1 for life in lives]
        for life in lives:
            place, arrival = life.number - 1, life.arrival
            assert kept.ends[place] == {"ok": OK, "unavailable": UNAVAILABLE}.get(life.outcome, FAILED)
            assert bool(kept.is_remote[place]) == (life.route == "remote")
            assert bool(kept.fell_back[place]) == bool(life.fallback)
            assert kept.e2e_s(place) == (life.ended_s or 0.0) - arrival.at_s
            tokens = kept.input_tokens[place], kept.computed_tokens[place], kept.output_tokens[place]
            assert tokens == (arrival.num_tokens, life.num_computed_tokens, arrival.num_output_tokens)
            if life.began_s is None or life.ended_s is None or arrival.num_output_tokens < 2:
                assert kept.tpot_s(place) is None
            else:
                assert kept.ttft_s(place) == life.began_s - arrival.at_s
                assert kept.tpot_s(place) == (life.ended_s - life.began_s) / (arrival.num_output_tokens - 1)
        num = sum(1 for life in lives if life.outcome == "ok" and 1.0 < (life.ended_s or 0.0) <= 5.0)
        assert kept.throughput_rps(1.0, 5.0) == num / 4.0


def test_of_some_that_have_not_ended_nothing_is_said() -> None:
    """The third and the first of three have."""
    lives = sorted(troubled(0).ended, key=lambda life: life.number)
    kept = Outcomes()
    for number in (3, 1):
        kept.take(lives[number - 1])
    assert list(kept.ended()) == [0, 2]
    assert kept.num_ended == 2


def test_a_request_takes_forty_bytes() -> None:
    """So a run of a million has 40 MB of them."""
    kept = Outcomes()
    life: Life = troubled(0).ended[0]
    life.number = 100_000
    kept.take(life)
    assert sum(sys.getsizeof(values) for values in vars(kept).values()) < 45 * 100_000


def test_lines_of_requests_are_in_the_order_in_which_they_came() -> None:
    """In whatever order they end, and none waits for longer than it must."""
    lives, file = troubled(3).ended, io.BytesIO()
    random.Random(1).shuffle(lives)
    lines = _Lines(file, "prfaas", 0, {})
    seen: set[int] = set()
    for life in lives[:-1]:
        lines.take(life)
        seen.add(life.number)
        first_missing = min(set(range(1, len(lives) + 1)) - seen)
        assert len(file.getvalue().splitlines()) == first_missing - 1
    lines.finish()
    numbers = [json.loads(line)["request"] for line in file.getvalue().splitlines()]
    assert numbers == sorted(seen)
