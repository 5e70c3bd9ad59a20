"""Drives the shipped scheduler through simulated time: does what its actions ask, and tells it what came of it.

A cluster is half its round trip away from the gateway, each way; a remote prefill engine also half its link's. What is
not simulated takes no time: counting, reserving, settling, and the word that KVCache has landed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from prfaas.core.cache.hashing import TokenChain
from prfaas.core.control import actions as a
from prfaas.core.control import events as e
from prfaas.core.control.conversion import Conversion
from prfaas.core.control.fallback import Failure, FallbackReason
from prfaas.core.control.route import Option, Route
from prfaas.core.control.scheduler import Scheduler
from prfaas.sim.arrivals import Arrival
from prfaas.sim.caches import NO_CHAINS, PrefixCaches
from prfaas.sim.deployment import SimulatedDeployment
from prfaas.sim.engine import Engine, Prefill, Sequence
from prfaas.sim.kernel import Kernel, Planned
from prfaas.sim.link import SharedLink, Transfer
from prfaas.sim.link_telemetry import LinkTelemetry

_OF_FLEET: Final = (a.Convert, a.NoteConversion, a.NoteSuggestions, a.NoteHealth)
_STOPPED: Final = Failure(FallbackReason.PREFILL_FAILED, "stopped")


@dataclass(eq=False, slots=True)
class Fetch:
    """The first `num_tokens` of a prompt on their way from the instance `source`; without a link, in no time."""

    source: str
    num_tokens: int
    link: SharedLink | None
    transfer: Transfer | None = None

    def stop(self) -> None:
        """Nobody wants the rest. Idempotent."""
        if self.link is not None and self.transfer is not None:
            self.link.stop(self.transfer)


@dataclass(eq=False, slots=True)
class Life:
    """One request's way through the simulation. Times are absolute; None: it did not come to that."""

    number: int
    arrival: Arrival
    request_id: str = field(init=False, repr=False)
    began_s: float | None = None
    ended_s: float | None = None
    outcome: str = ""
    #: Who was refused may ask again then.
    retry_after_s: int | None = None
    route: str = ""
    reason: str = ""
    prefill: str = ""
    decode: str = ""
    fallback: str = ""
    kv_bytes: float = 0.0
    #: Of the prompt: computed by whoever prefilled it last; left out of what crosses, as the decode instance held it;
    #: fetched from another instance first.
    num_computed_tokens: int = 0
    num_skipped_tokens: int = 0
    num_fetched_tokens: int = 0
    #: What its decode instance computed of it after all, as it held less than was left out.
    num_lacked_tokens: int = 0
    #: Those that it had when it was placed, if they are kept.
    options: tuple[Option, ...] = field(default=(), repr=False)
    chains: Mapping[int, TokenChain] = field(default_factory=lambda: NO_CHAINS, repr=False)
    prompt: Prefill | None = field(default=None, repr=False)
    engine: Engine | None = field(default=None, repr=False)
    transfer: Transfer | None = field(default=None, repr=False)
    fetch: Fetch | None = field(default=None, repr=False)
    sequence: Sequence | None = field(default=None, repr=False)
    attempt: int = 0
    is_prefilling: bool = False
    has_landed: bool = False
    is_loaded: bool = False

    def __post_init__(self) -> None:
        self.request_id = f"r{self.number}"


