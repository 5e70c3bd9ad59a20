"""The instances of a world, and what happens to them: deaths, stalls, members that come, go, move and change duty."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from prfaas.core.control import events as e
from prfaas.core.control.request import LandingPhase
from prfaas.core.control.router import RoutePolicy
from prfaas.core.topology import Duty, Instance
from prfaas.sim.kernel import Kernel
from prfaas.testing.control_world import shapes
from prfaas.testing.control_world.dice import Dice
from prfaas.testing.control_world.gateway import Gateway
from prfaas.testing.control_world.menu import Fault, Upset
from prfaas.testing.control_world.site import KINDS, Site

#: An instance that has left is switched off so much later.
LINGER_S: Final = 20.0
THRESHOLDS: Final = (0, 200, 1_500, 10_000)
#: With a model the threshold moves by itself.
MODELS: Final = (None, shapes.MODEL)
#: Landing phases in which something of a request is on its node.
_ON_NODE: Final = (LandingPhase.ASKED, LandingPhase.ABANDONED, LandingPhase.HELD, LandingPhase.SETTLING,
                   LandingPhase.DROPPING)  # fmt: skip


class Deployment:
    """`gateway` is asked each time: it has several lives."""

    def __init__(self, kernel: Kernel, dice: Dice, beginning: int, gateway: Callable[[], Gateway]) -> None:
        self._kernel, self._dice, self._gateway = kernel, dice, gateway
        self._upsets: Final = (
            self._engine_dies, self._engine_dies, self._some_node_dies, self._some_node_dies, self.power_cut,
            self._link_stalls, self._joins, self._joins, self._leaves, self._converts, self._moves,
            self._policy_changes,
        )  # fmt: skip
        self._number = 0
        self._stalled_until_s: dict[str, float] = {}
        #: Every site that ever was, in order of their coming; and those of the present members by name.
        self.sites: list[Site] = []
        self._by_name: dict[str, Site] = {}
        members = tuple(self._build(shapes.member(*who)) for who in shapes.BEGINNINGS[beginning])
        self.policy = RoutePolicy(True, dice.random.choice(THRESHOLDS[:3]), dice.random.choice(MODELS))
        self.topology = shapes.topology(members)

    def site(self, name: str) -> Site:
        """Also of a member that has left, until another of that name comes."""
        return self._by_name[name]

    def stall_left_s(self, source: Site) -> float:
        """How much longer nothing comes over the links from there."""
        return self._stalled_until_s.get(source.cluster, 0.0) - self._kernel.now_s

    def upset(self) -> None:
        """One thing happens to the deployment."""
        what = self._dice.random.choice(self._upsets)
        what()

    def heal(self) -> None:
        """Everything works from now on."""
        self._stalled_until_s.clear()
        for site in self.sites:
            if not site.engine_up:
                site.start_engine()
            if not site.node_up:
                site.start_node()
            site.register()

    # Deaths

    def _engine_dies(self) -> None:
        self.engine_dies(self.site(self._dice.random.choice(self.topology.instances).name))

    def power_cut(self) -> None:
        """Every engine that decodes dies at once, and the gateway hears of it at once."""
        gateway = self._gateway()
        gateway.coverage.upsets[Upset.POWER_CUT] += 1
        for instance in self.topology.decoders:
            self.engine_dies(self.site(instance.name), 1.5)
            gateway.feed(e.EngineSilent(instance.name, refused=True))

    def engine_dies(self, site: Site, max_down_s: float = 6.0) -> None:
        """And begins a new life soon."""
        if not site.engine_up:
            return
        gateway = self._gateway()
        self._note(f"the engine of {site.url} dies")
        for account in list(gateway.books.accounts.values()):
            if account.decode_at == site.name:
                gateway.met(Fault.DECODE_ENGINE_DIES, account.request_id)
        gateway.books.unsteady(site.name)
        site.kill_engine()
        self._kernel.after(self._dice.random.uniform(0.3, max_down_s), lambda: self._starts(site))

    def _starts(self, site: Site) -> None:
        if not site.engine_up:
            site.start_engine()
        self._kernel.after(self._dice.random.uniform(0.05, 1.5), site.register)

    def _some_node_dies(self) -> None:
        self.node_dies(self.site(self._dice.random.choice(self.topology.instances).name))

    def node_dies(self, site: Site) -> None:
        """And begins a new life soon."""
        if not site.node_up:
            return
        gateway = self._gateway()
        self._note(f"the node of {site.url} dies")
        for account in list(gateway.books.accounts.values()):
            request = gateway.scheduler.requests.get(account.request_id)
            if account.landing_url == site.url and request is not None and request.landing in _ON_NODE:
                gateway.met(Fault.RECEIVING_NODE_DIES, account.request_id)
        site.kill_node()
        self._kernel.after(self._dice.random.uniform(0.1, 5.0), lambda: self._node_starts(site))

    def _node_starts(self, site: Site) -> None:
        site.start_node()
        self._kernel.after(self._dice.random.uniform(0.05, 1.2), site.register)

    def _link_stalls(self) -> None:
        cluster = self._dice.random.choice(("west", "pd"))
        self._stalled_until_s[cluster] = self._kernel.now_s + self._dice.random.uniform(1.0, 14.0)
        self._note(f"links from {cluster} stall until {self._stalled_until_s[cluster]:.3f}")

    # Changes of the topology

    def _joins(self) -> None:
        names = {instance.name for instance in self.topology.instances}
        newcomers = [(name, duty) for name, duty in shapes.NEWCOMERS if name not in names]
        if newcomers:
            instance = shapes.member(*self._dice.random.choice(newcomers))
            if self._by_name.get(instance.name) is None or self._dice.chance(0.5):
                instance = self._build(instance)
            else:
                instance = self._as_before(instance)
            self._changes(Upset.JOINS, (*self.topology.instances, instance))

    def departs(self, name: str) -> None:
        """A member leaves, or gets another duty, if it is one still."""
        for instance in self.topology.instances:
            if instance.name == name and self._dice.chance(0.5):
                self._leaves(instance)
            elif instance.name == name:
                self._converts(instance)

    def _leaves(self, gone: Instance | None = None) -> None:
        gone = gone or self._dice.random.choice(self.topology.instances)
        site = self.site(gone.name)
        if self._changes(Upset.LEAVES, tuple(i for i in self.topology.instances if i is not gone)):
            self._kernel.after(LINGER_S, lambda: self._switched_off(site))

    def _switched_off(self, site: Site) -> None:
        if any(self.site(instance.name) is site for instance in self.topology.instances):
            return
        if site.engine_up:
            site.kill_engine()
        if site.node_up:
            site.kill_node()

    def _converts(self, chosen: Instance | None = None) -> None:
        """No PrfaaS instance has another duty than to prefill."""
        chosen = chosen or self._dice.random.choice(self.topology.instances)
        if chosen.cluster != "pd":
            return
        duty = self._dice.random.choice([duty for duty in Duty if duty is not chosen.duty])
        self._changes(Upset.CONVERTS, self._with(chosen, replace(chosen, duty=duty)))

    def converts_to(self, name: str, duty: Duty) -> bool:
        """As the gateway wants it. False if it is not there any more, or must stay as it is."""
        for instance in self.topology.instances:
            if instance.name == name:
                return self._changes(Upset.CONVERTS, self._with(instance, replace(instance, duty=duty)))
        return False

    def _moves(self) -> None:
        chosen = self._dice.random.choice(self.topology.instances)
        before = self.site(chosen.name)
        if self._changes(Upset.MOVES, self._with(chosen, self._build(chosen))):
            self._kernel.after(LINGER_S, lambda: self._switched_off(before))

    def _policy_changes(self) -> None:
        random = self._dice.random
        self.policy = RoutePolicy(random.random() < 0.9, random.choice(THRESHOLDS), random.choice(MODELS))
        self._gateway().coverage.upsets[Upset.POLICY_CHANGES] += 1
        self._gateway().feed(e.PolicyChanged(self.policy))

    def _with(self, old: Instance, new: Instance) -> tuple[Instance, ...]:
        return tuple(new if instance is old else instance for instance in self.topology.instances)

    def _changes(self, upset: Upset, members: tuple[Instance, ...]) -> bool:
        """False if a deployment file with these members would be refused."""
        if not any(instance.duty.decodes for instance in members):
            return False
        before, self.topology = self.topology, shapes.topology(members)
        self._note(f"{upset}: " + ", ".join(f"{i.name} {i.duty} {i.engine_url}" for i in members))
        gateway = self._gateway()
        gateway.coverage.upsets[upset] += 1
        decoders = {instance.name: instance for instance in self.topology.decoders}
        for instance in before.decoders:
            now = decoders.get(instance.name)
            if now is None or now.engine_url != instance.engine_url:
                gateway.books.unsteady(instance.name)
        gateway.feed(e.TopologyChanged(self.topology))
        return True

    def _build(self, instance: Instance) -> Instance:
        """A new site for this member, at a URL of its own."""
        self._number += 1
        random = self._dice.random
        site = Site(
            instance.name, instance.cluster, self._number, random.choice(shapes.BLOCK_SIZES), random.choice(KINDS)
        )
        self.sites.append(site)
        self._by_name[instance.name] = site
        return shapes.moved(instance, self._number)

    def _as_before(self, instance: Instance) -> Instance:
        site = self._by_name[instance.name]
        if not site.engine_up:
            self._starts(site)
        if not site.node_up:
            self._node_starts(site)
        return shapes.moved(instance, int(site.url.rpartition(".")[2]))

    def _note(self, text: str) -> None:
        self._gateway().storybook.note(self._kernel.now_s, "", "upset", text)
