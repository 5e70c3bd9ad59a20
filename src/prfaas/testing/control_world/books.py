"""The laws of a world, kept by books of its own: they know actions and events, never a request's record.

Laws that are checked here, by the names under which a broken one is told:
- `counts`: an instance has as many requests and landings of ours as actions began there and events ended.
- `one_answer`: one leg of a request at a time, at most two, and none after the first byte of an answer.
- `another_engine`: a second leg avoids the engine that failed, if another one works.
- `landed_first`: decode is sent to a landing only after its node said that every byte is there, and only to the
  instance beside that node.
- `freed_once`: a landing is settled or dropped once, after the answer to its reservation; dropped after it was settled
  only if nobody knows how that went; not while an engine may be loading it. Its lease is renewed only before that.
- `prefill_stopped`: who gives up a transfer stops its prefill.
- `members_only`: new work goes to members of the topology that have the duty, and to no prefill instance that has said
  that no lane is up to where the landing would be.
- `lease`: a landing expires only if its gateway died or could not reach the node; else it is renewed, or freed.
- `in_time`: a transfer that has not landed by its deadline is given up; every request ends.
- `one_end`: a request ends once, and is closed when nothing of it goes on.
- `owed`: nobody is refused while an engine works steadily, unless two legs broke.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from prfaas.core.control import actions as a
from prfaas.core.control import events as e
from prfaas.core.control.instance import MAX_SILENT_PROBES
from prfaas.core.control.scheduler import Scheduler
from prfaas.core.topology import Duty
from prfaas.core.transfer.landings import Landing
from prfaas.testing.control_world.storybook import LawBroken

#: A tick may be late by one second; no life is as long as this, whatever goes wrong in it.
MAX_TICK_LATE_S: Final = 1.5
MAX_LIFE_S: Final = 60.0
#: A lease outlives one lost renewal. Whoever lost two may lose the landing.
MAX_RENEWALS_LOST: Final = 1


@dataclass(eq=False, slots=True)
class Account:
    """One request. `steady` are the decode instances that have worked, and were known to, since it arrived."""

    request_id: str
    steady: dict[str, None]
    arrived_s: float
    asked_s: float | None = None
    decode_at: str = ""
    #: Who will be asked to prefill, while the landing is being reserved.
    prefill_chosen: str = ""
    prefill_at: str = ""
    landing_at: str = ""
    landing_url: str = ""
    landing: Landing | None = None
    is_reserving: bool = False
    is_watching: bool = False
    is_stopped: bool = False
    #: Every byte was said to have landed, and the gateway said so to the core.
    has_landed: bool = False
    gave_up: bool = False
    is_counting: bool = False
    num_legs: int = 0
    num_failed_legs: int = 0
    live_leg: int | None = None
    leg_loads: bool = False
    failed_at: str = ""
    has_begun: bool = False
    num_settled: int = 0
    num_dropped: int = 0
    is_settling: bool = False
    is_dropping: bool = False
    is_unsettled: bool = False
    is_drop_lost: bool = False
    is_late_to_renew: bool = False
    num_renewals_lost: int = 0
    outcome: str = ""
    is_closed: bool = False


@dataclass(eq=False)
class Books:
    """Of one gateway's life. `is_up` and `url_of` tell the truth about an instance by name."""

    scheduler: Scheduler
    deadline_s: float
    is_up: Callable[[str], bool]
    url_of: Callable[[str], str]
    accounts: dict[str, Account] = field(default_factory=dict)
    inflight: Counter[str] = field(default_factory=Counter)
    landings: Counter[str] = field(default_factory=Counter)
    num_closed: int = 0
    _now_s: float = 0.0
    _silent: Counter[str] = field(default_factory=Counter)
    _cut_off: dict[str, frozenset[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._of_event: dict[type, Callable[[Account, Any], None]] = {
            e.PromptCounted: self._counted,
            e.PromptUncountable: self._counted,
            e.LandingReserved: self._reserved,
            e.ReserveFailed: self._reserved,
            e.PrefillEnded: self._prefill_ended,
            e.LandingEnded: self._landing_ended,
            e.AnswerBegan: self._began,
            e.DecodeFailed: self._decode_failed,
            e.AnswerEnded: self._ended,
            e.RequestAbandoned: self._ended,
            e.LandingSettled: self._settled,
            e.LandingDropped: self._dropped,
        }
        self._of_action: dict[type, Callable[[Account, Any], None]] = {
            a.CountPrompt: self._count,
            a.Reserve: self._reserve,
            a.Prefill: self._prefill,
            a.AwaitLanding: self._await,
            a.StopPrefill: self._stop,
            a.RenewLease: self._renew,
            a.Decode: self._decode,
            a.Refuse: self._refuse,
            a.SettleLanding: self._settle,
            a.DropLanding: self._drop,
            a.Close: self._close,
        }

    # What the world says

    def saw(self, event: e.Event, now_s: float) -> None:
        """Before the actions that follow from it."""
        self._now_s = now_s
        if isinstance(event, e.RequestArrived):
            steady = dict.fromkeys(i.name for i in self.scheduler.fleet.decoders if self._is_steady(i.name))
            self.accounts[event.request_id] = Account(event.request_id, steady, now_s)
            return
        request_id = getattr(event, "request_id", "")
        account = self.accounts.get(request_id)
        handler = self._of_event.get(type(event))
        if account is not None and handler is not None:
            handler(account, event)
        elif isinstance(event, e.EngineSilent):
            self._silent[event.instance] += 1
            if event.refused or self._silent[event.instance] >= MAX_SILENT_PROBES:
                self.unsteady(event.instance)
        elif isinstance(event, e.NodeSeen):
            self._cut_off[event.instance] = event.cut_off_from
        elif isinstance(event, e.TopologyChanged):
            # Who has moved has said nothing yet.
            self._cut_off.clear()
        elif isinstance(event, e.EngineSeen):
            self._silent[event.instance] = 0
            if not event.healthy:
                self.unsteady(event.instance)

    def did(self, action: a.RequestAction) -> None:
        """Raises LawBroken."""
        account = self.accounts[action.request_id]
        self.need("one_end", account, not account.is_closed, f"{action} after it was closed")
        handler = self._of_action.get(type(action))
        if handler is not None:
            handler(account, action)

    def after(self, request_id: str) -> None:
        """When every action of an event was seen."""
        account = self.accounts.get(request_id)
        if account is not None:
            runs = bool(account.prefill_at) or account.is_watching
            # What has landed was prefilled to its end; the engine has only its answer left to send.
            stopped = not runs or account.is_stopped or account.has_landed or not account.gave_up
            self.need("prefill_stopped", account, stopped, "the transfer was given up and goes on")
            if account.is_closed:
                del self.accounts[request_id]
                self.num_closed += 1
        fleet = self.scheduler.fleet.instances
        for name, instance in fleet.items():
            if instance.num_inflight != self.inflight[name] or instance.num_landings != self.landings[name]:
                has = f"{instance.num_inflight} requests and {instance.num_landings} landings"
                told = f"{self.inflight[name]} and {self.landings[name]}"
                raise LawBroken("counts", request_id, f"the fleet says {name} has {has}, the books say {told}")

    def unsteady(self, name: str) -> None:
        """The instance does not work, or is thought not to."""
        for account in self.accounts.values():
            account.steady.pop(name, None)

    def expired(self, request_id: str, landing: Landing) -> None:
        """Its lease ran out on a node that could be reached, and this gateway lives."""
        account = self.accounts.get(request_id)
        if account is None:
            raise LawBroken("lease", request_id, f"its landing was left behind: {landing.record()}")
        if account.is_drop_lost or account.is_late_to_renew:
            return
        lost = account.num_renewals_lost
        self.need("lease", account, lost > MAX_RENEWALS_LOST, f"{landing.record()} expired; {lost} renewals were lost")

    def check_times(self, now_s: float) -> None:
        """Now and then."""
        for account in self.accounts.values():
            late_s = now_s - MAX_TICK_LATE_S - self.deadline_s
            in_time = account.asked_s is None or account.asked_s >= late_s
            self.need("in_time", account, in_time, "its transfer neither landed nor was given up")
            self.need("in_time", account, now_s - account.arrived_s < MAX_LIFE_S, "it does not end")

    def need(self, law: str, account: Account, holds: bool, detail: str) -> None:
        if not holds:
            raise LawBroken(law, account.request_id, detail)

    def _is_steady(self, name: str) -> bool:
        instance = self.scheduler.fleet.instances[name]
        return self.is_up(name) and instance.engine_healthy and not instance.is_draining

    # Events

    def _counted(self, account: Account, event: e.Event) -> None:
        account.is_counting = False

    def _reserved(self, account: Account, event: e.LandingReserved | e.ReserveFailed) -> None:
        account.is_reserving = False

    def _prefill_ended(self, account: Account, event: e.PrefillEnded) -> None:
        self.need("one_end", account, bool(account.prefill_at), "the prefill ended twice")
        if event.failure is not None and event.failure.refused:
            self.unsteady(account.prefill_at)
        self.inflight[account.prefill_at] -= 1
        account.prefill_at = ""

    def _landing_ended(self, account: Account, event: e.LandingEnded) -> None:
        account.is_watching = False
        if not account.is_stopped:
            account.asked_s = None
            account.has_landed = event.failure is None and event.num_bytes > 0

    def _began(self, account: Account, event: e.AnswerBegan) -> None:
        if account.outcome:
            return
        self.need("one_answer", account, not account.has_begun, "the client gets the first byte of a second answer")
        self.need("one_answer", account, account.live_leg == event.attempt, "a leg answers that is not the live one")
        account.has_begun = True

    def _decode_failed(self, account: Account, event: e.DecodeFailed) -> None:
        if account.outcome:
            return
        if event.failure.refused:
            self.unsteady(account.decode_at)
        account.failed_at, account.live_leg, account.leg_loads = account.decode_at, None, False
        account.num_failed_legs += 1

    def _ended(self, account: Account, event: e.AnswerEnded | e.RequestAbandoned) -> None:
        if not account.outcome:
            account.outcome = event.outcome
            account.asked_s = None
            account.live_leg, account.leg_loads = None, False
            account.gave_up = account.gave_up or not account.has_landed
            account.is_counting = False
            self._leave_decode(account)

    def _settled(self, account: Account, event: e.LandingSettled) -> None:
        account.is_settling = False
        account.is_unsettled = event.record is None
        if event.record is not None:
            self._landing_freed(account)

    def _dropped(self, account: Account, event: e.LandingDropped) -> None:
        account.is_dropping = False
        self._landing_freed(account)

    def _landing_freed(self, account: Account) -> None:
        self.landings[account.landing_at] -= 1

    def _leave_decode(self, account: Account) -> None:
        if account.decode_at:
            self.inflight[account.decode_at] -= 1
        if account.prefill_chosen:
            self.inflight[account.prefill_chosen] -= 1
        account.decode_at = account.prefill_chosen = ""

    # Actions

    def _count(self, account: Account, action: a.CountPrompt) -> None:
        account.is_counting = True

    def _reserve(self, account: Account, action: a.Reserve) -> None:
        self.need("freed_once", account, not account.landing_at, "a second landing is reserved")
        decode = action.route.decode
        self._new_work(account, decode, decodes=True)
        self._new_work(account, action.route.prefill, decodes=False)
        has_lane = decode not in self._cut_off.get(action.route.prefill, ())
        self.need("members_only", account, has_lane, f"{action.route.prefill} has no lane to {decode}")
        account.landing_at, account.landing_url = decode, self.url_of(decode)
        account.is_reserving, account.asked_s = True, self._now_s
        account.decode_at, account.prefill_chosen = decode, action.route.prefill
        self.inflight[decode] += 1
        self.inflight[action.route.prefill] += 1
        self.landings[decode] += 1

    def _prefill(self, account: Account, action: a.Prefill) -> None:
        self._new_work(account, action.instance, decodes=False)
        self.need("one_end", account, not account.prefill_at, "a second prefill begins")
        self.need("freed_once", account, not account.is_reserving, "prefilled before the landing is reserved")
        self.need("one_end", account, account.prefill_chosen == action.instance, "another one prefills than was chosen")
        account.prefill_at, account.prefill_chosen = action.instance, ""

    def _await(self, account: Account, action: a.AwaitLanding) -> None:
        account.is_watching = True

    def _stop(self, account: Account, action: a.StopPrefill) -> None:
        account.is_stopped = True
        account.is_watching = account.has_landed = False

    def _renew(self, account: Account, action: a.RenewLease) -> None:
        is_ours = not account.num_settled and not account.num_dropped
        self.need("freed_once", account, is_ours, "its lease is renewed after it was freed")

    def _decode(self, account: Account, action: a.Decode) -> None:
        self.need("one_answer", account, not account.has_begun, "a leg begins after the first byte of an answer")
        self.need("one_answer", account, account.live_leg is None, "a second leg begins while one is live")
        self.need("one_answer", account, not account.outcome, "a leg begins after the end")
        self.need("one_answer", account, account.num_legs < 2, "a third leg begins")
        if action.is_landed:
            landing = account.landing
            has_landed = account.has_landed and landing is not None and landing.landed_s is not None
            self.need("landed_first", account, has_landed, "the landing has not landed")
            beside = action.instance == account.landing_at and self.url_of(action.instance) == account.landing_url
            self.need("landed_first", account, beside, f"the landing is at {account.landing_url}")
        else:
            account.gave_up, account.asked_s = True, None
            self._new_work(account, action.instance, decodes=True)
        if account.failed_at == action.instance:
            other = [
                i.name
                for i in self.scheduler.fleet.decoders
                if i.name != action.instance and i.candidate().engine_healthy
            ]
            self.need("another_engine", account, not other, f"{action.instance} has just failed and {other} work")
        self._leave_decode(account)
        account.decode_at = action.instance
        self.inflight[action.instance] += 1
        account.num_legs += 1
        account.live_leg, account.leg_loads = action.attempt, action.is_landed

    def _refuse(self, account: Account, action: a.Refuse) -> None:
        self.need("one_answer", account, account.live_leg is None and not account.has_begun, "refused while answered")
        self.need("one_end", account, not account.outcome, "refused after the end")
        if account.num_failed_legs < 2:
            self.need("owed", account, not account.steady, f"refused while {list(account.steady)} worked all the time")
        account.gave_up, account.asked_s = True, None
        self._leave_decode(account)

    def _settle(self, account: Account, action: a.SettleLanding) -> None:
        account.num_settled += 1
        self.need("freed_once", account, account.num_settled == 1, "settled twice")
        self.need("freed_once", account, account.num_dropped == 0, "settled after it was dropped")
        self.need("freed_once", account, account.has_begun and account.leg_loads, "settled before it served an answer")
        account.is_settling = True

    def _drop(self, account: Account, action: a.DropLanding) -> None:
        account.num_dropped += 1
        self.need("freed_once", account, account.num_dropped == 1, "dropped twice")
        self.need("freed_once", account, not account.is_reserving, "dropped before the reservation was answered")
        unsettled = not account.num_settled or account.is_unsettled
        self.need("freed_once", account, unsettled, "dropped after it was settled")
        loading = account.leg_loads and not account.is_unsettled
        self.need("freed_once", account, not loading, "dropped while an engine loads it")
        account.is_dropping = True

    def _close(self, account: Account, action: a.Close) -> None:
        goes_on = [
            name
            for name in ("is_reserving", "prefill_at", "is_watching", "is_counting", "is_settling", "is_dropping",
                         "decode_at")
            if getattr(account, name)
        ]  # fmt: skip
        if account.has_landed:
            goes_on = [name for name in goes_on if name != "is_watching"]
        self.need("one_end", account, bool(account.outcome), "closed before its end")
        self.need("one_end", account, not goes_on, f"closed while there is {', '.join(goes_on)}")
        freed = account.num_settled + account.num_dropped
        self.need(
            "freed_once", account, bool(freed) == bool(account.landing_at), f"its landing was freed {freed} times"
        )
        account.is_closed = True

    def _new_work(self, account: Account, name: str, *, decodes: bool) -> None:
        duties = (Duty.DECODE, Duty.BOTH) if decodes else (Duty.PREFILL,)
        members = {member.name: member.duty for member in self.scheduler.fleet.topology.instances}
        fits = members.get(name) in duties
        self.need("members_only", account, fits, f"new work for {name}, whose duty is {members.get(name)}")
