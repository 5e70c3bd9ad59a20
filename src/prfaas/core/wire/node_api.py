"""The HTTP control of a KV node: what the gateway asks and what the node answers, as JSON.

The version travels in the header `prfaas-version` of every request and answer. A request without the header is taken:
people ask with curl.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Annotated, Final

from msgspec import Meta

from prfaas.core.link.snapshot import LinkSnapshot
from prfaas.core.link.verdict import LinkVerdict
from prfaas.core.model.layout import KVGroupKind
from prfaas.core.wire.contract import (
    MAX_BYTES,
    Bytes,
    Count,
    Fingerprint,
    Measured,
    Message,
    Name,
    PromptTokens,
    Seconds,
    Secret,
    Text,
    TokenDigest,
    Tokens,
    TransferId,
)

#: 2 brought the claim secret, the kinds of the KV groups, and refusals of unknown fields; 3 what arrives over a link.
VERSION: Final = 3
VERSION_HEADER: Final = "prfaas-version"

DEFAULT_LEASE_S: Final = 30.0
#: A poll longer than this would outlive proxies and hide a dead gateway.
MAX_WAIT_S: Final = 60.0

Wait = Annotated[float, Meta(ge=0, le=MAX_WAIT_S)]


class LandingState(StrEnum):
    """See docs/protocols.md for what each state promises."""

    RESERVED = "reserved"
    RECEIVING = "receiving"
    LANDED = "landed"
    CLAIMED = "claimed"
    CONSUMED = "consumed"
    ABORTED = "aborted"
    EXPIRED = "expired"


FINAL_STATES: Final = frozenset({LandingState.CONSUMED, LandingState.ABORTED, LandingState.EXPIRED})
OPEN_STATES: Final = frozenset({LandingState.RESERVED, LandingState.RECEIVING})


class Until(StrEnum):
    """What a poll of a landing waits for: any state but the open ones, or a final one."""

    LANDED = "landed"
    FINAL = "final"


class TransferState(StrEnum):
    """`staging`: the engine is still computing; `sending`: all is staged; the other two are final."""

    STAGING = "staging"
    SENDING = "sending"
    COMMITTED = "committed"
    ABORTED = "aborted"


class Verdict(StrEnum):
    """`LinkVerdict` in words."""

    CLEAR = "clear"
    PRESSED = "pressed"
    CONGESTED = "congested"

    @property
    def level(self) -> LinkVerdict:
        """In order of urgency."""
        return LinkVerdict[self.name]


class Reservation(Message, frozen=True):
    """`POST /v1/landings`. Whoever shall load the landing must show `claim_secret`, drawn anew for every transfer, and
    have a prompt with this digest."""

    transfer_id: TransferId
    num_prompt_tokens: PromptTokens
    token_digest: TokenDigest
    claim_secret: Secret
    skip_tokens: Tokens = 0
    lease_s: Seconds = DEFAULT_LEASE_S

    def __repr__(self) -> str:
        return f"Reservation({self.transfer_id}, {self.num_prompt_tokens} tokens)"


class Reserved(Message, frozen=True):
    """Its answer. `token` lets a sender write into the landing. `kv_group_kinds` are those of the registered layout, in
    its order."""

    transfer_id: TransferId
    token: Secret
    node: Name
    num_bytes: Bytes
    block_tokens: Count
    engine_boot_id: Name
    fingerprint: Fingerprint
    kv_group_kinds: tuple[KVGroupKind, ...]

    def __repr__(self) -> str:
        return f"Reserved({self.transfer_id}, {self.num_bytes} bytes)"


class Renewal(Message, frozen=True):
    """`POST /v1/landings/{id}/renew`: let the lease run from now."""

    lease_s: Seconds = DEFAULT_LEASE_S


class LandingQuery(Message, frozen=True):
    """Query of `GET /v1/landings/{id}`."""

    wait_s: Wait = 0.0
    until: Until = Until.LANDED


class LandingRecord(Message, frozen=True):
    """How a landing is, or how it ended. `tokens_loaded` and `tokens_recomputed` are what the engine said; null before
    it has."""

    transfer_id: TransferId
    state: LandingState
    reason: str | None
    num_bytes: Bytes
    bytes_landed: Bytes
    num_prompt_tokens: Tokens
    skip_tokens: Tokens
    tokens_loaded: Tokens | None
    tokens_recomputed: Tokens | None
    bytes_resent: Bytes
    landed_after_s: Measured | None


class TransferRecord(Message, frozen=True):
    """How the sending half of a transfer is, or how it ended. Times are seconds since it was opened; null when not
    yet."""

    transfer_id: TransferId
    state: TransferState
    reason: str | None
    num_bytes: Bytes
    bytes_staged: Bytes
    bytes_sent: Bytes
    bytes_acked: Bytes
    bytes_resent: Bytes
    first_staged_s: Measured | None
    last_staged_s: Measured | None
    first_sent_s: Measured | None
    finished_s: Measured | None


class LinksQuery(Message, frozen=True):
    """Query of `GET /v1/links`: wait until `changes` is another number than `after`."""

    after: str = ""
    wait_s: Wait = 0.0


class LinkReport(Message, frozen=True):
    """The link to one peer. `queued_bytes` is what the peer has not acknowledged of `num_transfers` transfers, and has
    not read of such as are over. `arrives_bytes_per_s` is what it acknowledges while bytes do not arrive in time, null
    while they do; then `left_bytes` says what is missing of each transfer, of the first 256. Moments are ages, since
    clocks of two machines do not compare; null is not known."""

    lanes_up: Count
    queued_bytes: Bytes
    num_transfers: Count
    verdict: Verdict
    verdict_for_s: Measured
    capacity_bytes_per_s: Measured | None
    delivered_bytes_per_s: Measured
    newest_bytes_per_s: Measured
    utilization: Measured | None
    rtt_s: Measured | None
    min_rtt_s: Measured | None
    rtt_ratio: Measured | None
    retransmit_ratio: Measured
    unsent_bytes: Bytes
    arrives_bytes_per_s: Measured | None
    left_bytes: dict[TransferId, Bytes]
    age_s: Measured

    @classmethod
    def of(cls, seen: LinkSnapshot, now_s: float) -> LinkReport:
        """What is known of a link at `now_s`, by the clock of its state."""
        state = seen.state
        return cls(
            lanes_up=seen.lanes_up,
            queued_bytes=seen.queued_bytes,
            num_transfers=seen.num_transfers,
            verdict=Verdict[state.verdict.name],
            verdict_for_s=max(0.0, now_s - state.verdict_since_s),
            capacity_bytes_per_s=_finite(state.capacity_bytes_per_s),
            delivered_bytes_per_s=state.delivered_bytes_per_s,
            newest_bytes_per_s=state.newest_bytes_per_s,
            utilization=_finite(state.utilization),
            rtt_s=_finite(state.rtt_s),
            min_rtt_s=_finite(state.min_rtt_s),
            rtt_ratio=_finite(state.rtt_ratio),
            retransmit_ratio=state.retransmit_ratio,
            unsent_bytes=min(state.unsent_bytes, MAX_BYTES),
            arrives_bytes_per_s=_finite(seen.arrives_bytes_per_s),
            left_bytes=dict(seen.left_bytes),
            age_s=max(0.0, now_s - state.at_s),
        )


def _finite(figure: float | None) -> float | None:
    # JSON has no infinity; a ratio to next to nothing is as good as not known.
    return figure if figure is not None and math.isfinite(figure) else None


class LinkReports(Message, frozen=True):
    """`GET /v1/links`. `changes` counts changes of verdicts; `links` is by peer."""

    node: Name
    changes: Count
    links: dict[str, LinkReport]


class EngineHealth(Message, frozen=True):
    """One engine that has registered a layout."""

    engine_id: Name
    engine_boot_id: Name
    fingerprint: Fingerprint
    block_tokens: Count
    max_model_tokens: Count
    kv_group_kinds: tuple[KVGroupKind, ...]


class PeerHealth(Message, frozen=True):
    """A node that this one sends to; `error` says why it cannot be reached."""

    lanes_up: Count
    error: str | None


class NodeHealth(Message, frozen=True):
    """`GET /health`. The newest engine is the last; `lanes_from` counts lanes by sending node."""

    status: Name
    node: Name
    boot_id: Name
    arena_bytes: Bytes
    arena_free_bytes: Bytes
    engines: tuple[EngineHealth, ...]
    peers: dict[str, PeerHealth]
    lanes_from: dict[str, Count]


class ErrorDetail(Message, frozen=True):
    """`code` is stable and for programs, `message` for people."""

    code: Name
    message: Text


class ErrorReply(Message, frozen=True):
    """Any answer with a status of 400 or more."""

    error: ErrorDetail
