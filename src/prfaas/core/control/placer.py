"""Which ways a prompt has now, and what each costs. Reads everything and changes nothing.

Laws of this file:
- A way is listed only if it can be gone now: a healthy instance that prefills, with lanes to a healthy one that decodes
  and whose node is ready.
- An instance that only decodes computes a prompt itself if nobody else can, or if it holds most of it already.
- What crosses a link is ready when both have ended: the prefill, and the link's work that was there before.
- The request goes from the gateway to the cluster that answers, and the answer comes back: a round trip. A prompt that
  others prefill goes to them first: half a round trip of theirs, and what their link's round trip adds. Reserving, and
  the word that KVCache has landed, count as handover wherever the gateway is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from prfaas.core.cache.engine_cache import NO_MATCH, PrefixMatch
from prfaas.core.control.answers import Answers
from prfaas.core.control.estimates import Estimates
from prfaas.core.control.fetching import Fetch, Fetching, can_send
from prfaas.core.control.fleet import Fleet, Way
from prfaas.core.control.instance import Instance
from prfaas.core.control.options import HANDOVER_S, cheapest, delay_to_others_s, wait_s
from prfaas.core.control.queues import Queue
from prfaas.core.control.route import Ahead, Option, Prompt, Route, RouteKind, RouteReason
from prfaas.core.control.standing import Backlog, Standing, landing_rank

#: An engine that computes a prompt computes in the same steps for the answers that it gives. They are then this much
#: slower: a share of the prompt's own time.
_SLOWS_ANSWERS: Final = 1.0


#: An instance, and what it holds of the prompt at hand.
Knows = tuple[Instance, PrefixMatch]
#: All that hold something of it, by cluster.
Known = dict[str, list[Knows]]


class PrefillLeg(NamedTuple):
    """`cluster` computes `num_tokens` of a prompt, after it has fetched the first `num_fetched_tokens` of it: its turn
    has come and these are there after `wait_s`, and others wait `others_s` longer. The cluster gets `rate_rps` such
    prompts, which keep it as full as `load`."""

    cluster: str
    num_tokens: int
    wait_s: float
    prefill_s: float
    others_s: float
    rate_rps: float
    load: float
    num_fetched_tokens: int = 0


class DecodeLeg(NamedTuple):
    """`landing` lacks `num_uncached_tokens` of a prompt, and `kv_bytes` cross if it is prefilled elsewhere. If all that
    wait to be prefilled were before it, a batch of its cluster would have a place after `last_place_s`."""

    cluster: str
    landing: Instance
    num_uncached_tokens: int
    kv_bytes: float
    last_place_s: float


class Placer:
    """Of one scheduler. `queues` are by cluster; `link_bytes` is what is still to cross from one to another,
    `num_waiting` how many prompts wait that a PD cluster will answer."""

    def __init__(
        self,
        fleet: Fleet,
        estimates: Estimates,
        queues: Mapping[str, Queue],
        link_bytes: Mapping[tuple[str, str], float],
        num_waiting: Mapping[str, int],
        answers: Answers,
        *,
        may_fetch: bool = False,
    ) -> None:
        self._fleet = fleet
        self._estimates = estimates
        self._links = estimates.links
        self._queues = queues
        self._link_bytes = link_bytes
        self._num_waiting = num_waiting
        self._answers = answers
        self.fetching = Fetching(fleet, estimates, link_bytes) if may_fetch else None

    def options(self, prompt: Prompt, now_s: float) -> list[Option]:
        """Empty if no engine that decodes works."""
        found: list[Option] = []
        known = self._known(prompt)
        #: Of clusters all of whose instances reach everybody: they are the same for every landing.
        prefills: dict[str, PrefillLeg | None] = {}
        for cluster in self._fleet.pd_clusters:
            standing = self._fleet.standing(cluster)
            if not standing.decoders:
                continue
            ways = self._fleet.ways_to(cluster)
            elsewhere = self._all_elsewhere(cluster, ways, prompt, known, prefills, now_s)
            computing = self._computing(standing, prompt, known.get(cluster, ()), is_needed=not elsewhere)
            if computing:
                found.append(self._locally(standing, computing, known.get(cluster, ()), prompt, now_s))
            found += elsewhere
        return found

    def options_by(self, source: str, prompt: Prompt, now_s: float) -> list[Option]:
        """Those of `options` on which instances of one cluster prefill it for others."""
        found: list[Option] = []
        known = self._known(prompt)
        prefills: dict[str, PrefillLeg | None] = {}
        for cluster in self._fleet.pd_clusters:
            ways = [way for way in self._fleet.ways_to(cluster) if way.source == source]
            if ways and self._fleet.standing(cluster).decoders:
                found += self._all_elsewhere(cluster, ways, prompt, known, prefills, now_s)
        return found

    def _known(self, prompt: Prompt) -> Known:
        """Who holds something of a prompt, by cluster, in file order."""
        found: Known = {}
        for chain in prompt.chains.values():
            holders = self._fleet.holders.of(chain.hashes[0]) if chain.hashes else ()
            for instance in sorted(holders, key=_number):
                if instance.block_tokens == chain.block_tokens:
                    found.setdefault(instance.cluster, []).append((instance, instance.cache.match(chain)))
        return found

    def _all_elsewhere(
        self,
        cluster: str,
        ways: Iterable[Way],
        prompt: Prompt,
        known: Known,
        prefills: dict[str, PrefillLeg | None],
        now_s: float,
    ) -> list[Option]:
        decode = self._decode_leg(cluster, prompt, known, now_s)
        if decode is None or decode.num_uncached_tokens <= 1:
            return []
        found = []
        for way in ways:
            source = way.source
            if source in prefills:
                prefill = prefills[source]
            else:
                prefill = self._prefill_leg(source, decode.landing, prompt, known, now_s)
                if not self._fleet.standing(source).some_are_cut_off:
                    prefills[source] = prefill
            option = None if prefill is None else self._elsewhere(way, prefill, decode, now_s)
            if option is not None:
                found.append(option)
        return found

    def _computing(
        self, standing: Standing, prompt: Prompt, known: Sequence[Knows], *, is_needed: bool
    ) -> list[Instance]:
        """Those that may compute the prompt that they answer. An instance that only decodes computes what is added to a
        conversation that it holds, if that is the smaller part, and if the answers that it gives still come as fast as
        they must; and any prompt, if nobody else can."""
        if is_needed:
            return standing.decoders
        if not known and standing.all_only_decode:
            return []
        holds = {instance for instance, match in known if self._may_append(instance, match, prompt)}
        if standing.all_only_decode and not holds:
            return []
        return [i for i in standing.decoders if i.duty.prefills or i in holds]

    def _may_append(self, instance: Instance, match: PrefixMatch, prompt: Prompt) -> bool:
        uncached = max(1, prompt.num_tokens - match.reusable_prefix_tokens)
        if uncached > match.reusable_prefix_tokens:
            return False
        model = self._estimates.model
        if model.tpot_s is None:
            return True
        step_s = self._estimates.cluster(instance.cluster).step_s or 0.0
        slower_s = self._estimates.prefill_s(instance.cluster, uncached) / max(1.0, self._estimates.output_tokens)
        return step_s + slower_s <= model.tpot_s

    def bind(self, option: Option, prompt: Prompt, room_s: float, now_s: float) -> Route | None:
        """The instances for an option whose turn has come; None if no two work that can reach each other. Of those with
        no more than `room_s` to do, and those that hold a part of it, the one that will have computed it first. If that
        one has more to do yet, the route names nobody to prefill: it had better wait."""
        prefillers = self._fleet.working_prefillers(option.prefill_cluster)
        known = self._known(prompt)
        held = _held(knows for some in known.values() for knows in some)
        room = {instance for instance in prefillers if instance.work.remaining_s(now_s) <= room_s}
        fitting = [instance for instance in prefillers if instance in room or held.get(instance, 0)] if room else []
        whole_s = self._estimates.prefill_s(option.prefill_cluster, prompt.num_tokens)
        fetch = self._fetch(prompt, known, option.prefill_cluster, now_s)

        def own_s(instance: Instance) -> float:
            num_held = held.get(instance, 0)
            if not num_held:
                return whole_s
            return self._estimates.prefill_s(option.prefill_cluster, max(1, prompt.num_tokens - num_held))

        def fetches(instance: Instance) -> bool:
            return (
                fetch is not None
                and fetch.source is not instance
                and can_send(fetch.source, instance)
                and fetch.cost_s < own_s(instance)
            )

        def done(instance: Instance) -> tuple[float, int]:
            takes_s = fetch.done_s if fetch is not None and fetches(instance) else own_s(instance)
            return instance.work.remaining_s(now_s) + takes_s, instance.num_inflight

        for landing in self._landings(option.decode_cluster, prompt, known) if fitting else ():
            uncached = prompt.num_tokens - held.get(landing, 0)
            reaching = [i for i in fitting if landing.name not in i.cut_off_from] if uncached > 1 else []
            if reaching:
                prefill = min(reaching, key=done) if len(reaching) > 1 else reaching[0]
                if prefill not in room:
                    return Route(option.kind, reason_of(option), landing.name, "", uncached)
                source, num_fetched = "", 0
                if fetch is not None and fetches(prefill):
                    source, num_fetched = fetch.source.name, fetch.num_tokens
                return Route(
                    option.kind, reason_of(option), landing.name, prefill.name, uncached, fetch_from=source,
                    num_fetched_tokens=num_fetched,
                )  # fmt: skip
        return None

    # The ways

    def _locally(
        self, standing: Standing, computing: Sequence[Instance], known: Sequence[Knows], prompt: Prompt, now_s: float
    ) -> Option:
        """A decode engine computes the prompt itself."""
        cluster = computing[0].cluster
        rate_rps, load = self._estimates.rate_and_load(cluster, now_s)
        rate_rps /= len(standing.decoders)
        rtt_s = self._fleet.gateway_rtt_s(cluster)
        held = _held(known)

        def on(instance: Instance) -> Option:
            uncached = max(1, prompt.num_tokens - held.get(instance, 0))
            prefill_s = self._estimates.prefill_s(cluster, uncached)
            queued_s = instance.work.remaining_s(now_s)
            others_s = _SLOWS_ANSWERS * prefill_s * max(0, instance.num_inflight - len(instance.work))
            if instance.duty.prefills:
                others_s += delay_to_others_s(rate_rps, load, queued_s, prefill_s)
            late_s = max(0.0, self._place_s(cluster, instance.num_inflight, 1) - queued_s - prefill_s)
            name, kind = instance.name, RouteKind.LOCAL
            return Option(
                kind, cluster, cluster, name, uncached, uncached, queued_s, prefill_s, late_s, others_s, rtt_s
            )

        return cheapest(on(instance) for instance in computing)

    def staying(self, here: Option, prompt: Prompt, ahead: Ahead, now_s: float) -> Option | None:
        """The way on which a prompt waits, with what is before it there and nothing else; None if it leads nowhere."""
        known = self._known(prompt)
        decode = self._decode_leg(here.decode_cluster, prompt, known, now_s)
        if decode is None:
            return None
        source = here.prefill_cluster
        prefill = self._prefill_leg(source, decode.landing, prompt, known, now_s, ahead)
        way = self._fleet.way(source, here.decode_cluster)
        return None if prefill is None else self._elsewhere(way, prefill, decode, now_s, ahead)

    def _elsewhere(
        self, way: Way, prefill: PrefillLeg, decode: DecodeLeg, now_s: float, ahead: Ahead | None = None
    ) -> Option | None:
        """Instances of one cluster compute it for another, or for those that only decode in their own. `ahead`: what is
        before it, if it waits there already."""
        source, num_tokens, begins_s, prefill_s, others_s, rate_rps, load, num_fetched = prefill
        target, landing, num_uncached, kv_bytes, last_place_s = decode
        prefilled_s = begins_s + prefill_s
        late_s = HANDOVER_S
        if last_place_s > prefilled_s:
            late_s += self._waits_for_place_s(target, prefilled_s, now_s)
        if source == target:
            if landing.duty.prefills:
                return None
            kind = RouteKind.PD_PREFILL
        else:
            kind = RouteKind.REMOTE
            pair = way.pair
            bytes_per_s = self._links.bytes_per_s(pair, now_s)
            if bytes_per_s <= 0:
                return None
            queued_bytes = self._link_bytes.get(pair, 0.0) if ahead is None else ahead.link_bytes
            queued_s, own_s = queued_bytes / bytes_per_s, kv_bytes / bytes_per_s
            crossed_s = queued_s + own_s - prefilled_s
            late_s += (crossed_s if crossed_s > 0.0 else 0.0) + way.rtt_s
            crossing_s = delay_to_others_s(rate_rps, load, queued_s, own_s)
            if crossing_s > others_s:
                others_s = crossing_s
        return Option(
            kind, source, target, "", num_uncached, num_tokens, begins_s, prefill_s, late_s, others_s, way.gateway_s,
            num_fetched,
        )  # fmt: skip

    def _prefill_leg(
        self,
        cluster: str,
        landing: Instance,
        prompt: Prompt,
        known: Known,
        now_s: float,
        ahead: Ahead | None = None,
    ) -> PrefillLeg | None:
        """By those of the cluster that reach the landing; None if none does."""
        backlog = self._backlog(cluster, landing, now_s)
        if not backlog.num:
            return None
        queue = self._queues.get(cluster)
        waiting_s = ahead_s = 0.0
        if ahead is not None:
            waiting_s = ahead_s = ahead.waiting_s
        elif queue:
            waiting_s, ahead_s = queue.waiting_s, queue.ahead_of_s(prompt.priority, prompt.tenant)
        num_tokens, num_fetched, fetch_others_s = prompt.num_tokens, 0, 0.0
        prefill_s = self._estimates.prefill_s(cluster, num_tokens)
        turn_s = begins_s = wait_s(backlog, ahead_s, prefill_s / 2)
        for holder, match in known.get(cluster, ()):
            if match.reusable_prefix_tokens and self._reaches(holder, landing):
                left = max(1, prompt.num_tokens - match.reusable_prefix_tokens)
                left_s = self._estimates.prefill_s(cluster, left)
                its_turn_s = max(turn_s, holder.work.remaining_s(now_s))
                if its_turn_s + left_s < begins_s + prefill_s:
                    num_tokens, prefill_s, begins_s = left, left_s, its_turn_s
        fetch = self._fetch(prompt, known, cluster, now_s)
        if fetch is not None and turn_s + fetch.cost_s < begins_s + prefill_s:
            num_fetched, num_tokens = fetch.num_tokens, max(1, prompt.num_tokens - fetch.num_tokens)
            prefill_s, begins_s, fetch_others_s = fetch.prefill_s, turn_s + fetch.takes_s, fetch.others_s
        rate_rps, load = self._estimates.rate_and_load(cluster, now_s)
        queued_s = (backlog.sum_s + waiting_s) / backlog.num
        others_s = fetch_others_s + delay_to_others_s(rate_rps, load, queued_s, prefill_s / backlog.num)
        return PrefillLeg(cluster, num_tokens, begins_s, prefill_s, others_s, rate_rps, load, num_fetched)

    def _fetch(self, prompt: Prompt, known: Known, cluster: str, now_s: float) -> Fetch | None:
        """The best for this cluster; None where nothing may be fetched, or nobody holds anything."""
        if self.fetching is None or not known:
            return None
        everybody = (knows for some in known.values() for knows in some)
        return self.fetching.best(prompt.num_tokens, everybody, cluster, now_s)

    def _decode_leg(self, cluster: str, prompt: Prompt, known: Known, now_s: float) -> DecodeLeg | None:
        """At the best of `_landings`; None if no node is ready."""
        found = self._landing(cluster, prompt, known)
        if found is None:
            return None
        landing, match = found
        standing = self._fleet.standing(cluster)
        num_before = standing.in_flight() + self._num_waiting.get(cluster, 0)
        last_place_s = self._place_s(cluster, num_before, len(standing.decoders), now_s)
        kv_bytes = self._estimates.kv_bytes(prompt.num_tokens, match.skippable_tokens)
        return DecodeLeg(cluster, landing, prompt.num_tokens - match.reusable_prefix_tokens, kv_bytes, last_place_s)

    def _backlog(self, source: str, landing: Instance, now_s: float) -> Backlog:
        """Of those that reach the landing."""
        standing = self._fleet.standing(source)
        if not standing.some_are_cut_off:
            return standing.backlog(now_s)
        reaching = [i.work.remaining_s(now_s) for i in standing.prefillers if landing.name not in i.cut_off_from]
        return Backlog(len(reaching), min(reaching, default=math.inf), math.fsum(reaching))

    def _reaches(self, instance: Instance, landing: Instance) -> bool:
        return (
            not instance.duty.decodes and instance.may_prefill_for_others and landing.name not in instance.cut_off_from
        )

    def _landing(self, cluster: str, prompt: Prompt, known: Known) -> Knows | None:
        """The best of `_landings`, with what it knows; None if no node is ready."""
        max_batch = self._estimates.cluster(cluster).max_batch
        best = self._fleet.standing(cluster).landing(max_batch)
        if best is None:
            return None
        found: Knows = best, NO_MATCH
        holders = known.get(cluster)
        if not holders:
            return found
        of_best = landing_rank(best, max_batch)
        for instance, match in holders:
            if not instance.duty.decodes or not instance.may_decode or not instance.node_ready:
                continue
            rank = landing_rank(instance, max_batch, match.reusable_prefix_tokens / prompt.num_tokens)
            if instance is found[0] or rank < of_best:
                found, of_best = (instance, match), rank
        return found

    def _landings(self, cluster: str, prompt: Prompt, known: Known) -> Iterator[Instance]:
        """All whose node is ready, best first."""
        best = self._landing(cluster, prompt, known)
        if best is None:
            return
        yield best[0]
        max_batch = self._estimates.cluster(cluster).max_batch
        held = _held(known.get(cluster, ()))
        ready = (instance for instance in self._fleet.standing(cluster).ready if instance is not best[0])
        yield from sorted(ready, key=lambda i: landing_rank(i, max_batch, held.get(i, 0) / prompt.num_tokens))

    # What they wait for

    def _place_s(self, cluster: str, num_before: float, num_instances: int, now_s: float | None = None) -> float:
        """Until one of the batches of so many instances has a place: those that are there or come before leave one
        after the other, at a mean rate, and no sooner than answers end that go on (known of all of the cluster, with
        `now_s`)."""
        model = self._estimates.cluster(cluster)
        if model.max_batch is None or model.step_s is None:
            return 0.0
        num_places = num_instances * model.max_batch
        answer_s = model.step_s * self._estimates.output_tokens
        number = num_before + 1 - num_places
        mean_s = number * answer_s / num_places
        return mean_s if now_s is None else max(mean_s, self._answers.left_s(cluster, number, answer_s, now_s))

    def _waits_for_place_s(self, cluster: str, prefilled_s: float, now_s: float) -> float:
        """A prompt that is prefilled by then. Those that wait in a longer queue come to the batches after it."""
        standing = self._fleet.standing(cluster)
        num_before = standing.in_flight() + self._num_waiting.get(cluster, 0) * self._share_before(prefilled_s)
        return max(0.0, self._place_s(cluster, num_before, len(standing.decoders), now_s) - prefilled_s)

    def _share_before(self, prefilled_s: float) -> float:
        """Of all that wait to be prefilled, those that will have been by then."""
        num_waiting = num_before = 0.0
        for source, queue in self._queues.items():
            if queue:
                num_waiting += len(queue)
                num_prefillers = len(self._fleet.working_prefillers(source))
                num_before += len(queue) * min(1.0, prefilled_s * num_prefillers / max(queue.waiting_s, 1e-9))
        return num_before / num_waiting if num_waiting else 1.0


def reason_of(option: Option) -> str:
    """In the words that stories and headers use."""
    return RouteReason.ABOVE_THRESHOLD if option.kind is RouteKind.REMOTE else RouteReason.BELOW_THRESHOLD


def _number(instance: Instance) -> int:
    return instance.number


def _held(known: Iterable[Knows]) -> dict[Instance, int]:
    """Tokens of a prompt that an instance need not compute."""
    return {instance: match.reusable_prefix_tokens for instance, match in known}
