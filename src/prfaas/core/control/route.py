"""Where one request runs, why, and what else it could have done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from enum import StrEnum
from typing import Final

from prfaas.core.cache.hashing import TokenChain
from prfaas.core.record import record

#: How much the waiting of others counts. Half of it is best in what docs/benchmarks/scheduler.md measures: those who
#: come after choose too, and go elsewhere.
OTHERS_COUNT: Final = 0.5
#: A route keeps so many of a request's ways, and of the instances for each leg: the cheapest, and the least loaded. Ten
#: by forty linked clusters give each prompt 440 ways, which would take 100 kB for as long as the request is there.
MAX_TOLD: Final = 32


class RouteKind(StrEnum):
    """`LOCAL`: the decode engine computes the prompt. `PD_PREFILL`: a prefill instance of its own cluster does.
    `REMOTE`: a PrfaaS cluster does. `NONE`: no healthy path."""

    LOCAL = "local"
    PD_PREFILL = "pd_prefill"
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
    NO_PD_PREFILL = "no_pd_prefill"
    NO_HEALTHY_ENGINE = "no_healthy_engine"


@record
class Option:
    """`prefill_cluster` computes `num_prefill_tokens` of the prompt, which it does not hold; the instance that answers
    lacks `num_uncached_tokens`: `decode` of `decode_cluster`, empty if it is chosen later. `wait_s` until its turn
    comes, `prefill_s` on one instance; `transfer_s`: from the prefill's end until the answer can begin. `others_s`: how
    much longer others wait for it. `rtt_s`: what the ways from the gateway to the clusters, and back, add.
    `num_fetched_tokens` of the prompt come from elsewhere first, within `wait_s`."""

    kind: RouteKind
    prefill_cluster: str
    decode_cluster: str
    decode: str
    num_uncached_tokens: int
    num_prefill_tokens: int
    wait_s: float
    prefill_s: float
    transfer_s: float
    others_s: float
    rtt_s: float = 0.0
    num_fetched_tokens: int = 0

    @property
    def finish_s(self) -> float:
        """Until the answer begins at the gateway, from now."""
        return self.wait_s + self.prefill_s + self.transfer_s + self.rtt_s

    @property
    def cost_s(self) -> float:
        """What is compared."""
        return self.wait_s + self.prefill_s + self.transfer_s + self.rtt_s + OTHERS_COUNT * self.others_s


@record
class Prompt:
    """`chains`: its blocks' names, by block size. The rest is of its request: see RequestArrived."""

    num_tokens: int
    chains: Mapping[int, TokenChain]
    priority: int = 0
    tenant: str = ""


@record
class Ahead:
    """What is before a prompt that waits: seconds of prefill in its queue, and bytes on its way's link."""

    waiting_s: float
    link_bytes: float


#: Takes one of the ways that a prompt has.
Choose = Callable[[Sequence[Option], Prompt], Option]


@record
class Considered:
    """One instance that could have served a leg: what was known of it, and why it was not taken, None if it was."""

    instance: str
    leg: str
    load: int
    uncached_tokens: int | None
    ruled_out: str | None


@record
class Route:
    """`decode` is empty for `NONE`, `prefill` where the decode engine computes the prompt. `reason` is what decided;
    `considered` is what it was decided between, and `options` what each way was expected to cost, `MAX_TOLD` at
    most. `prefill` fetches the first `num_fetched_tokens` from `fetch_from`, if there is one."""

    kind: RouteKind
    reason: str
    decode: str = ""
    prefill: str = ""
    num_uncached_tokens: int | None = None
    considered: tuple[Considered, ...] = field(default=(), compare=False)
    options: tuple[Option, ...] = field(default=(), compare=False)
    fetch_from: str = ""
    num_fetched_tokens: int = 0
