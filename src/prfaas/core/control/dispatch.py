"""The fast timescale: where each prompt is prefilled, and when it is bound to an instance.

Laws of this file:
- An instance gets its next prompt a handover before it is expected to be done, and a round trip earlier in another
  cluster, or where the gateway is not beside it.
- A prompt goes the cheapest way (see `options`). If that leads to instances that prefill for others, it waits in their
  cluster's queue until one of them is nearly done, and only then is bound to an instance and to a landing. It waits for
  one that holds a part of it while others are idle, if that is sooner.
- Nor is it bound while the link that it needs has enough to do.
- What waits goes elsewhere if that has become cheaper by more than `MOVES_FOR` of what is left. It is looked at when
  instances of another cluster have nothing to do, when a link falls, and every `LOOKS_EVERY_S`; and if nobody works in
  its own cluster any more, it goes at once.
- What already crosses is given up if the decode side computes the prompt much sooner (see `giving_up`): looked at when
  the link falls, and with every word of a sender that bytes do not arrive in time. So nothing is sent there for which
  that holds from the beginning.
- Work that was added somewhere is removed there, whatever happens to the instance meanwhile.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final

from prfaas.core.control import events as e
from prfaas.core.control.answers import Answers
from prfaas.core.control.capacity import counts_now, prefill_stages
from prfaas.core.control.estimates import Estimates
from prfaas.core.control.fleet import Fleet
from prfaas.core.control.giving_up import is_sooner_here
from prfaas.core.control.instance import Instance
from prfaas.core.control.link_rates import Pair
from prfaas.core.control.options import HANDOVER_S, cheapest
from prfaas.core.control.placer import Placer
from prfaas.core.control.queues import Queue
from prfaas.core.control.request import Crossing, Request, RequestState
from prfaas.core.control.route import Ahead, Option, Prompt, RouteKind
from prfaas.core.control.router import RoutePolicy
from prfaas.core.control.threshold import Stage

#: A clock of floats falls a hair short.
_CLOCK_S: Final = 1e-6
#: A link gets more work while it has less than this to do: enough to stay busy while the next prompt is prefilled. What
#: is beyond that waits where it can still go elsewhere.
LINK_AHEAD_S: Final = 5.0
#: Estimates err; who has waited loses its place only for more than this share of what it would still take.
MOVES_FOR: Final = 0.2
#: A link that carries so many times what it had fallen to is news for the split; less is a hope that may be wrong.
IS_BACK: Final = 4.0
#: An instance with nothing to do asks those who wait elsewhere again so soon.
TAKES_OVER_EVERY_S: Final = 0.25
#: Engines that are slower than expected show in no event.
LOOKS_EVERY_S: Final = 1.0
#: Of a queue's beginning and of its end, so many are looked at when others could take one.
_LOOKED_AT: Final = 16
#: When a link falls, at most so many of a queue are looked at, which takes a tenth of a millisecond each.
_LOOKED_AT_WHEN_A_LINK_FALLS: Final = 256


class Dispatch:
    """Of one scheduler whose policy is `prfaas`."""

    def __init__(self, fleet: Fleet, requests: dict[str, Request], policy: RoutePolicy) -> None:
        assert policy.model is not None, "without a model nothing can be compared"
        self._fleet = fleet
        self._requests = requests
        self.may_offload = policy.offload
        self._choose, self._binds_late = policy.choose, policy.binds_late
        #: How others choose moves nothing that waits.
        self._moves = policy.choose is None
        self.estimates = Estimates(policy.model, policy.threshold_tokens)
        self.estimates.links.apply(fleet.topology)
        self.queues: dict[str, Queue] = {}
        #: What is still to cross, by source and target cluster; and that part of it for which an instance was chosen.
        self.link_bytes: dict[tuple[str, str], float] = {}
        self._bound_bytes: dict[tuple[str, str], float] = {}
        #: Prompts that wait, by the cluster that will answer.
        self.num_waiting: Counter[str] = Counter()
        #: In all queues: most events happen while nobody waits.
        self._num_queued = 0
        self.answers = Answers()
        self._placer = Placer(fleet, self.estimates, self.queues, self.link_bytes, self.num_waiting, self.answers,
                              may_fetch=policy.may_fetch)  # fmt: skip
        #: Clusters in which something has changed since their queue was looked at.
        self._changed: set[str] = set()
        self._due_s: dict[str, float] = {}
        self._takes_over_s: dict[str, float] = {}
        self._looks_s: float | None = None
        #: The first of both: looked up after every event, and moved by turns alone.
        self.next_due_s: float | None = None
        #: So many of each queue are to be looked at now.
        self._looks_at = 0
        #: Links that have become slow since, in that order.
        self._fallen: dict[Pair, None] = {}
        #: What those that fell carried when the split was last forgotten for that.
        self._solved_for: dict[Pair, float] = {}

    # One request

    def options(self, request: Request, now_s: float) -> list[Option]:
        """The ways that it has."""
        return self._ways(_prompt_of(request), now_s)

    def is_like(self, policy: RoutePolicy) -> bool:
        """Whether it chooses in the same way."""
        may_fetch = self._placer.fetching is not None
        return (self._choose, self._binds_late, may_fetch) == (policy.choose, policy.binds_late, policy.may_fetch)

    def chosen(self, request: Request, options: list[Option]) -> Option:
        """The way that it goes."""
        return cheapest(options) if self._choose is None else self._choose(options, _prompt_of(request))

    def options_of(self, num_tokens: int, now_s: float) -> list[Option]:
        """Of a prompt of so many tokens of which nothing is cached."""
        return self._ways(Prompt(num_tokens, {}), now_s)

    def _ways(self, prompt: Prompt, now_s: float) -> list[Option]:
        found = self._placer.options(prompt, now_s)
        if not self.may_offload:
            return [option for option in found if option.kind is not RouteKind.REMOTE]
        here = {option.decode_cluster for option in found if option.kind is RouteKind.LOCAL}
        if not here or not self.estimates.links.some_are_slow:
            return found
        return [o for o in found if o.decode_cluster not in here or not self._is_sent_in_vain(o, prompt, now_s)]

    def _ways_by(self, cluster: str, prompt: Prompt, now_s: float) -> list[Option]:
        """Those on which instances of this cluster prefill it for others."""
        if self.estimates.links.some_are_slow:
            # What is sent in vain is so beside the other ways.
            found = self._ways(prompt, now_s)
            return [o for o in found if o.prefill_cluster == cluster and o.kind is not RouteKind.LOCAL]
        found = self._placer.options_by(cluster, prompt, now_s)
        return found if self.may_offload else [o for o in found if o.kind is not RouteKind.REMOTE]

    def _is_sent_in_vain(self, option: Option, prompt: Prompt, now_s: float) -> bool:
        pair = option.prefill_cluster, option.decode_cluster
        if option.kind is not RouteKind.REMOTE or not self.estimates.links.is_slow(pair):
            return False
        skip_tokens = prompt.num_tokens - option.num_uncached_tokens
        num_bytes = self.link_bytes.get(pair, 0.0) + self.estimates.kv_bytes(prompt.num_tokens, skip_tokens)
        bytes_per_s = self.estimates.links.bytes_per_s(pair, now_s)
        lands_s = num_bytes / bytes_per_s if bytes_per_s > 0 else math.inf
        decoders = self._fleet.working_decoders(pair[1])
        return is_sooner_here(self.estimates, decoders, option.num_uncached_tokens, lands_s, now_s)

    def arrived(self, option: Option, now_s: float) -> None:
        """A prompt has come whose cheapest way is this."""
        self.estimates.lengths.saw(option.num_uncached_tokens, now_s)
        self.estimates.solve_if_due(self._stages, now_s)

    def _stages(self, now_s: float) -> tuple[list[Stage], list[Stage]]:
        return prefill_stages(self._fleet, self.estimates, counts_now(self._fleet), now_s)

    def wait(self, request: Request, option: Option) -> None:
        """It waits in a cluster's queue from now on."""
        request.option = option
        self._queue(option.prefill_cluster).push(
            request.request_id, option.prefill_s, priority=request.arrived.priority, tenant=request.arrived.tenant
        )
        self.num_waiting[option.decode_cluster] += 1
        self._num_queued += 1
        self._changed.add(option.prefill_cluster)
        if option.kind is RouteKind.REMOTE:
            assert request.num_prompt_tokens is not None, "only counted prompts are placed"
            skip_tokens = request.num_prompt_tokens - option.num_uncached_tokens
            num_bytes = self.estimates.kv_bytes(request.num_prompt_tokens, skip_tokens)
            self._crosses(request, (option.prefill_cluster, option.decode_cluster), num_bytes)

    def works(self, request: Request, instance: Instance, num_tokens: int, now_s: float) -> None:
        """The instance has been given its prompt."""
        self._stops(request, now_s)
        fetches_s, num_fetched = self._fetches(request, instance, now_s)
        if num_fetched:
            num_tokens = max(1, (request.num_prompt_tokens or 1) - num_fetched)
        expected_s = fetches_s + self.estimates.prefill_s(instance.cluster, num_tokens)
        instance.work.add(request.request_id, expected_s, now_s)
        request.works_at, request.num_work_tokens = instance, num_tokens

    def _fetches(self, request: Request, instance: Instance, now_s: float) -> tuple[float, int]:
        """How long it waits for what it fetches first, and how many tokens those are."""
        route, fetching = request.route, self._placer.fetching
        source = None if route is None else self._fleet.instances.get(route.fetch_from)
        if route is None or source is None or fetching is None or instance.name != route.prefill:
            return 0.0, 0
        return fetching.begins(source, instance, route.num_fetched_tokens, now_s), route.num_fetched_tokens

    def worked(self, request: Request, now_s: float, *, is_done: bool) -> float | None:
        """The instance computes it no more. `is_done`: to its end, so that its time says something: returns it over the
        time that was expected of its cluster. Idempotent."""
        instance, num_tokens = request.works_at, request.num_work_tokens
        has_fetched = request.route is not None and bool(request.route.fetch_from)
        taken_s = self._stops(request, now_s)
        if not is_done or instance is None or taken_s is None or not instance.duty.prefills or has_fetched:
            return None  # an engine that only decodes, or fetches first, is late for other reasons than its speed
        if request.landing_beside is not None and request.prefill_instance is instance:
            taken_s -= self._fleet.rtt_s(instance.cluster, request.landing_beside.cluster)
            taken_s -= self._fleet.gateway_rtt_s(instance.cluster)
        if taken_s <= 0:
            return None
        ratio = taken_s / self.estimates.prefill_s(instance.cluster, num_tokens)
        self.estimates.saw_prefill(instance.cluster, num_tokens, taken_s)
        return ratio

    def begins(self, request: Request, now_s: float) -> None:
        """Its landing is there, and its prompt is on its way to the instance."""
        if request.works_at is not None:
            request.works_at.work.begins(request.request_id, now_s)

    def leaves_queue(self, request: Request, *, is_served: bool = False) -> None:
        """Its turn has come, or it gives up. Idempotent."""
        queue = None if request.option is None else self.queues.get(request.option.prefill_cluster)
        if queue is not None and queue.remove(request.request_id, is_served=is_served):
            assert request.option is not None, "what waits has an option"
            self.num_waiting[request.option.decode_cluster] -= 1
            self._num_queued -= 1

    def bound(self, request: Request) -> None:
        """An instance prefills it from now on."""
        self.leaves_queue(request, is_served=True)
        crossing = request.crossing
        if crossing is not None:
            crossing.is_bound = True
            self._bound_bytes[crossing.pair] = self._bound_bytes.get(crossing.pair, 0.0) + crossing.num_bytes

    def left(self, request: Request) -> None:
        """It waits nowhere and crosses nothing any more. Idempotent."""
        self.leaves_queue(request)
        self.crossed(request)

    def crossed(self, request: Request) -> None:
        """Its KVCache has landed, or will not. Idempotent."""
        crossing, request.crossing = request.crossing, None
        if crossing is None:
            return
        _take_off(self.link_bytes, crossing)
        if crossing.is_bound:
            _take_off(self._bound_bytes, crossing)
            self._changed.add(crossing.pair[0])

    def release(self) -> list[str]:
        """Forget every request, for another policy. Returns those that wait."""
        for request in self._requests.values():
            self._stops(request, 0.0)
            request.crossing = None
        self.link_bytes.clear()
        self._bound_bytes.clear()
        waiting = [request_id for queue in self.queues.values() for request_id in queue]
        self.queues.clear()
        self.num_waiting.clear()
        self._num_queued = 0
        return waiting

    def adopt(self, request: Request, now_s: float) -> None:
        """A request that another policy has sent on its way. What it has been at for long counts from now."""
        if request.prefill and request.prefill_instance is not None:
            instance = request.prefill_instance
        elif request.state is RequestState.COMPUTING and request.decode_instance is not None:
            instance = request.decode_instance
        else:
            return
        num_tokens = request.num_prompt_tokens
        if num_tokens is None:
            return
        self.works(request, instance, num_tokens, now_s)
        if request.state in (RequestState.RESERVING, RequestState.PREFILLING) and request.landing_beside is not None:
            pair = instance.cluster, request.landing_beside.cluster
            if pair[0] != pair[1]:
                self._crosses(request, pair, self.estimates.kv_bytes(num_tokens, request.skip_tokens))
                self.bound(request)

    # The world

    def saw(self, event: e.Event, now_s: float, *, has_changed: bool) -> None:
        """Something has happened that is no request's. `has_changed`: who can be used, or reached, is another now."""
        if isinstance(event, e.LinkSeen):
            source, target = (self._fleet.instances.get(name) for name in (event.source, event.target))
            if source is None or target is None:
                return
            self._saw_link((source.cluster, target.cluster), event, now_s)
            return
        if isinstance(event, e.LinksLost):
            self.estimates.links.lost(event.source)
            return
        if isinstance(event, e.TopologyChanged):
            self.estimates.links.apply(event.topology)
        if has_changed:
            self.fleet_changed()

    def _saw_link(self, pair: Pair, event: e.LinkSeen, now_s: float) -> None:
        links = self.estimates.links
        if links.saw(pair, event, now_s):
            self._looks_at = _LOOKED_AT_WHEN_A_LINK_FALLS
            self._fallen[pair] = None
            self._solved_for[pair] = links.bytes_per_s(pair, now_s)
            self.estimates.forget_split()
            self.estimates.solve_if_due(self._stages, now_s)
            return
        if event.arrives_bytes_per_s is not None:
            self._fallen[pair] = None
        solved_for = self._solved_for.get(pair)
        if solved_for is not None and (bytes_per_s := links.bytes_per_s(pair, now_s)) >= solved_for:
            is_whole = not links.is_slow(pair)
            if is_whole or bytes_per_s > IS_BACK * solved_for:
                # Where few ask, it would be long until it is solved anew by itself.
                self.estimates.forget_split()
                self._solved_for[pair] = bytes_per_s
            if is_whole:
                del self._solved_for[pair]

    def fleet_changed(self) -> None:
        """Who can be used, or reached, is another now."""
        self.estimates.forget_split()
        self._changed.update(self.queues)

    def tick(self, now_s: float) -> None:
        due = [cluster for cluster, due_s in self._due_s.items() if due_s <= now_s]
        for cluster in due:
            del self._due_s[cluster]
        self._changed.update(due)
        if self._looks_s is not None and self._looks_s <= now_s:
            self._looks_at = max(self._looks_at, _LOOKED_AT)

    def turns(self, now_s: float) -> Iterable[e.TurnCame | e.DeadlinePassed]:
        """Requests that need wait no more, and those whose KVCache would cross for too long. Each must leave its queue,
        or its link, before the next is asked for."""
        if self._changed or self._looks_at or self._fallen:
            return self._all_turns(now_s)
        if (self._looks_s is None) is (self._num_queued > 0):
            self._look_later(now_s)
        return ()

    def _all_turns(self, now_s: float) -> Iterator[e.TurnCame | e.DeadlinePassed]:
        while self._fallen:
            pair, _ = self._fallen.popitem()
            yield from self._given_up(pair, now_s)
        if self._looks_at:
            most, self._looks_at, self._looks_s = self._looks_at, 0, None
            for cluster in list(self.queues):
                yield from self._reconsider(cluster, most, now_s)
        while self._changed:
            cluster = min(self._changed) if len(self._changed) > 1 else next(iter(self._changed))
            self._changed.discard(cluster)
            yield from self._turns_of(cluster, now_s)
        self._look_later(now_s)

    def _look_later(self, now_s: float) -> None:
        if not self._num_queued:
            self._looks_s = None
        elif self._looks_s is None:
            self._looks_s = now_s + LOOKS_EVERY_S
        self.next_due_s = self._first_due_s()

    def _first_due_s(self) -> float | None:
        due_s = min(self._due_s.values(), default=None)
        return due_s if self._looks_s is None or (due_s is not None and due_s < self._looks_s) else self._looks_s

    def _turns_of(self, cluster: str, now_s: float) -> Iterator[e.TurnCame]:
        self._due_s.pop(cluster, None)
        queue = self._queue(cluster)
        while self._num_queued:
            if not self._fleet.working_prefillers(cluster):
                if queue.first is None:
                    return
                yield e.TurnCame(queue.first, None)
                continue
            turn = None
            if self._some_have_room(cluster, now_s):
                turn = self._turn(queue, cluster, now_s) if queue else self._taken_over(cluster, now_s)
            if turn is None:
                if queue:
                    self._look_again(cluster, now_s)
                return
            yield turn

    def _queue(self, cluster: str) -> Queue:
        queue = self.queues.get(cluster)
        if queue is None:
            queue = self.queues[cluster] = Queue()
        return queue

    def _turn(self, queue: Queue, cluster: str, now_s: float) -> e.TurnCame | None:
        """Of the first that can be bound now: those with room reach a landing, and the link has room. One whose way
        leads nowhere any more is to be placed anew."""
        full: set[tuple[str, str]] = set()
        room_s, num_tried = self._room_s(cluster), 0
        for request_id in queue:
            request = self._requests[request_id]
            pair = None if request.crossing is None else request.crossing.pair
            if pair is not None and (pair in full or not self._has_link_room(pair, now_s)):
                full.add(pair)
                continue
            assert request.option is not None, "what waits has an option"
            route = self._placer.bind(request.option, _prompt_of(request), room_s, now_s)
            if route is not None and route.prefill:
                return e.TurnCame(request_id, route)
            if route is None and self._same_way(request.option, self.options(request, now_s)) is None:
                return e.TurnCame(request_id, None)
            num_tried += 1
            if num_tried == _LOOKED_AT:
                return None
        return None

    def _has_link_room(self, pair: tuple[str, str], now_s: float) -> bool:
        if not self._binds_late:
            return True
        return self._bound_bytes.get(pair, 0.0) <= LINK_AHEAD_S * self.estimates.links.bytes_per_s(pair, now_s)

    def _look_again(self, cluster: str, now_s: float) -> None:
        """When the first of those without room is expected to have some. One that is late says so itself."""
        at_s = self._fleet.standing(cluster).next_done_s(now_s, self._ahead_s(cluster))
        if at_s is not None:
            self._due_s[cluster] = max(at_s, now_s + 1e-3)

    def _some_have_room(self, cluster: str, now_s: float) -> bool:
        return self._fleet.standing(cluster).backlog(now_s).soonest_s <= self._room_s(cluster)

    def _room_s(self, cluster: str) -> float:
        """An instance with no more than this to do gets its next prompt."""
        return self._ahead_s(cluster) + _CLOCK_S if self._binds_late else math.inf

    def _ahead_s(self, cluster: str) -> float:
        return HANDOVER_S + self._fleet.longest_rtt_s(cluster) + self._fleet.gateway_rtt_s(cluster)

    # What waits goes elsewhere

    def _taken_over(self, cluster: str, now_s: float) -> e.TurnCame | None:
        """A prompt that waits elsewhere and would rather be prefilled here, where nothing waits: the oldest such. Where
        none would, none is asked again for `TAKES_OVER_EVERY_S`."""
        if not self._moves or now_s < self._takes_over_s.get(cluster, -math.inf):
            return None
        room_s = self._room_s(cluster)
        for name, queue in self.queues.items():
            if name == cluster or not queue:
                continue
            ahead = self._ahead(queue)
            for request, before in ahead if len(ahead) <= _LOOKED_AT else (*ahead[:8], *ahead[-8:]):
                here = self._ways_by(cluster, _prompt_of(request), now_s)
                if not here or not self._is_better(cheapest(here), request, before, now_s):
                    continue
                pair = here[0].prefill_cluster, here[0].decode_cluster
                if here[0].kind is RouteKind.REMOTE and not self._has_link_room(pair, now_s):
                    continue
                best = cheapest(here)
                route = self._placer.bind(best, _prompt_of(request), room_s, now_s)
                if route is not None and route.prefill:
                    self.left(request)
                    self.wait(request, best)
                    return e.TurnCame(request.request_id, route)
        if self._num_queued:
            self._takes_over_s[cluster] = self._due_s[cluster] = now_s + TAKES_OVER_EVERY_S
        return None

    def _reconsider(self, cluster: str, most: int, now_s: float) -> Iterator[e.TurnCame]:
        """What waits here, the last first: it has the longest to wait."""
        if not self._moves:
            return
        for request, ahead in islice(reversed(self._ahead(self.queues[cluster])), most):
            found = self.options(request, now_s)
            others = [o for o in found if o.kind is RouteKind.LOCAL or o.prefill_cluster != cluster]
            assert request.option is not None, "what waits has an option"
            is_lost = self._same_way(request.option, found) is None
            if others and (is_lost or self._is_better(cheapest(others), request, ahead, now_s)):
                yield e.TurnCame(request.request_id, None)

    def _given_up(self, pair: Pair, now_s: float) -> Iterator[e.DeadlinePassed]:
        """Of those that cross a slow link, whose prompt is computed here much sooner than it would land. Senders finish
        first of what they have least left; so those are looked at first, and who is given up holds up none after it."""
        bytes_per_s = self.estimates.links.bytes_per_s(pair, now_s)
        decoders = self._fleet.working_decoders(pair[1])
        if not self._moves or not decoders or not self._bound_bytes.get(pair) or not 0 < bytes_per_s < math.inf:
            return
        crossing, ahead_bytes = self._still_crossing(pair, now_s)
        for request, left_bytes in crossing:
            assert request.num_prompt_tokens is not None, "only counted prompts are prefilled elsewhere"
            lands_s = (ahead_bytes + left_bytes) / bytes_per_s
            num_tokens = request.num_prompt_tokens - request.skip_tokens
            if is_sooner_here(self.estimates, decoders, num_tokens, lands_s, now_s):
                why = f"it would land in {lands_s:.0f} s: the link from {pair[0]} to {pair[1]} has become slow"
                yield e.DeadlinePassed(request.request_id, 0.0, why)
            else:
                ahead_bytes += left_bytes

    def _still_crossing(self, pair: Pair, now_s: float) -> tuple[list[tuple[Request, float]], float]:
        """Those for which an instance was chosen, with what has not arrived of each, the least first; and what else is
        on the link: others' transfers, and what is on its way of such as were given up."""
        bound = [r for r in self._requests.values() if r.crossing and r.crossing.is_bound and r.crossing.pair == pair]
        queued_bytes = self.estimates.links.queued_bytes(pair, now_s)
        left = self.estimates.links.left_bytes(pair, now_s)
        if left:
            known = [left.get(r.arrived.transfer_id) for r in bound]
            others_bytes = max(0.0, queued_bytes - sum(part for part in known if part is not None))
            share = 1.0
        else:
            # A sender that does not say of what: some of each has crossed already.
            known = [None for _ in bound]
            others_bytes = 0.0
            share = min(1.0, queued_bytes / self._bound_bytes[pair]) if queued_bytes else 1.0
        found = []
        for request, part in zip(bound, known, strict=True):
            assert request.crossing is not None, "these cross"
            found.append((request, request.crossing.num_bytes * share if part is None else float(part)))
        return sorted(found, key=lambda one: one[1]), others_bytes

    def _ahead(self, queue: Queue) -> list[tuple[Request, Ahead]]:
        """All that wait in a queue, in order, and what is before each."""
        found = []
        bytes_of = dict(self._bound_bytes)
        for request_id, ahead_s in queue.ahead():
            request = self._requests[request_id]
            crossing = request.crossing
            before = 0.0 if crossing is None else bytes_of.get(crossing.pair, 0.0)
            found.append((request, Ahead(ahead_s, before)))
            if crossing is not None:
                bytes_of[crossing.pair] = before + crossing.num_bytes
        return found

    def _is_better(self, other: Option, request: Request, ahead: Ahead, now_s: float) -> bool:
        assert request.option is not None, "what waits has an option"
        stays = self._placer.staying(request.option, _prompt_of(request), ahead, now_s)
        return stays is None or other.cost_s < stays.cost_s * (1 - MOVES_FOR)

    def _same_way(self, here: Option, found: list[Option]) -> Option | None:
        way = here.kind, here.prefill_cluster, here.decode_cluster
        return next((o for o in found if (o.kind, o.prefill_cluster, o.decode_cluster) == way), None)

    # Books

    def _crosses(self, request: Request, pair: tuple[str, str], num_bytes: float) -> None:
        request.crossing = Crossing(pair, num_bytes)
        self.link_bytes[pair] = self.link_bytes.get(pair, 0.0) + num_bytes

    def _stops(self, request: Request, now_s: float) -> float | None:
        instance, request.works_at = request.works_at, None
        if instance is None:
            return None
        self._changed.add(instance.cluster)
        return instance.work.remove(request.request_id, now_s)

    def check(self) -> None:
        """Invariants."""
        assert self.next_due_s == self._first_due_s(), f"due {self.next_due_s}, not {self._first_due_s()}"
        waiting = {r.request_id: r.option for r in self._requests.values() if r.state is RequestState.WAITING}
        queued = [request_id for queue in self.queues.values() for request_id in queue]
        assert sorted(waiting) == sorted(queued), f"waiting {sorted(waiting)}, queued {sorted(queued)}"
        assert self._num_queued == len(queued), f"{len(queued)} wait, counted {self._num_queued}"
        for cluster, queue in self.queues.items():
            for request_id in queue:
                option = waiting[request_id]
                assert option is not None, f"{request_id} waits for nothing"
                assert option.prefill_cluster == cluster, f"{request_id} waits at {cluster}, and wants {option}"
        by_cluster = Counter(option.decode_cluster for option in waiting.values() if option is not None)
        assert +self.num_waiting == by_cluster, f"waiting {by_cluster}, counted {self.num_waiting}"
        crossing: dict[tuple[str, str], float] = {}
        bound: dict[tuple[str, str], float] = {}
        for request in self._requests.values():
            if request.crossing is not None:
                pair = request.crossing.pair
                crossing[pair] = crossing.get(pair, 0.0) + request.crossing.num_bytes
                if request.crossing.is_bound:
                    bound[pair] = bound.get(pair, 0.0) + request.crossing.num_bytes
        for pair, left in self.link_bytes.items():
            assert abs(left - crossing.get(pair, 0.0)) <= 16.0, f"{pair}: {left} bytes, not {crossing.get(pair)}"
        for pair, left in self._bound_bytes.items():
            assert abs(left - bound.get(pair, 0.0)) <= 16.0, f"{pair}: {left} bytes bound, not {bound.get(pair)}"
        for instance in self._fleet.instances.values():
            held = {r.request_id for r in self._requests.values() if r.works_at is instance}
            assert held == set(instance.work), f"{instance.name} works for {set(instance.work)}, asked by {held}"


def _prompt_of(request: Request) -> Prompt:
    assert request.num_prompt_tokens is not None, "only counted prompts are placed"
    arrived = request.arrived
    return Prompt(request.num_prompt_tokens, request.chains, arrived.priority, arrived.tenant)


def _take_off(all_bytes: dict[tuple[str, str], float], crossing: Crossing) -> None:
    left = all_bytes[crossing.pair] - crossing.num_bytes
    # Sums of floats drift; less than a byte is nothing.
    all_bytes[crossing.pair] = left if left > 1.0 else 0.0
