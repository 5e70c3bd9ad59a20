"""Broken control cores. Every mutant breaks one rule of the lifecycle, and the world must catch it within its seeds.

A law that catches nothing proves nothing: each law of the world has a mutant here that it, and no earlier one, catches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from prfaas.core.control import actions as a
from prfaas.core.control import events as e
from prfaas.core.control import scheduler
from prfaas.core.control.conversion import Conversion, Converter, Phase
from prfaas.core.control.dispatch import Dispatch
from prfaas.core.control.lifecycle import Lifecycle, TransferTerms
from prfaas.core.control.request import LandingPhase, Request, RequestState
from prfaas.core.control.router import RoutePolicy
from prfaas.core.control.scheduler import Scheduler
from prfaas.core.control.timers import TimerKind
from prfaas.core.topology import Duty, Topology
from prfaas.testing.control_world.storybook import WorldFailed
from prfaas.testing.control_world.world import MakeScheduler, Setting, World
from tests.simulation.test_control import SEEDS, SETTING


class KeepsItsLanding(Lifecycle):
    """Falls back and forgets the landing."""

    def _drop(self, request: Request) -> None:
        if request.landing is not LandingPhase.HELD:
            super()._drop(request)


class DropsInSilence(Lifecycle):
    """Counts a landing as dropped and tells no node."""

    def _drop(self, request: Request) -> None:
        request.move_landing(LandingPhase.DROPPING)
        self._landing_gone(request)


class DropsTooEarly(Lifecycle):
    """Drops a landing before its node has answered: the drop may overtake the reservation."""

    def _give_up_transfer(self, request: Request) -> None:
        if request.landing is LandingPhase.ASKED:
            self._drop(request)
        super()._give_up_transfer(request)


class SettlesTwice(Lifecycle):
    """Asks for the final record again when the answer ends."""

    def _answer_ended(self, request: Request, event: e.AnswerEnded, now_s: float) -> None:
        if request.landing in (LandingPhase.SETTLING, LandingPhase.GONE):
            self.out.append(a.SettleLanding(request.request_id, request.landing_at))
        super()._answer_ended(request, event, now_s)


class DecodesBeforeLanded(Lifecycle):
    """Takes staged for landed."""

    def _prefill_ended(self, request: Request, event: e.PrefillEnded, now_s: float) -> None:
        super()._prefill_ended(request, event, now_s)
        if request.state is RequestState.PREFILLING:
            request.deadline_s = None
            self._decode(request, request.landing_at, is_landed=True)


class TakesFailedForLanded(Lifecycle):
    """Decodes with whatever has become of the landing."""

    def _landing_ended(self, request: Request, event: e.LandingEnded, now_s: float) -> None:
        super()._landing_ended(request, replace(event, failure=None, num_bytes=max(1, event.num_bytes)), now_s)


class FollowsTheName(Lifecycle):
    """Decodes where the name leads, although the landing is where it led before."""

    def _has_moved(self, request: Request) -> bool:
        return False


class AnswersTwice(Lifecycle):
    """Tries again after the client has seen the first byte."""

    def _answer_ended(self, request: Request, event: e.AnswerEnded, now_s: float) -> None:
        if event.outcome == "error" and request.answered_by is not None:
            self._decode(request, request.answered_by.name)
            request.state = RequestState.ANSWERING
        else:
            super()._answer_ended(request, event, now_s)


class TriesForEver(Lifecycle):
    """Gives every failed leg another chance."""

    def _decode_failed(self, request: Request, event: e.DecodeFailed, now_s: float) -> None:
        request.may_retry = True
        super()._decode_failed(request, event, now_s)


class NeverTriesAgain(Lifecycle):
    """Refuses when the first leg fails."""

    def _decode_failed(self, request: Request, event: e.DecodeFailed, now_s: float) -> None:
        request.may_retry = False
        super()._decode_failed(request, event, now_s)


class InsistsOnOneEngine(Lifecycle):
    """Sends the second leg to the engine that has just failed."""

    def _again(self, request: Request, avoid: str, failure: Any, *, is_retry: bool) -> None:
        super()._again(request, "", failure, is_retry=is_retry)


class NeverRenews(Lifecycle):
    """Lets leases run out under transfers that are well."""

    def _renew_later(self, request: Request, now_s: float) -> None:
        pass


class RenewsForEver(Lifecycle):
    """Renews the lease of a landing that it has dropped."""

    def _give_up_transfer(self, request: Request) -> None:
        renew_s = request.renew_s
        super()._give_up_transfer(request)
        request.renew_s = renew_s


class NeverStops(Lifecycle):
    """Lets the prefill of a given-up transfer go on."""

    def _give_up_transfer(self, request: Request) -> None:
        super()._give_up_transfer(request)
        self.out = [action for action in self.out if not isinstance(action, a.StopPrefill)]


class KeepsWhoWasChosen(Lifecycle):
    """Counts a request at the prefill instance that it was to go to, also when its reservation has failed."""

    def _give_up_transfer(self, request: Request) -> None:
        chosen = request.prefill if request.state is RequestState.RESERVING else ""
        super()._give_up_transfer(request)
        if chosen:
            self.fleet.instances[chosen].num_inflight += 1


class WaitsForEver(Lifecycle):
    """Has no deadline."""

    def due(self, request: Request, kind: TimerKind, due_s: float, now_s: float) -> e.DeadlinePassed | None:
        return super().due(request, kind, due_s, now_s) if kind is TimerKind.RENEW else None


class PrefillsAnywhere(Lifecycle):
    """Sends prompts to instances that have left or changed their duty meanwhile."""

    def _prefill(self, request: Request, now_s: float) -> None:
        assert request.route is not None
        prefill = self.fleet.instances.get(request.route.prefill)
        if prefill is None:
            super()._prefill(request, now_s)
            return
        member, was_draining = prefill.member, prefill.is_draining
        prefill.member, prefill.is_draining = replace(member, duty=Duty.PREFILL), False
        super()._prefill(request, now_s)
        prefill.member, prefill.is_draining = member, was_draining


class IgnoresLanes(Lifecycle):
    """Routes as if every node had lanes to every other."""

    def _route(self, request: Request, num_tokens: int | None, now_s: float) -> None:
        instances = list(self.fleet.instances.values())
        told = [instance.cut_off_from for instance in instances]
        for instance in instances:
            instance.cut_off_from = frozenset()
        super()._route(request, num_tokens, now_s)
        for instance, cut_off_from in zip(instances, told, strict=True):
            instance.cut_off_from = cut_off_from


class MiscountsPrefills(Lifecycle):
    """Leaves a prefill that failed in the load of its instance."""

    def _prefill_over(self, request: Request, failure: Any, *, is_done: bool = False) -> None:
        if failure is None:
            super()._prefill_over(request, failure, is_done=is_done)
        request.prefill = ""


class ClosesWhileCounting(Lifecycle):
    """Forgets a request whose late count is still under way."""

    def _end(self, request: Request) -> None:
        super()._end(request)
        request.is_counting = False


class LosesTheUncountable(Lifecycle):
    """Waits for a count that will not come."""

    def _uncountable(self, request: Request, event: e.PromptUncountable, now_s: float) -> None:
        if request.state is not RequestState.COUNTING:
            super()._uncountable(request, event, now_s)


#: The law that catches each; `scheduler` is the transition table, or `check`. `DropsInSilence` breaks two at once; which
#: is looked at first depends on what it drops.
MUTANTS = {
    KeepsItsLanding: "scheduler",
    DropsInSilence: "counts freed_once",
    DropsTooEarly: "freed_once",
    SettlesTwice: "freed_once",
    DecodesBeforeLanded: "scheduler",
    TakesFailedForLanded: "landed_first",
    FollowsTheName: "landed_first",
    AnswersTwice: "scheduler",
    TriesForEver: "one_answer",
    NeverTriesAgain: "owed",
    InsistsOnOneEngine: "another_engine",
    NeverRenews: "lease",
    RenewsForEver: "freed_once",
    NeverStops: "prefill_stopped",
    KeepsWhoWasChosen: "counts",
    WaitsForEver: "in_time",
    PrefillsAnywhere: "members_only",
    IgnoresLanes: "members_only",
    MiscountsPrefills: "counts",
    ClosesWhileCounting: "one_end",
    LosesTheUncountable: "scheduler",
}


def failure_of(world: World) -> WorldFailed | None:
    try:
        world.run()
    except WorldFailed as failure:
        return failure
    return None


def is_caught(mutant: type, laws: str, make_world: Callable[[int, Setting], World]) -> None:
    """By one of the laws that it breaks, within the seeds that every test run has."""
    for seed in SEEDS:
        failure = failure_of(make_world(seed, SETTING))
        if failure is not None:
            print(f"{mutant.__name__} is caught by the law {failure.law!r} with seed {seed}")
            assert failure.law in laws.split(), str(failure)
            return
    pytest.fail(f"{mutant.__name__} lives through all seeds")


class GivesNoTurn(Dispatch):
    """Lets everybody wait."""

    def turns(self, now_s: float) -> Iterator[e.TurnCame]:
        return iter(())


class ForgetsItsWork(Dispatch):
    """Reckons with prompts that have ended long ago."""

    def worked(self, request: Request, now_s: float, *, is_done: bool) -> None:
        pass


class KeepsItsPlace(Dispatch):
    """Leaves in the queue who has left."""

    def leaves_queue(self, request: Request, *, is_served: bool = False) -> None:
        if request.state is not RequestState.WAITING:
            super().leaves_queue(request, is_served=is_served)


class CountsBytesForEver(Dispatch):
    """Takes what has landed for what is still to cross."""

    def crossed(self, request: Request) -> None:
        request.crossing = None


class ReleasesNobody(Dispatch):
    """Forgets who waits when another policy comes."""

    def release(self) -> list[str]:
        super().release()
        return []


class BindsTheUnreachable(Dispatch):
    """Takes no notice of lanes that are down."""

    def _turns_of(self, cluster: str, now_s: float) -> Iterator[e.TurnCame]:
        cut = {instance: instance.cut_off_from for instance in self._fleet.prefillers}
        for turn in super()._turns_of(cluster, now_s):
            yield turn
            for instance in cut:
                instance.cut_off_from = frozenset()
        for instance, targets in cut.items():
            instance.cut_off_from = targets


#: By the law that catches it.
DISPATCH_MUTANTS: dict[type[Dispatch], str] = {
    GivesNoTurn: "in_time",
    ForgetsItsWork: "scheduler",
    KeepsItsPlace: "scheduler",
    CountsBytesForEver: "scheduler",
    ReleasesNobody: "scheduler in_time",
    BindsTheUnreachable: "members_only",
}


@pytest.mark.parametrize("mutant", DISPATCH_MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_mutant_of_the_fast_timescale_is_caught(mutant: type[Dispatch], monkeypatch: pytest.MonkeyPatch) -> None:
    """By the law that it breaks, within the seeds that every test run has."""
    monkeypatch.setattr(scheduler, "Dispatch", mutant)
    is_caught(mutant, DISPATCH_MUTANTS[mutant], World)


class SwitchesAtOnce(Converter):
    """Does not wait for what an instance still has."""

    def step(self, now_s: float) -> Conversion | None:
        if self.current is not None and self.current.phase is Phase.DRAINING:
            return self._enter(Phase.SWITCHING, now_s)
        return super().step(now_s)


class FillsUpWhatDrains(Converter):
    """Tells nobody that an instance is to take no new work."""

    def begin(self, conversion: Conversion, now_s: float) -> None:
        super().begin(conversion, now_s)
        self._fleet.instances[conversion.instance].converts_to = None


class ConvertsForEver(Converter):
    """Never gives an instance back that was refused its duty."""

    def refused(self, instance: str, detail: str, now_s: float) -> Conversion | None:
        return None


#: By the law that catches it.
CONVERTER_MUTANTS: dict[type[Converter], str] = {
    SwitchesAtOnce: "drained",
    FillsUpWhatDrains: "scheduler",
    ConvertsForEver: "quiet",
}


@pytest.mark.parametrize("mutant", CONVERTER_MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_mutant_of_conversions_is_caught(mutant: type[Converter], monkeypatch: pytest.MonkeyPatch) -> None:
    """By the law that it breaks, within the seeds that every test run has."""
    monkeypatch.setattr(scheduler, "Converter", mutant)
    is_caught(mutant, CONVERTER_MUTANTS[mutant], World)


def scheduler_with(lifecycle: type[Lifecycle]) -> MakeScheduler:
    """Makes schedulers that are as shipped but for their lifecycle."""

    class Mutated(Scheduler):
        def __init__(self, topology: Topology, policy: RoutePolicy, terms: TransferTerms) -> None:
            super().__init__(topology, policy, terms)
            self._life = lifecycle(self.fleet, policy, terms)
            self._follow(policy, 0.0)

    return Mutated


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_mutant_is_caught(mutant: type[Lifecycle]) -> None:
    """By the law that it breaks, within the seeds that every test run has."""
    is_caught(mutant, MUTANTS[mutant], partial(World, make_scheduler=scheduler_with(mutant)))


def test_the_unchanged_lifecycle_is_no_mutant() -> None:
    """What catches the others is their change, not the way in which they are put in."""
    assert failure_of(World(0, Setting(num_lives=300), scheduler_with(Lifecycle))) is None


def test_a_failure_tells_its_seed_and_its_story() -> None:
    """And tells the same again when that seed is run again."""
    make_world = partial(World, make_scheduler=scheduler_with(SettlesTwice))
    seed = next(seed for seed in SEEDS if failure_of(make_world(seed, SETTING)) is not None)
    first, again = (failure_of(make_world(seed, SETTING)) for _ in range(2))
    assert first is not None
    assert str(first) == str(again)
    assert str(first).startswith(f"seed {seed}: freed_once of g")
    for word in ("RequestArrived(", "Reserve(", "Decode(", "SettleLanding(", "newest events"):
        assert word in str(first)