class Simulation:
    """One run. `on_end` is called with every request that is over; it may `submit` another. With `checks` the
    scheduler's invariants are tested after every event."""

    def __init__(
        self,
        deployment: SimulatedDeployment,
        on_end: Callable[[Life], object] = lambda life: None,
        *,
        checks: bool = False,
    ) -> None:
        self.kernel = Kernel()
        self.deployment = deployment
        self.scheduler = Scheduler(deployment.topology, deployment.policy, deployment.terms)
        self.engines = {name: Engine(self.kernel, profile) for name, profile in deployment.profiles.items()}
        self.caches = PrefixCaches(deployment.caches)
        self.links = {
            (link.source, link.target): SharedLink(self.kernel, link.bytes_per_s)
            for link in deployment.topology.links
            if link.bytes_per_s is not None and link.bytes_per_s < math.inf
        }
        #: What carries cached prefixes to prefill clusters: as much as what leads from them.
        self.back_links = {
            (target, source): SharedLink(self.kernel, link.bytes_per_s)
            for (source, target), link in self.links.items()
            if deployment.policy.may_fetch
        }
        self._delay_s = {(link.source, link.target): (link.rtt_s or 0.0) / 2 for link in deployment.topology.links}
        self._gateway_delay_s = {cluster.name: cluster.rtt_s / 2 for cluster in deployment.topology.clusters}
        self._on_end = on_end
        #: Every request's options, for whoever wants to read them afterwards.
        self.keeps_options = False
        self._checks = checks
        self.lives: dict[str, Life] = {}
        self._num_lives = 0
        #: Instances that answer every request with an error, and that refuse connections.
        self.failing: set[str] = set()
        self.dead: set[str] = set()
        #: Those that are over.
        self.conversions: list[Conversion] = []
        #: Told where a prompt begins to be prefilled, and when it will be done: `sim/observed.py` asks for it.
        self.on_prefill: Callable[[Life, str, float], object] | None = None
        self._tick: Planned | None = None
        self._tick_due_s: float | None = None
        self._arrivals: Iterator[Arrival] = iter(())
        #: Somebody is still to come of those that `follow` was given.
        self.expects_more = False
        self._do: dict[type, Callable[[Life, Any], None]] = {
            a.CountPrompt: self._count,
            a.Reserve: self._reserve,
            a.Prefill: self._prefill,
            a.AwaitLanding: lambda life, action: None,
            a.StopPrefill: self._stop_prefill,
            a.RenewLease: lambda life, action: self._feed(e.LeaseRenewed(life.request_id, is_held=True)),
            a.Decode: self._decode,
            a.Refuse: self._refuse,
            a.SettleLanding: self._settle,
            a.DropLanding: self._drop,
            a.NoteUncached: lambda life, action: None,
            a.Close: self._close,
        }
        self._telemetry = LinkTelemetry(self, self._handle)
        for name in deployment.profiles:
            self.caches.boot(name, self.scheduler.fleet.instances[name].cluster)
            self._handle(e.EngineSeen(name, True))
            self._handle(self.node_seen(name))

    def follow(self, arrivals: Iterator[Arrival]) -> None:
        """Let these come at their times, one after the other; their times rise."""
        self._arrivals = arrivals
        self._plan_arrival()

    def submit(self, arrival: Arrival) -> Life:
        """A request that comes now."""
        self._num_lives += 1
        life = Life(self._num_lives, arrival, chains=self.caches.chains(arrival.num_tokens, arrival.blocks))
        self.lives[life.request_id] = life
        tokens = arrival.num_tokens
        self._telemetry.somebody_has_come()
        self._handle(
            e.RequestArrived(
                life.request_id, f"t{life.number}", tokens, endpoint="completions", is_stream=True,
                priority=arrival.priority, tenant=arrival.tenant,
            )
        )  # fmt: skip
        return life

    def run(self, until_s: float) -> None:
        self.kernel.run(until_s)

    def _plan_arrival(self) -> None:
        arrival = next(self._arrivals, None)
        self.expects_more = arrival is not None
        if arrival is not None:
            self.kernel.at(arrival.at_s, self._arrives, arrival)

    def _arrives(self, arrival: Arrival) -> None:
        self.submit(arrival)
        self._plan_arrival()

    # What conditions do

    def node_seen(self, name: str) -> e.NodeSeen:
        """What the node beside this engine says of it, and of its lanes: it has none over links that are cut."""
        topology = self.scheduler.fleet.topology
        cluster = self.scheduler.fleet.instances[name].cluster
        cut = {target for (source, target), link in self.links.items() if source == cluster and link.bytes_per_s <= 0}
        members = topology.instances if cut else ()
        targets = frozenset(member.name for member in members if member.cluster in cut)
        return e.NodeSeen(name, True, *self._registered(name), targets)

    def _registered(self, name: str) -> tuple[int | None, str | None, frozenset[str] | None]:
        profile = self.caches.profile
        if profile is None:
            return None, None, None
        return profile.block_tokens, self.caches.boot_id(name), frozenset(profile.kinds)

    def tell(self, event: e.Event) -> None:
        """Something has happened outside."""
        self._handle(event)

    def kill(self, name: str) -> None:
        """An engine loses what it has; an empty one takes its place, which nobody is told of yet."""
        before = self.engines[name]
        before.stop()
        self.engines[name] = Engine(self.kernel, self.deployment.profiles[name], before.gaps)
        self.engines[name].slow_down(before.slowness)
        self.caches.boot(name, self.scheduler.fleet.instances[name].cluster)
        self.dead.add(name)

    def revive(self, name: str) -> None:
        self.dead.discard(name)
        self._handle(e.EngineSeen(name, True))
        if self.caches.profile is not None:
            self._handle(self.node_seen(name))

    def prefill_breaks(self, life: Life, failure: Failure) -> None:
        """Its engine is gone, with what had not been sent."""
        life.is_prefilling, life.prompt = False, None
        self.fetch_breaks(life)
        self.tell(e.PrefillEnded(life.request_id, failure))

    def abort(self, life: Life, failure: Failure) -> None:
        """Its transfer will not land."""
        self._stop_transfer(life)
        if not life.has_landed:
            life.has_landed = True
            self.tell(e.LandingEnded(life.request_id, failure=failure))

    def link_fell(self) -> None:
        """A link carries less from now on."""
        self._telemetry.link_fell()

    def left_bytes(self, pair: tuple[str, str]) -> dict[str, int]:
        """What has not crossed yet of each transfer over this link."""
        self.links[pair].advance()
        crossing = ((life, life.transfer) for life in self.lives.values() if life.transfer is not None)
        return {
            f"t{life.number}": round(transfer.num_bytes - transfer.sent_bytes)
            for life, transfer in crossing
            if self.pair_of(life) == pair
        }

    # The scheduler's door

    def _feed(self, event: e.Event) -> None:
        """At the same time, after what is being done."""
        self.kernel.at(self.kernel.now_s, self._handle, event)

    def _handle(self, event: e.Event) -> None:
        now_s = self.kernel.now_s
        actions = self.scheduler.handle(event, now_s)
        if self._checks:
            self.scheduler.check()
        for action in actions:
            if isinstance(action, _OF_FLEET):
                self._of_fleet(action)
                continue
            life = self.lives.get(action.request_id)
            if life is not None:
                self._do[type(action)](life, action)
        self._arm()

    def _arm(self) -> None:
        due_s = self.scheduler.next_due_s
        if due_s == self._tick_due_s:
            return
        if self._tick is not None:
            self._tick.cancel()
        self._tick_due_s = due_s
        self._tick = None if due_s is None else self.kernel.at(due_s, self._tick_due)

    def _tick_due(self) -> None:
        self._tick = self._tick_due_s = None
        self._handle(e.Tick())

    # What the actions ask

    def _of_fleet(self, action: a.FleetAction) -> None:
        if isinstance(action, a.Convert):
            self.kernel.after(self.deployment.switch_s, self._switched, action)
        elif isinstance(action, a.NoteConversion) and not action.conversion.is_under_way:
            self.conversions.append(replace(action.conversion))

    def _switched(self, action: a.Convert) -> None:
        topology = self.scheduler.fleet.topology.with_duty(action.instance, action.duty)
        self._handle(e.TopologyChanged(topology))

    def _count(self, life: Life, action: a.CountPrompt) -> None:
        self._feed(e.PromptCounted(life.request_id, life.arrival.num_tokens, life.chains))

    def _reserve(self, life: Life, action: a.Reserve) -> None:
        curve = self.deployment.kv_bytes
        life.kv_bytes, life.num_skipped_tokens = curve.at(life.arrival.num_tokens), action.skip_tokens
        if action.skip_tokens:
            life.kv_bytes -= curve.at(action.skip_tokens) - curve.at(0.0)
        self._is_routed(life, action.route)
        num_bytes = max(1, round(life.kv_bytes))
        self._feed(e.LandingReserved(life.request_id, num_bytes, *self._registered(action.route.decode)))

    def _prefill(self, life: Life, action: a.Prefill) -> None:
        life.prefill, life.decode = action.instance, action.decode
        life.is_prefilling = True
        self.kernel.after(self._call_s(life), self._prefill_reaches, life, action)

    def _prefill_reaches(self, life: Life, action: a.Prefill) -> None:
        instance = action.instance
        if not life.is_prefilling:
            return
        if instance in self.failing or instance in self.dead:
            self.kernel.after(self._call_s(life), self._prefill_refused, life, instance)
            return
        engine = self.engines[instance]
        life.engine = engine
        life.prompt = Prefill(
            lambda: self._to_compute(life, engine, instance),
            on_start=lambda ends_s: self._prefill_starts(life, engine, ends_s),
            on_done=lambda: self._prefill_done(life, engine),
        )
        if action.fetch_from:
            self._fetch(life, engine, action)
        else:
            engine.prefill(life.prompt)

    def _fetch(self, life: Life, engine: Engine, action: a.Prefill) -> None:
        """The prefix first, if its source has it still; then the prompt."""
        source, num_tokens = action.fetch_from, action.num_fetched_tokens
        prompt = life.prompt
        assert prompt is not None, "who fetches has a prompt to compute"
        instances = self.scheduler.fleet.instances
        pair = instances[source].cluster, instances[action.instance].cluster
        link = self.links.get(pair) or self.back_links.get(pair)
        is_cut = link is not None and link.bytes_per_s <= 0
        is_gone = source in self.dead or source in self.failing or source not in self.engines
        if is_cut or is_gone or not self.caches.can_send(source, life.chains, num_tokens):
            engine.prefill(prompt)
            return
        delay_s = max(self._delay_s.get(pair, 0.0), self._delay_s.get((pair[1], pair[0]), 0.0))
        fetch = life.fetch = Fetch(source, num_tokens, link)

        def sent() -> None:
            self.kernel.after(delay_s, self._fetched, life, engine, fetch)

        if link is None:
            sent()
        else:
            now_s = self.kernel.now_s
            fetch.transfer = link.send(self.deployment.kv_bytes.at(num_tokens), now_s, now_s, sent)

    def _fetched(self, life: Life, engine: Engine, fetch: Fetch) -> None:
        if life.fetch is not fetch:
            return  # nobody waits for it any more
        if self.engines[life.prefill] is engine:
            self.caches.fetched(life.prefill, life.chains, fetch.num_tokens)
            life.num_fetched_tokens = fetch.num_tokens
        self.fetch_breaks(life)

    def fetch_breaks(self, life: Life) -> None:
        """Or is over: what has not come is computed."""
        fetch, life.fetch = life.fetch, None
        if fetch is None:
            return
        fetch.stop()
        if life.prompt is not None and life.is_prefilling and not life.prompt.is_over:
            self.engines[life.prefill].prefill(life.prompt)

    def _to_compute(self, life: Life, engine: Engine, instance: str) -> int:
        """Its turn has come there."""
        if self.engines[instance] is not engine:
            return life.arrival.num_tokens  # it has died, and nobody waits for this
        held = self.caches.match(instance, life.chains).reusable_prefix_tokens
        life.num_computed_tokens = max(1, life.arrival.num_tokens - held)
        return life.num_computed_tokens

    def _prefill_refused(self, life: Life, instance: str) -> None:
        if life.is_prefilling:
            life.is_prefilling = False
            failure = Failure(FallbackReason.PREFILL_HTTP_ERROR, "HTTP 500")
            if instance in self.dead:
                failure = Failure(FallbackReason.PREFILL_UNREACHABLE, "nobody listens", refused=True)
            self._handle(e.PrefillEnded(life.request_id, failure))

    def _prefill_starts(self, life: Life, engine: Engine, ends_s: float) -> None:
        if self.engines[life.prefill] is not engine:
            return  # it has died
        if self.on_prefill is not None:
            self.on_prefill(life, life.prefill, ends_s)
        link = self.links.get(self.pair_of(life))
        if link is not None and self.deployment.is_layer_wise:
            life.transfer = link.send(life.kv_bytes, self.kernel.now_s, ends_s, lambda: self._sent(life))

    def _prefill_done(self, life: Life, engine: Engine) -> None:
        if self.engines[life.prefill] is not engine or not life.is_prefilling:
            return
        now_s = self.kernel.now_s
        self.caches.computed(life.prefill, life.chains)
        self.kernel.after(self._call_s(life), self._prefill_told, life)
        link = self.links.get(self.pair_of(life))
        if link is None:
            self._sent(life)
        elif not self.deployment.is_layer_wise:
            life.transfer = link.send(life.kv_bytes, now_s, now_s, lambda: self._sent(life))

    def _prefill_told(self, life: Life) -> None:
        if life.is_prefilling:
            life.is_prefilling = False
            self._handle(e.PrefillEnded(life.request_id))

    def _sent(self, life: Life) -> None:
        life.transfer = None
        self.kernel.after(self._way_s(life), self._landed, life)

    def _landed(self, life: Life) -> None:
        # Layers that come while the prefill's answer is on its way do not end a transfer that was stopped.
        if not life.has_landed and life.request_id in self.lives:
            life.has_landed = True
            self._handle(e.LandingEnded(life.request_id, max(1, round(life.kv_bytes))))

    def _stop_prefill(self, life: Life, action: a.StopPrefill) -> None:
        if life.is_prefilling:
            life.is_prefilling = False
            if life.fetch is not None:
                self.fetch_breaks(life)
            elif life.prompt is not None and life.engine is not None:
                life.engine.drop_prefill(life.prompt)
            self._feed(e.PrefillEnded(life.request_id, _STOPPED))
        self._stop_transfer(life)
        if not life.has_landed:
            life.has_landed = True
            self._feed(e.LandingEnded(life.request_id, failure=_STOPPED))

    def _stop_transfer(self, life: Life) -> None:
        if life.transfer is not None:
            self.links[self.pair_of(life)].stop(life.transfer)
            life.transfer = None

    def _decode(self, life: Life, action: a.Decode) -> None:
        life.decode, life.attempt = action.instance, action.attempt
        if action.fallback is not None:
            life.fallback = str(action.fallback.reason)
        sequence = life.sequence = Sequence(
            life.arrival.num_output_tokens,
            on_first=lambda: self._heard(life, self._began, sequence, action.attempt),
            on_done=lambda: self._heard(life, self._ended, sequence),
        )
        delay_s = self._answer_s(life)
        if delay_s:
            self.kernel.after(delay_s, self._decode_reaches, life, action, sequence)
        else:
            self._decode_reaches(life, action, sequence)

    def _decode_reaches(self, life: Life, action: a.Decode, sequence: Sequence) -> None:
        if life.sequence is not sequence:
            return  # the engine has died meanwhile
        engine = self.engines[action.instance]
        if action.instance in self.failing or action.instance in self.dead:
            life.sequence = None
            failure = Failure(FallbackReason.DECODE_ERROR, "HTTP 500")
            if action.instance in self.dead:
                failure = Failure(FallbackReason.DECODE_UNREACHABLE, "nobody listens", refused=True)
            failed = e.DecodeFailed(life.request_id, action.attempt, failure)
            self.kernel.after(self._answer_s(life), self._handle, failed)
            return
        life.is_loaded = action.is_landed and self._still_holds_skipped(life, action.instance)
        life.num_lacked_tokens = 0
        if life.is_loaded:
            self.caches.loaded(action.instance, life.chains)
            engine.decode(sequence)
            return
        if action.is_landed:
            life.fallback = str(FallbackReason.NOT_LOADED)
            held = self.caches.match(action.instance, life.chains).attention_prefix_tokens
            life.num_lacked_tokens = life.arrival.num_tokens - held
        else:
            life.num_skipped_tokens = life.num_fetched_tokens = 0
            self._is_routed(life, action.route)
        engine.prefill(
            Prefill(
                lambda: self._to_compute(life, engine, action.instance),
                on_start=lambda ends_s: self._compute_starts(life, engine, ends_s),
                on_done=lambda: self._computed(life, engine, sequence),
            )
        )

    def _still_holds_skipped(self, life: Life, instance: str) -> bool:
        """Or the engine computes the prompt: what was left out of the transfer is gone."""
        skipped = life.num_skipped_tokens
        return not skipped or self.caches.match(instance, life.chains).skippable_tokens >= skipped

    def _computed(self, life: Life, engine: Engine, sequence: Sequence) -> None:
        if self.engines[life.decode] is engine:
            self.caches.computed(life.decode, life.chains)
        engine.decode(sequence)

    def _heard(self, life: Life, tell: Callable[..., None], *arguments: Any) -> None:
        """What the decode engine says reaches the gateway."""
        delay_s = self._answer_s(life)
        if delay_s:
            self.kernel.after(delay_s, tell, life, *arguments)
        else:
            tell(life, *arguments)

    def _compute_starts(self, life: Life, engine: Engine, ends_s: float) -> None:
        if self.on_prefill is not None and self.engines[life.decode] is engine:
            self.on_prefill(life, life.decode, ends_s)

    def _began(self, life: Life, sequence: Sequence, attempt: int) -> None:
        if life.sequence is sequence:  # or the engine has died, and this is its ghost
            life.began_s = self.kernel.now_s
            self._handle(e.AnswerBegan(life.request_id, attempt))

    def _ended(self, life: Life, sequence: Sequence) -> None:
        if life.sequence is sequence:
            life.sequence = None
            life.ended_s, life.outcome = self.kernel.now_s, "ok"
            self._handle(e.AnswerEnded(life.request_id, "ok", 200, None, life.arrival.num_output_tokens))

    def _is_routed(self, life: Life, route: Route) -> None:
        life.route, life.reason = str(route.kind), str(route.reason)
        if self.keeps_options and route.options:
            life.options = route.options

    def _refuse(self, life: Life, action: a.Refuse) -> None:
        self._is_routed(life, action.route)
        life.retry_after_s = action.retry_after_s
        if action.fallback is not None:
            life.fallback = str(action.fallback.reason)
        life.ended_s, life.outcome = self.kernel.now_s, "unavailable"
        self._feed(e.AnswerEnded(life.request_id, "unavailable", 503))

    def _settle(self, life: Life, action: a.SettleLanding) -> None:
        if life.is_loaded:
            record = e.FinalRecord("consumed", None, life.arrival.num_tokens - 1, 1)
        else:
            record = e.FinalRecord("aborted", None, 0, life.num_lacked_tokens or None)
        self._feed(e.LandingSettled(life.request_id, record))

    def _drop(self, life: Life, action: a.DropLanding) -> None:
        self._feed(e.LandingDropped(life.request_id))

    def _close(self, life: Life, action: a.Close) -> None:
        del self.lives[life.request_id]
        # What it held is as large as itself, and some runs keep every life.
        life.prompt = life.engine = life.transfer = life.fetch = life.sequence = None
        life.chains = NO_CHAINS
        self._on_end(life)

    # The ways between clusters

    def pair_of(self, life: Life) -> tuple[str, str]:
        """The clusters that its KVCache leaves and reaches."""
        instances = self.scheduler.fleet.instances
        return instances[life.prefill].cluster, instances[life.decode].cluster

    def _way_s(self, life: Life) -> float:
        return self._delay_s.get(self.pair_of(life), 0.0)

    def _call_s(self, life: Life) -> float:
        """From the gateway to the engine that prefills for another, or back."""
        return self._way_s(life) + self._gateway_delay_s[self.pair_of(life)[0]]

    def _answer_s(self, life: Life) -> float:
        """From the gateway to the engine that answers, or back."""
        return self._gateway_delay_s[self.scheduler.fleet.instances[life.decode].cluster]
