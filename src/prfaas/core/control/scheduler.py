"""The one door of the control core: an event in, actions out.

Laws of this file:
- `handle` is the only way in. It reads no clock, waits for nothing and raises for no fault of the world.
- A request has one terminal state, and is forgotten when nothing of it is left.
- An instance's count of requests and landings is the number of requests that say that they are there: see `check`.
"""

from __future__ import annotations

from collections import Counter
from typing import cast, get_args

from prfaas.core.control import actions as a
from prfaas.core.control import events as e
from prfaas.core.control.fleet import Fleet, Instance
from prfaas.core.control.lifecycle import Lifecycle, TransferTerms
from prfaas.core.control.request import TRANSITIONS, LandingPhase, Request, RequestState
from prfaas.core.control.router import RoutePolicy
from prfaas.core.topology import Topology

_OF_REQUEST = frozenset(get_args(e.RequestEvent))


class Scheduler:
    """Decides for every request of one gateway, or of one simulated one."""

    def __init__(self, topology: Topology, policy: RoutePolicy, terms: TransferTerms) -> None:
        self.fleet = Fleet(topology)
        self.requests: dict[str, Request] = {}
        self.links: dict[tuple[str, str], e.LinkSeen] = {}
        self._life = Lifecycle(self.fleet, policy, terms)

    @property
    def policy(self) -> RoutePolicy:
        return self._life.policy

    @property
    def next_due_s(self) -> float | None:
        """When a `Tick` will have something to do; None if never."""
        return self._life.timers.next_due_s

    def handle(self, event: e.Event, now_s: float) -> list[a.Action]:
        """What to do now that `event` has happened. `now_s` never falls."""
        self._life.out = []
        if isinstance(event, e.RequestArrived):
            self._arrived(event, now_s)
        elif type(event) in _OF_REQUEST:
            self._step(cast(e.RequestEvent, event), now_s)
        elif isinstance(event, e.Tick):
            self._tick(now_s)
        else:
            self._world(event)
        if self.fleet.is_draining:
            self.fleet.forget_drained()
        return self._life.out

    def _arrived(self, event: e.RequestArrived, now_s: float) -> None:
        assert event.request_id not in self.requests, f"request {event.request_id} has arrived already"
        request = self.requests[event.request_id] = Request(event, now_s)
        self._life.arrived(request, now_s)

    def _step(self, event: e.RequestEvent, now_s: float) -> None:
        request = self.requests.get(event.request_id)
        if request is None:
            return  # it has been closed; what comes now is the echo of work that was stopped
        if isinstance(event, e.AnswerBegan | e.DecodeFailed) and event.attempt < request.attempt:
            return  # an earlier decode leg has been given up
        before = request.state
        allowed = TRANSITIONS[before].get(type(event))
        assert allowed is not None, f"{event.request_id}: {type(event).__name__} cannot happen while {before}"
        self._life.apply(request, event, now_s)
        assert request.state in allowed, (
            f"{event.request_id}: {type(event).__name__} led from {before} to {request.state}"
        )
        if request.is_over:
            del self.requests[event.request_id]
            self._life.out.append(a.Close(event.request_id))

    def _tick(self, now_s: float) -> None:
        timers = self._life.timers
        while (timer := timers.take_due(now_s)) is not None:
            request = self.requests.get(timer.request_id)
            meant = None if request is None else self._life.due(request, timer.kind, timer.due_s, now_s)
            if meant is not None:
                self._step(meant, now_s)

    def _world(self, event: e.Event) -> None:
        match event:
            case e.TopologyChanged(topology):
                self.fleet.apply(topology)
            case e.PolicyChanged(offload, threshold_tokens):
                self._life.policy = RoutePolicy(offload, threshold_tokens)
            case e.LinkSeen(source, target):
                self.links[source, target] = event
            case e.LinksLost(source):
                self.links = {pair: seen for pair, seen in self.links.items() if pair[0] != source}
            case e.EngineSeen() | e.EngineSilent() | e.NodeSeen() | e.NodeSilent():
                instance = self.fleet.instances.get(event.instance)
                if instance is not None:
                    _observe(instance, event)

    def check(self) -> None:
        """Invariants; the message of a failure is the request's record."""
        inflight: Counter[str] = Counter()
        landings: Counter[str] = Counter()
        for request in self.requests.values():
            _check_request(request)
            inflight.update(name for name in (request.decode, request.prefill) if name)
            if request.landing not in (LandingPhase.NONE, LandingPhase.GONE):
                landings[request.landing_at] += 1
        for name, instance in self.fleet.instances.items():
            assert instance.num_inflight == inflight[name], (name, instance.num_inflight, inflight[name])
            assert instance.num_landings == landings[name], (name, instance.num_landings, landings[name])
            instance.cache.check()
        missing = (inflight.keys() | landings.keys()) - self.fleet.instances.keys()
        assert not missing, f"requests are at instances that are gone: {missing}"


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


def _observe(instance: Instance, event: e.Event) -> None:
    match event:
        case e.EngineSeen(_, healthy, num_requests):
            instance.engine_seen(healthy, num_requests)
        case e.EngineSilent(_, refused):
            instance.engine_silent(refused=refused)
        case e.NodeSeen():
            instance.node_ready, instance.cut_off_from = event.has_engine, event.cut_off_from
            if event.has_engine:
                instance.engine_registered(event.block_tokens, event.engine_boot_id, event.kv_group_kinds)
        case e.NodeSilent():
            instance.node_ready = False
