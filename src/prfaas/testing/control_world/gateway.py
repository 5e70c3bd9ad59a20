"""A simulated gateway: it does what the core asks, over simulated engines, nodes and links, as the real driver would.

Laws of this file:
- An action ends in exactly the events that `core.control.actions` lists for it.
- Work that runs in the client's own task (count, decode, refuse) stops when the client leaves. What was on its way
  then may still arrive.
- Nothing is fed while something is fed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from prfaas.core.cache.hashing import TokenChain
from prfaas.core.control import actions as a
from prfaas.core.control import events as e
from prfaas.core.control.fallback import Failure, FallbackReason
from prfaas.core.control.request import RequestState
from prfaas.core.control.scheduler import Scheduler
from prfaas.core.topology import Duty
from prfaas.sim.kernel import Kernel
from prfaas.testing.control_world.books import Books
from prfaas.testing.control_world.dice import Dice
from prfaas.testing.control_world.menu import Coverage, Fault, Upset
from prfaas.testing.control_world.site import Site
from prfaas.testing.control_world.storybook import LawBroken, Storybook
from prfaas.testing.control_world.work import Work

#: Of work that was stopped with news on its way, so much is told all the same.
ECHO_CHANCE: Final = 0.5


#: What does each kind of action.
Performers = Mapping[type, Callable[["Gateway", "Job", Any], None]]


class Places(Protocol):
    """Where the instances of the topology stand now, by name."""

    def site(self, name: str) -> Site: ...

    def stall_left_s(self, source: Site) -> float: ...

    def node_dies(self, site: Site) -> None: ...

    def engine_dies(self, site: Site) -> None: ...

    def power_cut(self) -> None: ...

    def departs(self, name: str) -> None: ...

    def converts_to(self, name: str, duty: Duty) -> bool: ...


@dataclass(eq=False)
class Job:
    """What the gateway knows of one client's request. `node` is where its landing was asked for."""

    request_id: str
    transfer_id: str
    num_tokens: int
    chains: Callable[[int, tuple[int, ...]], dict[int, TokenChain]]
    is_over_long: bool
    is_countable: bool
    lease_s: float = 0.0
    own: Work | None = None
    prefill: Work | None = None
    watch: Work | None = None
    node: Site | None = None
    skip_tokens: int = 0
    boot_id: str = ""
    work: list[Work] = field(default_factory=list)


