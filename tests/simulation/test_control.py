"""The shipped control core in a simulated deployment where everything fails that can. A failure prints seed and story.

`python -m prfaas.testing.control_world --seeds 100` runs more of the same. What holds after every event is written at
the top of `prfaas.testing.control_world.books`.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys

import pytest

from prfaas.core.control.conversion import Phase
from prfaas.core.control.events import AnswerBegan
from prfaas.core.control.fallback import FallbackReason
from prfaas.core.control.request import TRANSITIONS, RequestState
from prfaas.testing.control_world.menu import Coverage
from prfaas.testing.control_world.world import Setting, World

SEEDS = range(12)
SETTING = Setting(num_lives=2_000)
#: The gateway counts these; they are no reason to decode elsewhere.
NO_FALLBACK = {FallbackReason.NOT_LOADED}


@functools.cache
def lived(seed: int) -> World:
    """A world that has lived and become quiet. Raises WorldFailed."""
    print(f"seed {seed}")
    world = World(seed, SETTING)
    world.run()
    return world


@functools.cache
def met_by_all() -> Coverage:
    """Goes on with more seeds while a rare fault has not met a phase that it can meet."""
    met = Coverage()
    for seed in range(3 * len(SEEDS)):
        if seed not in SEEDS and not met.unmet_faults():
            break
        met.add(lived(seed).coverage)
    return met


@pytest.mark.parametrize("seed", SEEDS)
def test_every_request_ends_once_and_leaves_nothing(seed: int) -> None:
    """Two thousand lives: every law holds after every event, and in the end the deployment is as empty as before."""
    ended = sum(count for name, count in lived(seed).coverage.outcomes.items() if name.startswith("ended"))
    died_with_gateway = sum(
        count for (fault, state), count in lived(seed).coverage.faults.items()
        if fault == "gateway_dies" and state != "ended"
    )  # fmt: skip
    assert ended + died_with_gateway == SETTING.num_lives


def test_without_trouble_every_request_is_answered() -> None:
    """No fault, no upset: nobody is refused, nothing falls back, and most prompts are prefilled elsewhere."""
    world = World(
        0, Setting(num_lives=500, trouble=0.0, upsets_per_s=1e-9, gateway_deaths_per_s=1e-9, arrivals_per_s=1.0)
    )
    world.run()
    assert set(world.coverage.outcomes) == {"ended ok"}
    assert not world.coverage.fallbacks
    num_landed = world.coverage.steps[RequestState.LOADING, AnswerBegan, RequestState.ANSWERING]
    assert num_landed > 250


def test_every_fault_meets_every_phase() -> None:
    """Over all seeds, as the table says that is printed."""
    print(met_by_all().table())
    assert not met_by_all().unmet_faults()


def test_every_transition_happens() -> None:
    """State, event and next state: the table of transitions lists all that happens, and nothing that does not."""
    listed = {(state, event, after) for state, by in TRANSITIONS.items() for event, to in by.items() for after in to}
    happened = set(met_by_all().steps)
    assert not [f"{state} {event.__name__} {after}" for state, event, after in listed - happened]
    assert not [f"{state} {event.__name__} {after}" for state, event, after in happened - listed]


def test_every_reason_to_fall_back_happens() -> None:
    """And each ends in an answer or a refusal; else a world would not have become quiet."""
    seen = {name.removeprefix("fallback ") for name in met_by_all().fallbacks}
    assert seen == {str(reason) for reason in FallbackReason if reason not in NO_FALLBACK}


def test_every_end_of_a_conversion_happens() -> None:
    """Instances get other duties under load, are refused them, or leave meanwhile; what takes too long is in the unit
    tests."""
    seen = met_by_all().conversions
    assert all(seen[phase] for phase in (Phase.DONE, Phase.REFUSED, Phase.OVERTAKEN)), seen


def test_instances_that_fail_their_work_are_taken_out() -> None:
    """And every law holds meanwhile."""
    assert met_by_all().num_ejections > 10


def test_a_seed_is_a_trace() -> None:
    """The same seed gives the same stories, word by word, and another seed gives others."""
    setting = Setting(num_lives=300)
    worlds = [World(seed, setting) for seed in (5, 5, 6)]
    for world in worlds:
        world.run()
    first, again, other = (world.storybook for world in worlds)
    assert first.digest == again.digest != other.digest
    assert first.everything() == again.everything()


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_a_seed_is_the_same_trace_in_every_process(hash_seed: str) -> None:
    """No order depends on how a process hashes strings."""
    world = World(7, Setting(num_lives=100))
    world.run()
    command = [sys.executable, "-m", "prfaas.testing.control_world", "--first", "7", "--seeds", "1", "--lives", "100"]
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    told = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=120).stdout
    assert f"trace {world.storybook.digest}" in told.splitlines()[0]
