"""Where one request runs. Pure: the same facts give the same route.

Laws of this file:
- A request is offloaded iff its incremental length, prompt less reusable prefix, exceeds the threshold, and nothing
  forbids it. Every other outcome names what forbade it.
- Only a healthy decode engine is chosen, the least busy first; the landing is on the node beside it.
- Nothing is offloaded unless the prefill engine, its node and the decode engine's node all work now, and at least one
  lane is up from node to node: without one a whole prefill would be computed for nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum

from prfaas.core.cache.engine_cache import NO_MATCH, PrefixMatch


class RouteKind(StrEnum):
    """`NONE`: no healthy path."""

    LOCAL = "local"
    REMOTE = "remote"
    NONE = "none"


class RouteReason(StrEnum):
    """Why a route was taken, before what a request's own features forbid (see `RequestFacts.obstacle`)."""

    ABOVE_THRESHOLD = "above_threshold"
    BELOW_THRESHOLD = "below_threshold"
    POLICY = "policy"
    PROMPT_TOO_SHORT = "prompt_too_short"
    PREFIX_CACHED = "prefix_cached"
    UNCOUNTED = "uncounted"
    NO_LANDING_NODE = "no_landing_node"
    PRFAAS_UNHEALTHY = "prfaas_unhealthy"
    NO_HEALTHY_ENGINE = "no_healthy_engine"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One instance: an engine and the node beside it. `prefix` is of the request at hand, on this engine;
    `cut_off_from` has the instances to which its node says that no lane is up."""

    name: str
    cluster: str
    engine_healthy: bool
    node_ready: bool
    num_inflight: int
    prefix: PrefixMatch = NO_MATCH
    cut_off_from: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """`num_prompt_tokens` is None when the prompt cannot be counted here; `obstacle` names a feature that forbids
    offloading, None if none does."""

    num_prompt_tokens: int | None
    obstacle: str | None


@dataclass(frozen=True, slots=True)
class RoutePolicy:
    """`links` holds (PrfaaS cluster, PD cluster) pairs; empty means that every pair is connected."""

    offload: bool
    threshold_tokens: int
    links: Collection[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True)
class Route:
    """`decode` is empty for `NONE`, `prefill` for everything but `REMOTE`."""

    kind: RouteKind
    reason: str
    decode: str = ""
    prefill: str = ""
    num_uncached_tokens: int | None = None


def decide(
    facts: RequestFacts, policy: RoutePolicy, decoders: Sequence[Candidate], prefillers: Sequence[Candidate]
) -> Route:
    """Route one request. Candidates are in file order, which breaks ties."""
    decode = least_busy([c for c in decoders if c.engine_healthy])
    if decode is None:
        return Route(RouteKind.NONE, RouteReason.NO_HEALTHY_ENGINE)
    uncached = _uncached(facts, decode)
    forbidden = _forbidden(facts, policy, uncached)
    if forbidden is not None:
        return Route(RouteKind.LOCAL, forbidden, decode.name, num_uncached_tokens=uncached)
    landing = least_busy([c for c in decoders if c.engine_healthy and c.node_ready])
    if landing is None:
        return Route(RouteKind.LOCAL, RouteReason.NO_LANDING_NODE, decode.name, num_uncached_tokens=uncached)
    prefill = least_busy([c for c in prefillers if _reaches(c, landing, policy.links)])
    if prefill is None:
        return Route(RouteKind.LOCAL, RouteReason.PRFAAS_UNHEALTHY, decode.name, num_uncached_tokens=uncached)
    remaining = _uncached(facts, landing)
    return Route(RouteKind.REMOTE, RouteReason.ABOVE_THRESHOLD, landing.name, prefill.name, remaining)


def least_busy(candidates: Sequence[Candidate]) -> Candidate | None:
    """Fewest requests in flight; among equals the one that knows most of the prompt, then the first."""
    if not candidates:
        return None
    return min(candidates, key=lambda c: (c.num_inflight, -c.prefix.reusable_prefix_tokens))


def _uncached(facts: RequestFacts, decode: Candidate) -> int | None:
    if facts.num_prompt_tokens is None:
        return None
    return facts.num_prompt_tokens - decode.prefix.reusable_prefix_tokens


def _forbidden(facts: RequestFacts, policy: RoutePolicy, uncached: int | None) -> str | None:
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


def _reaches(prefill: Candidate, landing: Candidate, links: Collection[tuple[str, str]]) -> bool:
    works = prefill.engine_healthy and prefill.node_ready and landing.name not in prefill.cut_off_from
    return works and (not links or (prefill.cluster, landing.cluster) in links)