class Gateway:
    """One life of it. After `die` nothing that it began tells anything."""

    def __init__(
        self, kernel: Kernel, dice: Dice, places: Places, scheduler: Scheduler, storybook: Storybook,
        coverage: Coverage, performers: Performers,
        deadline_s: float,
    ) -> None:  # fmt: skip
        self.kernel, self.dice, self.places = kernel, dice, places
        self.scheduler, self.storybook, self.coverage = scheduler, storybook, coverage
        self.jobs: dict[str, Job] = {}
        self.is_dead = False
        self.books = Books(scheduler, deadline_s, self._works, lambda name: places.site(name).url)
        self._performers = performers
        self._armed_s: float | None = None
        scheduler.on_step = self._note_step

    # Feeding

    def feed(self, event: e.Event) -> None:
        """Something has happened; the core says what to do, and every law is checked."""
        if self.is_dead:
            return
        request_id = getattr(event, "request_id", "")
        now_s = self.kernel.now_s
        was = self.state_of(request_id)
        self.books.saw(event, now_s)
        self.storybook.note(now_s, request_id, "event", event)
        try:
            actions = self.scheduler.handle(event, now_s)
            if isinstance(event, e.AnswerEnded | e.RequestAbandoned) and was not in (None, RequestState.ENDED):
                self.coverage.outcomes[f"ended {event.outcome}"] += 1
            of_requests = [action for action in actions if not isinstance(action, a.FleetAction)]
            of_fleet = [action for action in actions if isinstance(action, a.FleetAction)]
            for fleet_action in of_fleet:
                self.storybook.note(now_s, "", "action", fleet_action)
            for action in of_requests:
                self.storybook.note(now_s, action.request_id, "action", action)
                self.books.did(action)
            for name in dict.fromkeys([request_id, *(action.request_id for action in of_requests)]):
                self.books.after(name)
            self.scheduler.check()
        except LawBroken:
            raise
        except AssertionError as error:
            raise LawBroken("scheduler", request_id, str(error)) from error
        for action in of_requests:
            self._perform(action)
        for fleet_action in of_fleet:
            self._of_fleet(fleet_action)
        self._arm()

    def arrive(self, job: Job, event: e.RequestArrived) -> None:
        self.jobs[job.request_id] = job
        self.feed(event)

    def die(self) -> None:
        """Its connections close. What it had reserved stays until the leases end."""
        self.is_dead = True
        for job in self.jobs.values():
            for work in job.work:
                work.stop()

    def abandon(self, request_id: str, outcome: str, fault: Fault) -> None:
        """The client is gone or its time is over, if it still waits."""
        account = self.books.accounts.get(request_id)
        job = self.jobs.get(request_id)
        if self.is_dead or job is None or account is None or account.outcome:
            return
        self.met(fault, request_id)
        if job.own is not None:
            job.own.stop()
        self.feed(e.RequestAbandoned(request_id, outcome))
        if self.dice.strikes() and request_id in self.scheduler.requests:
            self.met(Fault.LEAVES_TWICE, request_id)
            self.kernel.after(0.0, lambda: self.feed(e.RequestAbandoned(request_id, outcome)))

    # For those who perform actions

    def begin(self, job: Job, name: str) -> Work:
        """Work of a request."""
        work = Work(job.request_id, name, self._tell)
        job.work = [other for other in job.work if not other.is_over]
        job.work.append(work)
        if name in IN_CLIENT:
            assert job.own is None or job.own.is_over, "the client's task does one thing at a time"
            job.own = work
        return work

    def state_of(self, request_id: str) -> RequestState | None:
        request = self.scheduler.requests.get(request_id)
        return None if request is None else request.state

    def met(self, fault: Fault, request_id: str) -> None:
        """A fault has met a request."""
        state = self.state_of(request_id)
        if not self.is_dead and state is not None:
            self.coverage.faults[fault, state] += 1
            self.storybook.note(self.kernel.now_s, request_id, "fault", str(fault))

    def strikes(self, fault: Fault, request_id: str, weight: float = 1.0) -> bool:
        """Whether a fault meets this request now."""
        if not self.dice.strikes(weight):
            return False
        self.met(fault, request_id)
        return True

    def node_may_die(self, site: Site, weight: float = 1.0) -> None:
        """While something that takes no time is asked of it. A death at a random moment would rarely meet that."""
        if self.dice.strikes(weight):
            self.kernel.after(self.dice.random.uniform(0.0, 0.02), lambda: self.places.node_dies(site))

    def member_may_depart(self, name: str) -> None:
        """While it is about to get work."""
        if self.dice.strikes(0.3):
            self.kernel.after(self.dice.random.uniform(0.0, 0.02), lambda: self.places.departs(name))

    # Inside

    def _power_may_fail(self, within_s: float, weight: float) -> None:
        """Just before the gateway would fall back: then there is nobody to fall back to."""
        if self.dice.strikes(weight):
            self.kernel.after(within_s * self.dice.random.random(), self.places.power_cut)

    def _works(self, name: str) -> bool:
        return self.places.site(name).engine_up

    def _note_step(self, request_id: str, before: RequestState, kind: type, after: RequestState) -> None:
        self.coverage.steps[before, kind, after] += 1

    def _of_fleet(self, action: a.FleetAction) -> None:
        if isinstance(action, a.NoteConversion):
            self.coverage.conversions[action.conversion.phase] += 1
        elif isinstance(action, a.NoteHealth):
            self.coverage.num_ejections += action.is_out
        elif isinstance(action, a.Convert):
            instance = self.scheduler.fleet.instances[action.instance]
            held = instance.num_inflight, instance.num_landings, len(instance.work)
            if held != (0, 0, 0):
                raise LawBroken("drained", "", f"{action} while it has requests, landings, work: {held}")
            self.kernel.after(self.dice.span_s(0.05, 3.0), lambda: self._switches(action))

    def _switches(self, action: a.Convert) -> None:
        if not self.dice.chance(0.3) and self.places.converts_to(action.instance, action.duty):
            return
        self.feed(e.ConversionRefused(action.instance, "not today"))

    def _perform(self, action: a.RequestAction) -> None:
        job = self.jobs[action.request_id]
        if isinstance(action, a.Decode) and action.fallback is not None:
            self.coverage.fallbacks[f"fallback {action.fallback.reason}"] += 1
        if isinstance(action, a.Close):
            del self.jobs[action.request_id]
            return
        performer = self._performers.get(type(action))
        if performer is not None:
            performer(self, job, action)

    def _tell(self, work: Work, delay_s: float, event: e.RequestEvent) -> None:
        if self.dice.strikes(1.0 if work.name == "decode" or work.name not in IN_CLIENT else 0.3):
            self.kernel.after(
                delay_s * self.dice.random.random(),
                lambda: self.abandon(work.request_id, "cancelled", Fault.CLIENT_LEAVES),
            )

        if getattr(event, "failure", None) is not None or getattr(event, "num_bytes", 1) == 0:
            self._power_may_fail(delay_s, 5.0 if isinstance(event, e.LandingReserved) else 0.6)

        def echoes() -> None:
            self.met(Fault.LATE_ECHO, work.request_id)
            self.feed(event)

        def arrives() -> None:
            if not work.is_stopped or work.name not in _MAY_ECHO:
                self.feed(event)
            elif self.dice.chance(ECHO_CHANCE):
                self.kernel.after(self.dice.span_s(0.0, 4.0) if work.name == "watch" else 0.0, echoes)

        self.kernel.after(delay_s, arrives)

    def _arm(self) -> None:
        due_s = self.scheduler.next_due_s
        if due_s is None or due_s == self._armed_s:
            return
        self._armed_s = due_s
        late_s = self.dice.random.uniform(0.0, 0.01)
        if self.dice.strikes(0.2):
            late_s = self.dice.random.uniform(0.2, 1.0)
            self.coverage.upsets[Upset.TICK_LATE] += 1
            for account in self.books.accounts.values():
                account.num_renewals_lost += 1

        if any(request.deadline_s == due_s for request in self.scheduler.requests.values()):
            self._power_may_fail(due_s - self.kernel.now_s, 5.0)

        def ticks() -> None:
            if self._armed_s == due_s:
                self._armed_s = None
            self.feed(e.Tick())

        self.kernel.after(due_s - self.kernel.now_s + late_s, ticks)


#: Work that runs in the client's own task.
IN_CLIENT: Final = ("count", "decode", "refuse")
#: What these tell after they were stopped is an echo, which may also be lost. Everything else is always told.
_MAY_ECHO: Final = (*IN_CLIENT, "watch")


def failed(reason: FallbackReason, *, refused: bool = False) -> Failure:
    return Failure(reason, "in a simulated world", refused)
