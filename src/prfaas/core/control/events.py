"""What can happen to the control core. Every event is a fact that somebody outside saw; none is a wish.

`now_s` is not in an event: it is the scheduler's second argument. `attempt` numbers the decode legs of one request, so
that what an earlier leg says late changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import field

from prfaas.core.cache.hashing import TokenChain
from prfaas.core.control.fallback import Failure
from prfaas.core.control.route import Route
from prfaas.core.control.router import RoutePolicy
from prfaas.core.record import record
from prfaas.core.topology import Topology


@record
class RequestArrived:
    """A valid request. Its prompt has at most `max_prompt_tokens`; `fits` says that these and the output asked for fit
    the model's context. `obstacle` names a feature that forbids prefilling elsewhere. `transfer_id` is fresh: the name
    of this request's transfer, if it gets one. While prompts wait, lower `priority` goes first, and tenants share
    fairly. `max_ttft_s`: an answer that begins later is worth nothing. The rest is for whoever reads the journal."""

    request_id: str
    transfer_id: str
    max_prompt_tokens: int
    fits: bool = True
    obstacle: str | None = None
    endpoint: str = ""
    is_stream: bool = False
    stripped_fields: tuple[str, ...] = ()
    priority: int = 0
    tenant: str = ""
    max_ttft_s: float | None = None


@record
class PromptCounted:
    """The prompt in tokens, cut into blocks of each size that `CountPrompt` asked for."""

    request_id: str
    num_tokens: int
    chains: Mapping[int, TokenChain] = field(default_factory=dict)


@record
class PromptUncountable:
    """The engine's tokens cannot be known here; `obstacle` says why."""

    request_id: str
    obstacle: str | None


@record
class TurnCame:
    """A prompt need wait no more: an instance has room for it, as `route` says, or without one it is placed anew. Made
    by the scheduler itself."""

    request_id: str
    route: Route | None


@record
class LandingReserved:
    """The decode side's node holds space for `num_bytes`. The rest describes the engine beside it, as the node knows
    it; None where it says nothing."""

    request_id: str
    num_bytes: int
    block_tokens: int | None = None
    engine_boot_id: str | None = None
    kv_group_kinds: Collection[str] | None = None


@record
class ReserveFailed:
    """There is no landing, or nobody knows: dropping it is harmless."""

    request_id: str
    failure: Failure


@record
class PrefillEnded:
    """The prefill engine answered or broke. Without `failure` it has staged every byte."""

    request_id: str
    failure: Failure | None = None


@record
class LandingEnded:
    """The landing is past receiving. Without `failure` every one of `num_bytes` has landed."""

    request_id: str
    num_bytes: int = 0
    failure: Failure | None = None


@record
class LeaseRenewed:
    """The answer to `RenewLease`. `is_held`: the landing still waits for its engine, so the lease matters."""

    request_id: str
    is_held: bool


@record
class AnswerBegan:
    """The first byte of a good answer has come from the engine."""

    request_id: str
    attempt: int


@record
class DecodeFailed:
    """A decode leg broke and the client has seen nothing of it."""

    request_id: str
    attempt: int
    failure: Failure


@record
class AnswerEnded:
    """The client has its last byte: of an answer, or of a refusal."""

    request_id: str
    outcome: str
    status: int | None = None
    error: str | None = None
    completion_tokens: int | None = None


@record
class RequestAbandoned:
    """Nobody waits for the answer any more: the client left, or the request's time is over."""

    request_id: str
    outcome: str
    status: int | None = None
    error: str | None = None


@record
class FinalRecord:
    """What the node says of a landing that is over. Counts are None where it does not know."""

    state: str
    reason: str | None = None
    tokens_loaded: int | None = None
    tokens_recomputed: int | None = None
    bytes_resent: int | None = None


@record
class LandingSettled:
    """The answer to `SettleLanding`: the landing is freed. Without `record` nobody knows, and it must be dropped."""

    request_id: str
    record: FinalRecord | None


@record
class LandingDropped:
    """The answer to `DropLanding`: the landing is freed, or its node is gone and the lease frees it."""

    request_id: str


@record
class DeadlinePassed:
    """A transfer did not land within `deadline_s`; or, with a `why`, it will not. Made by the scheduler itself when a
    `Tick` finds it, or a link falls."""

    request_id: str
    deadline_s: float
    why: str = ""


@record
class EngineSeen:
    """An engine answered a probe. `num_requests`, running and waiting, is None where it does not say."""

    instance: str
    healthy: bool
    num_requests: int | None = None


@record
class EngineSilent:
    """A probe got no answer. `refused`: nobody listens there."""

    instance: str
    refused: bool


@record
class NodeSeen:
    """A KV node answered a probe. `has_engine`: an engine has registered there. It has no lane up to the nodes of the
    instances `cut_off_from`."""

    instance: str
    has_engine: bool
    block_tokens: int | None = None
    engine_boot_id: str | None = None
    kv_group_kinds: Collection[str] | None = None
    cut_off_from: frozenset[str] = frozenset()


@record
class NodeSilent:
    """A KV node did not answer a probe."""

    instance: str


@record
class LinkSeen:
    """What a sending node says of its link to another node. `queued_bytes` have not left it yet, or are still to be
    computed; `unsent_bytes` of them are with the host's network stack, which cannot get rid of them;
    `delivered_bytes_per_s` of late. `arrives_bytes_per_s`: what the receiver acknowledges while bytes do not arrive in
    time, whoever holds them; then `left_bytes` has what is missing, by transfer. None: not said."""

    source: str
    target: str
    verdict: str
    capacity_bytes_per_s: float | None = None
    queued_bytes: int | None = None
    delivered_bytes_per_s: float | None = None
    unsent_bytes: int | None = None
    arrives_bytes_per_s: float | None = None
    left_bytes: Mapping[str, int] = field(default_factory=dict)


@record
class LinksLost:
    """A sending node no longer says how its links are."""

    source: str


@record
class TopologyChanged:
    """The deployment's instances and links are now these."""

    topology: Topology


@record
class PolicyChanged:
    """Prompts are routed by this from now on."""

    policy: RoutePolicy


@record
class ConversionRefused:
    """The answer to `Convert` of whoever runs the instance: it keeps its duty."""

    instance: str
    detail: str


@record
class Tick:
    """Time has passed; see `Scheduler.next_due_s`."""


RequestEvent = (
    RequestArrived
    | PromptCounted
    | PromptUncountable
    | TurnCame
    | LandingReserved
    | ReserveFailed
    | PrefillEnded
    | LandingEnded
    | LeaseRenewed
    | AnswerBegan
    | DecodeFailed
    | AnswerEnded
    | RequestAbandoned
    | LandingSettled
    | LandingDropped
    | DeadlinePassed
)
WorldEvent = (
    EngineSeen
    | EngineSilent
    | NodeSeen
    | NodeSilent
    | LinkSeen
    | LinksLost
    | TopologyChanged
    | PolicyChanged
    | ConversionRefused
)
Event = RequestEvent | WorldEvent | Tick
