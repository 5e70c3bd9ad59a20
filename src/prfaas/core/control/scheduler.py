"""The one door of the control core: an event in, actions out.

Laws of this file:
- `handle` is the only way in. It reads no clock, waits for nothing and raises for no fault of the world.
- A request has one terminal state, and is forgotten when nothing of it is left.
- An instance's count of requests and landings is the number of requests that say that they are there: see `check`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, get_args

from prfaas.core.control import actions as a
from prfaas.core.control import events as e
from prfaas.core.control.conversion import Conversion, Converter, Phase
from prfaas.core.control.dispatch import Dispatch
from prfaas.core.control.fleet import Fleet
from prfaas.core.control.health import Health, Use
from prfaas.core.control.instance import MAX_RECORD_BLOCKS, Instance
from prfaas.core.control.lifecycle import Lifecycle, TransferTerms
from prfaas.core.control.rebalance import Rebalancer, Suggestion
from prfaas.core.control.request import TRANSITIONS, LandingPhase, Request, RequestState
from prfaas.core.control.router import RoutePolicy
from prfaas.core.control.stage_loads import StageLoads
from prfaas.core.control.timers import Timer
from prfaas.core.topology import Topology

_OF_REQUEST: Final = frozenset(get_args(e.RequestEvent))
#: Of one attempt to have it answered.
_OF_ATTEMPT: Final = (e.AnswerBegan, e.DecodeFailed)


class Scheduler:
    """Decides for every request of one gateway, or of one simulated one. Of what an engine holds, `max_record_blocks`
    are on record."""

    def __init__(
        self,
        topology: Topology,
        policy: RoutePolicy,
        terms: TransferTerms,
        max_record_blocks: int = MAX_RECORD_BLOCKS,
    ) -> None:
        self.fleet = Fleet(topology, max_record_blocks)
        self.requests: dict[str, Request] = {}
        self.links: dict[tuple[str, str], e.LinkSeen] = {}
        self._life = Lifecycle(self.fleet, policy, terms)
        self.converter = Converter(self.fleet)
        #: None for a policy whose threshold is fixed.
        self.rebalancer: Rebalancer | None = None
        self._last_rebalancer: Rebalancer | None = None
        #: Told of every step of every request: its id, its state, the kind of event, its state afterwards.
        self.on_step: Callable[[str, RequestState, type, RequestState], object] | None = None
        #: By kind of event; all others are the world's.
        self._take: dict[type, Callable[[Any, float], None]] = {
            **dict.fromkeys(_OF_REQUEST, self._step), e.RequestArrived: self._arrived, e.Tick: self._tick
        }  # fmt: skip
        self._follow(policy, 0.0)

    @property
    def policy(self) -> RoutePolicy:
        return self._life.policy

    @property
    def next_due_s(self) -> float | None:
        """When a `Tick` will have something to do; None if never."""
        life = self._life
        due_s = life.timers.next_due_s
        for part in (life.dispatch, self.rebalancer, self.converter, life.health):
            if part is not None:
                part_s = part.next_due_s
                if part_s is not None and (due_s is None or part_s < due_s):
                    due_s = part_s
        return due_s

    @property
    def num_timers(self) -> int:
        """Of transfers; those that mean nothing any more are among them until they would be due."""
        return len(self._life.timers)

    @property
    def dispatch(self) -> Dispatch | None:
        """None for a policy whose threshold is fixed."""
        return self._life.dispatch

    @property
    def health(self) -> Health:
        return self._life.health

    def handle(self, event: e.Event, now_s: float) -> list[a.Action]:
        """What to do now that `event` has happened. `now_s` never falls."""
        life = self._life
        life.out, life.now_s = [], now_s
        self._take.get(type(event), self._world)(event, now_s)
        if self.converter.current is not None:
            self._convert(now_s)
        if life.health.changed:
            self._health_changed()
        if life.dispatch is not None:
            for turn in life.dispatch.turns(now_s):
                self._step(turn, now_s)
        if self.fleet.is_draining and self.fleet.forget_drained():
            life.health.forget_gone()
        return life.out

    def _arrived(self, event: e.RequestArrived, now_s: float) -> None:
        assert event.request_id not in self.requests, f"request {event.request_id} has arrived already"
        if self.rebalancer is not None and not self.requests:
            self.rebalancer.wake(now_s)
        request = self.requests[event.request_id] = Request(event, now_s)
        self._life.arrived(request, now_s)

    def _step(self, event: e.RequestEvent, now_s: float) -> None:
        request = self.requests.get(event.request_id)
        if request is None:
            return  # it has been closed; what comes now is the echo of work that was stopped
        if isinstance(event, _OF_ATTEMPT) and event.attempt < request.attempt:
            return  # an earlier decode leg has been given up
        before = request.state
        allowed = TRANSITIONS[before].get(type(event))
        assert allowed is not None, f"{event.request_id}: {type(event).__name__} cannot happen while {before}"
        self._life.apply(request, event, now_s)
        assert request.state in allowed, (
            f"{event.request_id}: {type(event).__name__} led from {before} to {request.state}"
        )
        if self.on_step is not None:
            self.on_step(event.request_id, before, type(event), request.state)
        if request.state is RequestState.ENDED and request.is_over:
            del self.requests[event.request_id]
            self._life.out.append(a.Close(event.request_id))
        timer = self._life.timers.next
        if timer is not None and timer.request_id == request.request_id:
            self._forget_timers()

    def _tick(self, event: e.Tick, now_s: float) -> None:
        timers = self._life.timers
        self._life.health.tick(now_s)
        if self._life.dispatch is not None:
            self._life.dispatch.tick(now_s)
        if self.rebalancer is not None:
            self._rebalance(self.rebalancer, now_s)
        while (timer := timers.take_due(now_s)) is not None:
            request = self.requests.get(timer.request_id)
            meant = None if request is None else self._life.due(request, timer.kind, timer.due_s, now_s)
            if meant is not None:
                self._step(meant, now_s)
        self._forget_timers()

    def _forget_timers(self) -> None:
        """The next one means something, or two of three ticks would come for transfers that are over."""
        timers = self._life.timers
        while (timer := timers.next) is not None and not self._means_something(timer):
            timers.take_due(timer.due_s)

    def _means_something(self, timer: Timer) -> bool:
        request = self.requests.get(timer.request_id)
        return request is not None and (timer.due_s == request.deadline_s or timer.due_s == request.renew_s)

    def _rebalance(self, rebalancer: Rebalancer, now_s: float) -> None:
        before = rebalancer.suggestions
        conversion = rebalancer.tick(now_s, is_empty=not self.requests)
        if rebalancer.suggestions is not before and _first(rebalancer.suggestions) != _first(before):
            self._life.out.append(a.NoteSuggestions(rebalancer.suggestions))
        if conversion is not None:
            self.converter.begin(conversion, now_s)
            rebalancer.conversions.append(conversion)
            self._life.out.append(a.NoteConversion(replace(conversion, beside=None)))
            self._fleet_changed()

    def _convert(self, now_s: float) -> None:
        """As far as what is under way can go now."""
        while (conversion := self.converter.step(now_s)) is not None:
            if conversion.phase is Phase.SWITCHING:
                self._life.out.append(a.Convert(conversion.instance, conversion.to_duty))
                return
            if not conversion.is_under_way:
                self._converted(conversion, now_s)
                return

    def _converted(self, conversion: Conversion, now_s: float) -> None:
        self._life.out.append(a.NoteConversion(replace(conversion, beside=None)))
        if self.rebalancer is not None:
            self.rebalancer.ended(conversion, now_s)
        self._fleet_changed()

    def _health_changed(self) -> None:
        """Tell who is out, and who is back."""
        health = self._life.health
        for instance in dict.fromkeys(health.changed):
            record = health.records.get(instance)
            if record is None or record.use is not Use.ON_TRIAL:
                self._life.out.append(
                    a.NoteHealth(instance.name, instance.is_out, "" if record is None else record.why)
                )
        health.changed.clear()
        self._fleet_changed()

    def _fleet_changed(self) -> None:
        if self.dispatch is not None:
            self.dispatch.fleet_changed()

    def _world(self, event: e.Event, now_s: float) -> None:
        before = None if self._life.dispatch is None else self._usable(event)
        self._change(event, now_s)
        if self._life.dispatch is not None:
            self._life.dispatch.saw(event, now_s, has_changed=before is None or before != self._usable(event))

    def _usable(self, event: e.Event) -> object:
        """What of the instance that an event is about bears on who can be used; None where it may be anything."""
        if isinstance(event, e.LinkSeen | e.LinksLost):
            return ()
        instance = self.fleet.instances.get(getattr(event, "instance", ""))
        if instance is None:
            return None
        return instance.may_decode, instance.node_ready, instance.cut_off_from

    def _follow(self, policy: RoutePolicy, now_s: float) -> None:
        """From now on. What was measured under another model is forgotten, and what waits is placed anew."""
        self._life.policy = policy
        before = self._life.dispatch
        if before is not None and before.estimates.model == policy.model and before.is_like(policy):
            before.may_offload = policy.offload
            if self.rebalancer is not None:
                self.rebalancer.cool_down_s = policy.cool_down_s
            return
        waiting = [] if before is None else before.release()
        after = self._life.dispatch = None if policy.model is None else Dispatch(self.fleet, self.requests, policy)
        self._slow_timescale(after, policy, now_s)
        if after is not None:
            for request in self.requests.values():
                after.adopt(request, now_s)
        for request_id in waiting:
            self._step(e.TurnCame(request_id, None), now_s)

    def _slow_timescale(self, dispatch: Dispatch | None, policy: RoutePolicy, now_s: float) -> None:
        """What is under way goes on; whoever has a fixed threshold begins nothing new."""
        if self.rebalancer is not None:
            self._last_rebalancer = self.rebalancer
        self.rebalancer = None
        if dispatch is None or policy.choose is not None:
            return
        loads = StageLoads(self.fleet, dispatch.estimates, dispatch.queues)
        self.rebalancer = Rebalancer(self.fleet, dispatch.estimates, loads, self.converter, policy.cool_down_s)
        if self._last_rebalancer is not None:
            self.rebalancer.takes_over(self._last_rebalancer)
        if self.requests:
            self.rebalancer.wake(now_s)

    def _change(self, event: e.Event, now_s: float) -> None:
        match event:
            case e.TopologyChanged(topology):
                self.fleet.apply(topology)
                self._life.health.forget_gone()
                if self.rebalancer is not None:
                    self.rebalancer.changed(now_s)
            case e.PolicyChanged(policy):
                self._follow(policy, now_s)
            case e.ConversionRefused(name, detail):
                conversion = self.converter.refused(name, detail, now_s)
                if conversion is not None:
                    self._converted(conversion, now_s)
            case e.LinkSeen(source, target):
                self.links[source, target] = event
            case e.LinksLost(source):
                self.links = {pair: seen for pair, seen in self.links.items() if pair[0] != source}
            case e.EngineSeen() | e.EngineSilent() | e.NodeSeen() | e.NodeSilent():
                instance = self.fleet.instances.get(event.instance)
                if instance is not None and _observe(instance, event):
                    self._life.health.restarted(instance)

    def check(self) -> None:
        """Invariants; the message of a failure is the request's record."""
        inflight: Counter[str] = Counter()
        landings: Counter[str] = Counter()
        answers: Counter[int] = Counter()
        for request in self.requests.values():
            _check_request(request)
            inflight.update(name for name in (request.decode, request.prefill) if name)
            if request.landing not in (LandingPhase.NONE, LandingPhase.GONE):
                landings[request.landing_at] += 1
            if request.answers_at is not None:
                answers[id(request.answers_at)] += 1
        for name, instance in self.fleet.instances.items():
            assert instance.num_inflight == inflight[name], (name, instance.num_inflight, inflight[name])
            assert instance.num_landings == landings[name], (name, instance.num_landings, landings[name])
            assert instance.num_answers == answers[id(instance)], (name, instance.num_answers, answers[id(instance)])
            instance.cache.check()
        timer = self._life.timers.next
        assert timer is None or self._means_something(timer), f"a tick would come for nothing: {timer}"
        self.converter.check()
        self._life.health.check()
        if self.dispatch is not None:
            self.dispatch.check()
        missing = (inflight.keys() | landings.keys()) - self.fleet.instances.keys()
        assert not missing, f"requests are at instances that are gone: {missing}"


