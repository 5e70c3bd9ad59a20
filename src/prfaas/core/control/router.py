"""Where one request runs. Pure: the same facts give the same route.

Laws of this file:
- A request leaves for a PrfaaS cluster iff its incremental length, prompt less reusable prefix, exceeds the threshold,
  and nothing forbids it. Every other outcome names what forbade it.
- What stays is prefilled by a prefill instance of the decode instance's own cluster, if the decode instance has no
  duty to prefill; else, or if no such instance works, by the decode instance itself.
- Only a healthy decode engine is chosen, the least loaded first; the landing is on the node beside it. One that no
  working prefill instance reaches, or that has cached too much of the prompt, is passed over for the next.
- Nothing is prefilled elsewhere unless the prefill engine, its node and the decode engine's node all work now, and at
  least one lane is up from node to node: without one a whole prefill would be computed for nothing.
- An unknown load is not a zero load: it counts as the highest among the engines that say theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from prfaas.core.cache.engine_cache import NO_MATCH, PrefixMatch
from prfaas.core.control.route import MAX_TOLD, Choose, Considered, Route, RouteKind, RouteReason
from prfaas.core.model.serving_model import ServingModel
from prfaas.core.record import record
from prfaas.core.topology import Duty

#: Between two conversions of instances.
COOL_DOWN_S: Final = 120.0
#: Reasons to stay that say nothing against prefilling in another instance of the same cluster.
_MAY_PREFILL_IN_PD = frozenset({RouteReason.BELOW_THRESHOLD, RouteReason.POLICY, RouteReason.PRFAAS_UNHEALTHY})


@record
class Candidate:
    """One instance: an engine and the node beside it. `prefix` is of the request at hand, on this engine;
    `cut_off_from` has the instances to which its node says that no lane is up. `num_requests` is what it runs and what
    waits there, None if that is not known; `num_inflight` of them are ours."""

    name: str
    cluster: str
    engine_healthy: bool
    node_ready: bool
    num_inflight: int
    prefix: PrefixMatch = NO_MATCH
    cut_off_from: Collection[str] = ()
    duty: Duty = Duty.BOTH
    num_requests: int | None = None


@record
class RequestFacts:
    """`num_prompt_tokens` is None when the prompt cannot be counted here; `obstacle` names a feature that forbids
    offloading, None if none does."""

    num_prompt_tokens: int | None
    obstacle: str | None


@record
class RoutePolicy:
    """`offload`: PrfaaS clusters may be used at all. With a `model` of the deployment the threshold is where it begins,
    and moves by itself; then a request is refused at once if its answer is expected to begin later than `max_ttft_s`,
    and instances of convertible clusters get other duties, one at a time, `cool_down_s` between them.
    `choose` takes another way than the cheapest: policies of others, to compare with. They move nothing that waits, and
    unless one `binds_late` an instance gets its prompts as they come. `may_fetch`: instances can get cached prefixes
    from each other; the nodes of today cannot."""

    offload: bool
    threshold_tokens: int
    model: ServingModel | None = None
    max_ttft_s: float | None = None
    cool_down_s: float = COOL_DOWN_S
    choose: Choose | None = None
    binds_late: bool = True
    may_fetch: bool = False


#: Prefill candidates that can send to a decode instance, by kind of route and decode instance's name.
Reach = Callable[[RouteKind, str], Sequence[Candidate]]


def decide(facts: RequestFacts, policy: RoutePolicy, decoders: Sequence[Candidate], reach: Reach) -> Route:
    """Route one request. Candidates are in file order, which breaks ties."""
    decode = least_busy([c for c in decoders if c.engine_healthy])
    if decode is None:
        return Route(RouteKind.NONE, RouteReason.NO_HEALTHY_ENGINE, considered=_decode_legs(decoders, None, facts))
    uncached = _uncached(facts, decode)
    reason = _stays(facts, policy, uncached)
    if reason is None:
        found = _elsewhere(RouteKind.REMOTE, facts, policy.threshold_tokens, decoders, reach)
        if isinstance(found, Route):
            return found
        reason = found
    has_work = facts.obstacle is None and uncached is not None and uncached > 1
    if has_work and reason in _MAY_PREFILL_IN_PD and decode.duty is Duty.DECODE:
        found = _elsewhere(RouteKind.PD_PREFILL, facts, 0, decoders, reach)
        if isinstance(found, Route):
            return _with_reason(found, reason)
        reason = found
    considered = _decode_legs(decoders, decode, facts)
    return Route(RouteKind.LOCAL, reason, decode.name, num_uncached_tokens=uncached, considered=considered)


def least_busy(candidates: Sequence[Candidate]) -> Candidate | None:
    """The first by load; None without any."""
    if len(candidates) < 2:
        return candidates[0] if candidates else None
    loads = loads_of(candidates)
    return min(candidates, key=lambda c: (loads[c.name], -c.prefix.reusable_prefix_tokens))


def by_load(candidates: Sequence[Candidate]) -> Iterator[Candidate]:
    """Least loaded first; among equals the one that knows most of the prompt, then in their order. Most who ask want
    no more than the first."""
    first = least_busy(candidates)
    if first is None:
        return
    yield first
    loads = loads_of(candidates)
    ordered = sorted(candidates, key=lambda c: (loads[c.name], -c.prefix.reusable_prefix_tokens))
    yield from ordered[1:]


def loads_of(candidates: Sequence[Candidate]) -> dict[str, int]:
    """Requests at each candidate, by name; see the laws for those that do not say."""
    highest = max((c.num_requests for c in candidates if c.num_requests is not None), default=0)
    return {c.name: max(c.num_inflight, highest if c.num_requests is None else c.num_requests) for c in candidates}


def _elsewhere(
    kind: RouteKind, facts: RequestFacts, threshold_tokens: int, decoders: Sequence[Candidate], reach: Reach
) -> Route | RouteReason:
    """A route whose prompt another instance prefills, or why there is none. The instance where it lands lacks more than
    `threshold_tokens` of it, and more than the one that decode computes itself."""
    wanted = [c for c in decoders if kind is RouteKind.REMOTE or c.duty is Duty.DECODE]
    landings = [c for c in wanted if c.engine_healthy and c.node_ready]
    if not landings:
        return RouteReason.NO_LANDING_NODE
    passed_over: dict[str, str] = {}
    for landing in by_load(landings):
        if (_uncached(facts, landing) or 0) <= max(1, threshold_tokens):
            passed_over[landing.name] = "prefix_cached"
            continue
        prefillers = reach(kind, landing.name)
        prefill = least_busy([c for c in prefillers if _can_send(c, landing)])
        if prefill is not None:
            legs = _decode_legs(decoders, landing, facts, lands=True, passed_over=passed_over)
            considered = (*legs, *_prefill_legs(prefillers, prefill, landing))
            uncached = _uncached(facts, landing)
            return Route(kind, RouteReason.ABOVE_THRESHOLD, landing.name, prefill.name, uncached, considered)
        passed_over[landing.name] = "unreached"
    return RouteReason.PRFAAS_UNHEALTHY if kind is RouteKind.REMOTE else RouteReason.NO_PD_PREFILL


def _can_send(prefill: Candidate, landing: Candidate) -> bool:
    return prefill.engine_healthy and prefill.node_ready and landing.name not in prefill.cut_off_from


def _with_reason(route: Route, reason: str) -> Route:
    return Route(route.kind, reason, route.decode, route.prefill, route.num_uncached_tokens, route.considered)


def _uncached(facts: RequestFacts, decode: Candidate) -> int | None:
    if facts.num_prompt_tokens is None:
        return None
    return facts.num_prompt_tokens - decode.prefix.reusable_prefix_tokens


def _stays(facts: RequestFacts, policy: RoutePolicy, uncached: int | None) -> str | None:
    """Why the prompt does not go to a PrfaaS cluster; None if it may."""
    if not policy.offload:
        return RouteReason.POLICY
    if facts.obstacle is not None:
        return facts.obstacle
    if facts.num_prompt_tokens is None or uncached is None:
        return RouteReason.UNCOUNTED
    if facts.num_prompt_tokens < 2:
        return RouteReason.PROMPT_TOO_SHORT
    if uncached <= policy.threshold_tokens:
        return RouteReason.BELOW_THRESHOLD
    # With all but the last token cached there is nothing that a prefill elsewhere could add.
    return RouteReason.PREFIX_CACHED if uncached <= 1 else None


def _decode_legs(
    candidates: Sequence[Candidate],
    chosen: Candidate | None,
    facts: RequestFacts,
    *,
    lands: bool = False,
    passed_over: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Considered, ...]:
    loads = loads_of(candidates)

    def ruled_out(c: Candidate) -> str | None:
        return passed_over.get(c.name) or _why_not(c, chosen, needs_node=lands)

    shown = _told(candidates, chosen, loads)
    return tuple(Considered(c.name, "decode", loads[c.name], _uncached(facts, c), ruled_out(c)) for c in shown)


def _prefill_legs(candidates: Sequence[Candidate], chosen: Candidate, landing: Candidate) -> tuple[Considered, ...]:
    loads = loads_of(candidates)

    def ruled_out(c: Candidate) -> str | None:
        return "no_lane" if landing.name in c.cut_off_from else _why_not(c, chosen, needs_node=True)

    shown = _told(candidates, chosen, loads)
    return tuple(Considered(c.name, "prefill", loads[c.name], None, ruled_out(c)) for c in shown)


def _told(candidates: Sequence[Candidate], chosen: Candidate | None, loads: Mapping[str, int]) -> Sequence[Candidate]:
    """What a route keeps: the least loaded and the chosen one, in their order."""
    if len(candidates) <= MAX_TOLD:
        return candidates

    def rank(index: int) -> tuple[bool, int]:
        return candidates[index] is not chosen, loads[candidates[index].name]

    return [candidates[index] for index in sorted(sorted(range(len(candidates)), key=rank)[:MAX_TOLD])]


def _why_not(candidate: Candidate, chosen: Candidate | None, *, needs_node: bool) -> str | None:
    if candidate is chosen:
        return None
    if not candidate.engine_healthy:
        return "engine_down"
    if needs_node and not candidate.node_ready:
        return "node_not_ready"
    return "busier"
