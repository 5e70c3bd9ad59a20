"""Which ways a prompt has now, and what each costs. Reads everything and changes nothing.

Laws of this file:
- A way is listed only if it can be gone now: a healthy instance that prefills, with lanes to a healthy one that decodes
  and whose node is ready.
- An instance that only decodes computes a prompt itself if nobody else can, or if it holds most of it already.
- What crosses a link is ready when both have ended: the prefill, and the link's work that was there before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from prfaas.core.control.estimates import Estimates
from prfaas.core.control.fleet import Fleet, Instance
from prfaas.core.control.options import HANDOVER_S, cheapest, delay_to_others_s, wait_s
from prfaas.core.control.queues import Queue
from prfaas.core.control.route import Ahead, Option, Prompt, Route, RouteKind, RouteReason
from prfaas.core.topology import Role

#: An engine that computes a prompt computes in the same steps for the answers that it gives. They are then this much
#: slower: a share of the prompt's own time.
_SLOWS_ANSWERS: Final = 1.0


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
    ) -> None:
        self._fleet = fleet
        self._estimates = estimates
        self._queues = queues
        self._link_bytes = link_bytes
        self._num_waiting = num_waiting

    def options(self, prompt: Prompt, now_s: float) -> list[Option]:
        """Empty if no engine that decodes works."""
        found: list[Option] = []
        for cluster in self._fleet.topology.clusters_of(Role.PD):
            decoders = self._fleet.working_decoders(cluster.name)
            if not decoders:
                continue
            elsewhere = list(self._all_elsewhere(cluster.name, decoders, prompt, now_s))
            computing = [i for i in decoders if not elsewhere or self._may_compute(i, prompt)]
            if computing:
                found.append(self._locally(cluster.name, computing, prompt, now_s))
            found += elsewhere
        return found

    def _all_elsewhere(
        self, cluster: str, decoders: Sequence[Instance], prompt: Prompt, now_s: float
    ) -> Iterator[Option]:
        landing = next(self._landings(decoders, prompt), None)
        if landing is None:
            return
        uncached = _uncached(landing, prompt)
        if uncached <= 1:
            return
        for source in self._fleet.prefill_clusters(cluster):
            option = self._elsewhere(source, cluster, landing, prompt, decoders, now_s)
            if option is not None:
                yield option

    def _may_compute(self, instance: Instance, prompt: Prompt) -> bool:
        """An instance that only decodes computes what is added to a conversation that it holds, if that is the smaller
        part, and if the answers that it gives still come as fast as they must."""
        if instance.duty.prefills:
            return True
        known = instance.match(prompt.chains).reusable_prefix_tokens
        uncached = max(1, prompt.num_tokens - known)
        if uncached > known:
            return False
        model = self._estimates.model
        if model.tpot_s is None:
            return True
        step_s = self._estimates.cluster(instance.cluster).step_s or 0.0
        slower_s = self._estimates.prefill_s(instance.cluster, uncached) / max(1.0, self._estimates.output_tokens)
        return step_s + slower_s <= model.tpot_s

    def bind(self, option: Option, prompt: Prompt, has_room: Callable[[Instance], bool]) -> Route | None:
        """The instances for an option whose turn has come; None if no two work that can reach each other."""
        decoders = self._fleet.working_decoders(option.decode_cluster)
        prefillers = self._fleet.working_prefillers(option.prefill_cluster)
        for landing in self._landings(decoders, prompt):
            uncached = _uncached(landing, prompt)
            reaching = [i for i in prefillers if landing.name not in i.cut_off_from and has_room(i)]
            if uncached > 1 and reaching:
                held = (
                    {i.name: i.match(prompt.chains).reusable_prefix_tokens for i in reaching} if prompt.chains else {}
                )
                prefill = min(reaching, key=lambda i: (-held.get(i.name, 0), len(i.work), i.num_inflight))
                return Route(option.kind, reason_of(option), landing.name, prefill.name, uncached)
        return None

    # The ways

    def _locally(self, cluster: str, decoders: Sequence[Instance], prompt: Prompt, now_s: float) -> Option:
        """A decode engine computes the prompt itself."""
        rate_rps, load = self._estimates.rate_rps(cluster, now_s) / len(decoders), self._estimates.load(cluster, now_s)

        def on(instance: Instance) -> Option:
            uncached = max(1, _uncached(instance, prompt))
            prefill_s = self._estimates.prefill_s(cluster, uncached)
            queued_s = instance.work.remaining_s(now_s)
            others_s = _SLOWS_ANSWERS * prefill_s * max(0, instance.num_inflight - len(instance.work))
            if instance.duty.prefills:
                others_s += delay_to_others_s(rate_rps, load, queued_s, prefill_s)
            late_s = self._slot_wait_s(cluster, instance.num_inflight, 1, queued_s + prefill_s)
            name, kind = instance.name, RouteKind.LOCAL
            return Option(kind, cluster, cluster, name, uncached, uncached, queued_s, prefill_s, late_s, others_s)

        return cheapest(on(instance) for instance in decoders)

    def staying(self, here: Option, prompt: Prompt, ahead: Ahead, now_s: float) -> Option | None:
        """The way on which a prompt waits, with what is before it there and nothing else; None if it leads nowhere."""
        decoders = self._fleet.working_decoders(here.decode_cluster)
        landing = next(self._landings(decoders, prompt), None)
        if landing is None:
            return None
        return self._elsewhere(here.prefill_cluster, here.decode_cluster, landing, prompt, decoders, now_s, ahead)

    def _elsewhere(
        self,
        source: str,
        target: str,
        landing: Instance,
        prompt: Prompt,
        decoders: Sequence[Instance],
        now_s: float,
        ahead: Ahead | None = None,
    ) -> Option | None:
        """Instances of `source`, which may be the decode instance's own cluster, compute it. `ahead`: what is before
        it, if it waits there already."""
        is_home = source == target
        if is_home and landing.duty.prefills:
            return None
        working = [i for i in self._fleet.working_prefillers(source) if landing.name not in i.cut_off_from]
        if not working:
            return None
        num = len(working)
        remaining_s = [instance.work.remaining_s(now_s) for instance in working]
        known = landing.match(prompt.chains)
        held = max(instance.match(prompt.chains).reusable_prefix_tokens for instance in working) if prompt.chains else 0
        lacking = prompt.num_tokens - held
        queue = self._queues.get(source)
        waiting_s = ahead_s = 0.0
        if ahead is not None:
            waiting_s = ahead_s = ahead.waiting_s
        elif queue:
            waiting_s, ahead_s = queue.waiting_s, queue.ahead_of_s(prompt.priority, prompt.tenant)
        prefill_s = self._estimates.prefill_s(source, lacking)
        turn_s = wait_s(remaining_s, ahead_s, prefill_s / 2)
        rate_rps, load = self._estimates.rate_rps(source, now_s), self._estimates.load(source, now_s)
        others_s = delay_to_others_s(rate_rps, load, (sum(remaining_s) + waiting_s) / num, prefill_s / num)
        num_before = sum(instance.num_inflight for instance in decoders) + self._num_waiting.get(target, 0)
        late_s = HANDOVER_S + self._slot_wait_s(target, num_before, len(decoders), turn_s + prefill_s)
        if is_home:
            kind = RouteKind.PD_PREFILL
        else:
            kind = RouteKind.REMOTE
            bytes_per_s = self._estimates.links.bytes_per_s((source, target), now_s)
            if bytes_per_s <= 0:
                return None
            queued_bytes = self._link_bytes.get((source, target), 0.0) if ahead is None else ahead.link_bytes
            queued_s = queued_bytes / bytes_per_s
            own_s = self._estimates.kv_bytes(prompt.num_tokens, known.skippable_tokens) / bytes_per_s
            late_s += max(0.0, queued_s + own_s - turn_s - prefill_s) + self._fleet.rtt_s(source, target)
            others_s = max(others_s, delay_to_others_s(rate_rps, load, queued_s, own_s))
        uncached = prompt.num_tokens - known.reusable_prefix_tokens
        return Option(kind, source, target, "", uncached, lacking, turn_s, prefill_s, late_s, others_s)

    def _landings(self, decoders: Sequence[Instance], prompt: Prompt) -> Iterator[Instance]:
        """Best first: with a place in its batch, then by what it knows of the prompt, then by load."""
        ready = [i for i in decoders if i.node_ready]
        if not ready:
            return iter(())
        max_batch = self._estimates.cluster(ready[0].cluster).max_batch

        def rank(instance: Instance) -> tuple[int, int, int]:
            load = instance.num_requests or instance.num_inflight
            over = 0 if max_batch is None else max(0, instance.num_inflight + 1 - max_batch)
            return over, -instance.match(prompt.chains).reusable_prefix_tokens, load

        return iter(sorted(ready, key=rank))

    # What they wait for

    def _slot_wait_s(self, cluster: str, num_before: int, num_instances: int, from_s: float) -> float:
        """From then on, until one of the batches of so many instances has a place: those that are there or come before
        leave one after the other."""
        model = self._estimates.cluster(cluster)
        if model.max_batch is None or model.step_s is None:
            return 0.0
        num_places = num_instances * model.max_batch
        answer_s = model.step_s * self._estimates.output_tokens
        return max(0.0, (num_before + 1 - num_places) * answer_s / num_places - from_s)


def reason_of(option: Option) -> str:
    """In the words that stories and headers use."""
    return RouteReason.ABOVE_THRESHOLD if option.kind is RouteKind.REMOTE else RouteReason.BELOW_THRESHOLD


def _uncached(instance: Instance, prompt: Prompt) -> int:
    """Tokens of a prompt that an instance is not known to hold."""
    return prompt.num_tokens - instance.match(prompt.chains).reusable_prefix_tokens
