"""Whole runs: a deployment under a load, and the requests that came out of it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from prfaas.sim.arrivals import Arrival, DrawLength
from prfaas.sim.conditions import Condition, happens
from prfaas.sim.deployment import SimulatedDeployment
from prfaas.sim.observed import Observer
from prfaas.sim.outcomes import Outcomes
from prfaas.sim.simulation import Life, Simulation

#: Progress is told after so many events: some thousand requests, a fraction of a second.
EVENTS_PER_WORD: Final = 20_000
#: A run of more seconds is sampled less often.
MAX_SAMPLES: Final = 20_000


class Sample(NamedTuple):
    """Of one moment: requests inside, and bytes that have crossed all links so far."""

    at_s: float
    num_inside: int
    sent_bytes: float


class Run:
    """One simulation, what has become of the requests that have ended in it, and what was seen every `sample_s` while
    more were to come: every second, at first. The requests themselves are in `ended`, in the order of their ends, if it
    `keeps_lives`: a run of a million has no room for them. `on_end` is told of each."""

    def __init__(self, deployment: SimulatedDeployment, *, checks: bool = False) -> None:
        self.outcomes = Outcomes()
        #: Clients wait for their answers before they ask again.
        self.is_closed = False
        self.keeps_lives = True
        self.ended: list[Life] = []
        self.on_end: Callable[[Life], object] | None = None
        self.samples: list[Sample] = []
        self.sample_s = 1.0
        self.observer: Observer | None = None
        self.simulation = Simulation(deployment, self._end, checks=checks)

    def expect(self, conditions: Iterable[tuple[float, Condition]]) -> None:
        """Let these happen at their times."""
        for at_s, condition in conditions:
            self.simulation.kernel.at(at_s, happens, self.simulation, condition)

    def sample(self) -> None:
        """Now, and from now on until the last request has come."""
        simulation = self.simulation
        sent_bytes = math.fsum(link.sent_bytes for link in simulation.links.values())
        self.samples.append(Sample(simulation.kernel.now_s, len(simulation.lives), sent_bytes))
        if self.observer is not None:
            self.observer.sample()
        if simulation.expects_more:
            if len(self.samples) >= MAX_SAMPLES:
                self.samples = self.samples[::2]
                self.sample_s *= 2
            simulation.kernel.after(self.sample_s, self.sample)

    @property
    def num_going_on(self) -> int:
        return len(self.simulation.lives)

    def throughput_rps(self, from_s: float, to_s: float) -> float:
        """Requests answered in that time, per second."""
        return self.outcomes.throughput_rps(from_s, to_s)

    def _end(self, life: Life) -> None:
        self.outcomes.take(life)
        if self.keeps_lives:
            self.ended.append(life)
        if self.on_end is not None:
            self.on_end(life)


class ClosedLoop(Run):
    """`num_clients` send their next request when the last one has ended."""

    def __init__(
        self,
        deployment: SimulatedDeployment,
        rng: random.Random,
        lengths: DrawLength,
        *,
        num_clients: int,
        num_output_tokens: int,
        checks: bool = False,
    ) -> None:
        super().__init__(deployment, checks=checks)
        self.is_closed = True
        self._rng, self._lengths, self._num_output_tokens = rng, lengths, num_output_tokens
        for _ in range(num_clients):
            self._submit()

    def run(self, until_s: float) -> None:
        self.simulation.run(until_s)

    def _submit(self) -> None:
        now_s = self.simulation.kernel.now_s
        self.simulation.submit(Arrival(now_s, self._lengths(self._rng), self._num_output_tokens))

    def _end(self, life: Life) -> None:
        super()._end(life)
        self._submit()


def open_loop(
    deployment: SimulatedDeployment,
    arrivals: Iterable[Arrival],
    *,
    checks: bool = False,
    conditions: Iterable[tuple[float, Condition]] = (),
    on_progress: Callable[[int], object] = lambda num_ended: None,
    observer: Observer | None = None,
) -> Run:
    """All of `arrivals`, which end, to the end of the last one, while `conditions` happen at their times.
    `on_progress` is told now and then how many have ended; `observer` sees all of it."""
    run = Run(deployment, checks=checks)
    run.simulation.follow(iter(arrivals))
    return to_end(run, conditions, on_progress, observer)


def to_end(
    run: Run,
    conditions: Iterable[tuple[float, Condition]] = (),
    on_progress: Callable[[int], object] = lambda num_ended: None,
    observer: Observer | None = None,
) -> Run:
    """Until nothing more happens. See `open_loop`."""
    kernel = run.simulation.kernel
    run.expect(conditions)
    if observer is not None:
        observer.follow(run.simulation)
        run.observer = observer
    run.sample()
    while kernel.steps(EVENTS_PER_WORD):
        on_progress(run.outcomes.num_ended)
    if observer is not None:
        observer.end()
    return run