def _first(suggestions: tuple[Suggestion, ...]) -> object:
    """What is suggested first, whatever it would bring."""
    return [(s.cluster, s.duty, s.from_duty, s.link_to) for s in suggestions[:1]]


def _check_request(request: Request) -> None:
    state, landing = request.state, request.landing
    assert not request.is_over, f"over and not closed: {request}"
    holds = {
        RequestState.COUNTING: (LandingPhase.NONE,),
        RequestState.RESERVING: (LandingPhase.ASKED,),
        RequestState.PREFILLING: (LandingPhase.HELD,),
        RequestState.LOADING: (LandingPhase.HELD,),
    }.get(state)
    assert holds is None or landing in holds, f"{state} with a landing {landing}: {request}"
    assert holds is not None or landing not in (LandingPhase.ASKED, LandingPhase.HELD), f"a landing is left: {request}"
    assert (request.deadline_s is not None) == (state in (RequestState.RESERVING, RequestState.PREFILLING)), request
    assert state is not RequestState.ENDED or not request.decode, f"ended and still on an engine: {request}"


def _observe(instance: Instance, event: e.Event) -> bool:
    """Returns True if it was seen that the engine is another than before."""
    match event:
        case e.EngineSeen(_, healthy, num_requests):
            instance.engine_seen(healthy, num_requests)
        case e.EngineSilent(_, refused):
            instance.engine_silent(refused=refused)
        case e.NodeSeen():
            instance.node_ready, instance.cut_off_from = event.has_engine, event.cut_off_from
            if event.has_engine:
                return instance.engine_registered(event.block_tokens, event.engine_boot_id, event.kv_group_kinds)
        case e.NodeSilent():
            instance.node_ready = False
    return False
