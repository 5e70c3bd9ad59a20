"""A whole world: clients, one gateway with the shipped control core, and a deployment under it. Drawn from one seed.

A run has two parts. While clients come, everything fails that can. Then the world is whole again, and must become
quiet: no request, landing or lease is left, no count stands above zero, no timer means anything.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from prfaas.core.control import actions as a
from prfaas.core.control import events as e
from prfaas.core.control.lifecycle import TransferTerms
from prfaas.core.control.router import RoutePolicy
from prfaas.core.control.scheduler import Scheduler
from prfaas.core.topology import Topology
from prfaas.sim.draws import exponential
from prfaas.sim.kernel import Kernel
from prfaas.testing.control_world import answers, shapes, transfers
from prfaas.testing.control_world.deployment import Deployment
from prfaas.testing.control_world.dice import Dice
from prfaas.testing.control_world.eager import EagerScheduler
from prfaas.testing.control_world.gateway import Gateway, Job, Performers
from prfaas.testing.control_world.menu import Coverage, Fault, Upset
from prfaas.testing.control_world.storybook import LawBroken, Storybook

TERMS: Final = TransferTerms(deadline_s=12.0, lease_s=9.0)
PERFORMERS: Final[Performers] = {
    a.CountPrompt: answers.count_prompt,
    a.Decode: answers.decode,
    a.Refuse: answers.refuse,
    a.Reserve: transfers.reserve,
    a.Prefill: transfers.prefill,
    a.AwaitLanding: transfers.await_landing,
    a.StopPrefill: transfers.stop_prefill,
    a.RenewLease: transfers.renew_lease,
    a.SettleLanding: transfers.settle_landing,
    a.DropLanding: transfers.drop_landing,
}

PROBE_EVERY_S: Final = 1.0
EXPIRE_EVERY_S: Final = 0.5
#: Longer than any work: after so many quiet seconds nothing can still be going on.
QUIET_S: Final = 120.0

MakeScheduler = Callable[[Topology, RoutePolicy, TransferTerms], Scheduler]


@dataclass(frozen=True)
class Setting:
    """`trouble` is the chance of each fault where it can strike. Rates are per second."""

    num_lives: int = 2_000
    trouble: float = 0.03
    arrivals_per_s: float = 16.0
    upsets_per_s: float = 0.4
    gateway_deaths_per_s: float = 0.02


class World:
    """`run` raises WorldFailed. What it met is in `coverage`, what happened in `storybook`."""

    def __init__(
        self, seed: int, setting: Setting | None = None, make_scheduler: MakeScheduler = EagerScheduler
    ) -> None:
        self.seed, self.setting = seed, setting or Setting()
        self.random = random.Random(seed)
        self.kernel = Kernel()
        self.dice = Dice(self.random, self.setting.trouble)
        self.coverage, self.storybook = Coverage(), Storybook()
        self._make_scheduler = make_scheduler
        self._num_arrived = self._num_lives = 0
        self._is_open = self._is_probing = True
        beginning = seed % len(shapes.BEGINNINGS)
        self.deployment = Deployment(self.kernel, self.dice, beginning, lambda: self.gateway)
        self._start_gateway()

    def run(self) -> None:
        """All lives, then silence."""
        # By then every instance has been seen, if nothing goes wrong.
        self.kernel.after(PROBE_EVERY_S, self._every, 1.0 / self.setting.arrivals_per_s, self._client_comes)
        self._every(1.0 / self.setting.upsets_per_s, self.deployment.upset)
        self._every(1.0 / self.setting.gateway_deaths_per_s, self._gateway_dies)
        self.kernel.after(0.0, self._nodes_tick)
        try:
            self._live()
            self._become_quiet()
        except LawBroken as broken:
            raise self.storybook.failed(self.seed, broken) from broken
        except AssertionError as error:
            raise self.storybook.failed(self.seed, LawBroken("ledger", "", str(error))) from error

    # The two parts

    def _live(self) -> None:
        while self._num_arrived < self.setting.num_lives:
            assert self.kernel.step(), "the world stands still"

    def _become_quiet(self) -> None:
        self._is_open = False
        self.dice.trouble = 0.0
        self.deployment.heal()
        until_s = self.kernel.now_s + QUIET_S
        while self.kernel.now_s < until_s:
            assert self.kernel.step(), "the world stands still"
        if self.gateway.scheduler.converter.current is not None:
            raise LawBroken("quiet", "", f"a conversion is still under way: {self.gateway.scheduler.converter.current}")
        self._is_probing = False
        while self.kernel.step():
            pass
        self._check_quiet()

    def _check_quiet(self) -> None:
        scheduler = self.gateway.scheduler
        for request_id, request in scheduler.requests.items():
            raise LawBroken("quiet", request_id, f"it is left in {request.state} with a landing {request.landing}")
        for request_id in self.gateway.books.accounts:
            raise LawBroken("quiet", request_id, "it was never closed")
        for name, instance in scheduler.fleet.instances.items():
            if instance.num_inflight or instance.num_landings or instance.is_draining:
                raise LawBroken("quiet", "", f"something is left of {name}")
        while (due_s := scheduler.next_due_s) is not None:
            if scheduler.handle(e.Tick(), max(due_s, self.kernel.now_s)):
                raise LawBroken("quiet", "", "a timer is left that means something")
        for site in self.deployment.sites:
            site.check()
            if site.arena.num_live:
                raise LawBroken("quiet", "", f"{site.url} still holds {site.ledger.count_by_state()}")

    # Clients

    def _client_comes(self) -> None:
        if not self._is_open or self._num_arrived >= self.setting.num_lives:
            return
        self._num_arrived += 1
        draw = self.random
        request_id = f"g{self._num_lives}-r{self._num_arrived}"
        family, num_tokens = draw.randrange(shapes.NUM_FAMILIES), draw.randint(1, shapes.MAX_PROMPT_TOKENS)
        if self.dice.chance(0.2):
            num_tokens = min(num_tokens, draw.randint(1, 600))
        over_long, countable = self.dice.strikes(), not self.dice.strikes()
        job = Job(request_id, f"{request_id}/t", num_tokens, partial(shapes.chains, family), over_long, countable)
        at_most = num_tokens if self.dice.chance(0.5) else num_tokens + draw.randint(0, 4000)
        obstacle = "echo" if self.dice.chance(0.03) else None
        fits = not over_long and self.dice.chance(0.9)
        self.gateway.arrive(job, e.RequestArrived(request_id, job.transfer_id, at_most, fits, obstacle))
        gateway = self.gateway
        if self.dice.strikes(4.0):
            self._leaves_after(gateway, request_id, "cancelled", Fault.CLIENT_LEAVES)
        elif self.dice.strikes(4.0):
            self._leaves_after(gateway, request_id, "timeout", Fault.REQUEST_TIMES_OUT)

    def _leaves_after(self, gateway: Gateway, request_id: str, outcome: str, fault: Fault) -> None:
        """Short phases are met as often as long ones."""
        delay_s = self.random.choice((0.01, 0.05, 0.3, 2.0, 10.0)) * self.random.random()
        self.kernel.after(delay_s, lambda: gateway.abandon(request_id, outcome, fault))

    # The gateway's lives

    def _start_gateway(self) -> None:
        self._num_lives += 1
        scheduler = self._make_scheduler(self.deployment.topology, self.deployment.policy, TERMS)
        self.gateway = Gateway(
            self.kernel,
            self.dice,
            self.deployment,
            scheduler,
            self.storybook,
            self.coverage,
            PERFORMERS,
            TERMS.deadline_s,
        )
        self._probe(self.gateway)

    def _gateway_dies(self) -> None:
        if not self._is_open:
            return
        for request_id in list(self.gateway.books.accounts):
            self.gateway.met(Fault.GATEWAY_DIES, request_id)
        self.storybook.note(self.kernel.now_s, "", "upset", "the gateway dies and begins anew")
        self.gateway.die()
        self._start_gateway()

    # Probes

    def _probe(self, gateway: Gateway) -> None:
        """Everything, again and again, as long as this gateway lives."""
        if gateway.is_dead or not self._is_probing:
            return
        for instance in self.deployment.topology.instances:
            self.kernel.after(
                self.random.random() * PROBE_EVERY_S / 2, partial(self._probe_one, gateway, instance.name)
            )
        self.kernel.after(PROBE_EVERY_S, lambda: self._probe(gateway))

    def _probe_one(self, gateway: Gateway, name: str) -> None:
        if all(instance.name != name for instance in self.deployment.topology.instances):
            return
        site, delay_s = self.deployment.site(name), self.random.uniform(0.0, 0.05)
        engine, node, link = self._engine_seen(name), self._node_seen(name), self._link_seen(name)

        def told() -> None:
            if self.deployment.site(name) is site:
                for event in (engine, node, link):
                    gateway.feed(event)

        self.kernel.after(delay_s, told)

    def _engine_seen(self, name: str) -> e.Event:
        site = self.deployment.site(name)
        if self.dice.strikes():
            self.coverage.upsets[Upset.ENGINE_PROBE_LOST] += 1
            return e.EngineSilent(name, refused=False)
        if not site.engine_up:
            return e.EngineSilent(name, refused=self.dice.chance(0.7))
        healthy = not self.dice.strikes(0.3)
        self.coverage.upsets[Upset.ENGINE_UNHEALTHY] += not healthy
        return e.EngineSeen(name, healthy, len(site.legs) if self.dice.chance(0.8) else None)

    def _node_seen(self, name: str) -> e.Event:
        site = self.deployment.site(name)
        if self.dice.strikes():
            self.coverage.upsets[Upset.NODE_PROBE_LOST] += 1
            return e.NodeSilent(name)
        if not site.node_up:
            return e.NodeSilent(name)
        if not site.has_engine:
            return e.NodeSeen(name, has_engine=False)
        cut_off: frozenset[str] = frozenset()
        if self.deployment.stall_left_s(site) > 0.0 and self.dice.chance(0.5):
            cut_off = frozenset(instance.name for instance in self.deployment.topology.decoders)
        return e.NodeSeen(name, True, site.block_tokens, site.boot_id, site.kinds, cut_off)

    def _link_seen(self, name: str) -> e.Event:
        if self.dice.strikes():
            self.coverage.upsets[Upset.LINKS_LOST] += 1
            return e.LinksLost(name)
        verdict, capacity = self.random.choice(("clear", "pressed", "congested")), self.random.choice((1e3, 1e9))
        return e.LinkSeen(name, "pd-0", verdict, capacity, self.random.choice((0, 0, 10_000)), 0.0)

    # Nodes

    def _nodes_tick(self) -> None:
        self.gateway.books.check_times(self.kernel.now_s)
        for site in self.deployment.sites:
            for landing in site.expire(self.kernel.now_s):
                request_id = landing.transfer_id.removesuffix("/t")
                own = request_id.startswith(f"g{self._num_lives}-")
                if own and landing.transfer_id not in site.orphans:
                    self.gateway.books.expired(request_id, landing)
            site.check()
        if self._is_probing:
            self.kernel.after(EXPIRE_EVERY_S, self._nodes_tick)

    def _every(self, mean_s: float, thunk: Callable[[], None]) -> None:
        def happens() -> None:
            if self._is_open:
                thunk()
                self._every(mean_s, thunk)

        self.kernel.after(exponential(self.random, 1.0 / mean_s), happens)
