"""What the two engines of an offloaded request are told of it, as docs/protocols.md states it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from prfaas.core.wire.node_api import Reservation, Reserved
from prfaas.core.wire.params import VERSION, DecodeParams, PrefillParams


@dataclass(frozen=True, slots=True)
class OffloadSpec:
    """What to move where. Times in seconds; `model`, `headers` and `cache_salt` are for the prefill leg, `claim_secret`
    for the decode leg alone."""

    transfer_id: str
    token_ids: list[int]
    token_digest: str
    claim_secret: str = field(repr=False)
    skip_tokens: int
    model: str
    cache_salt: str
    headers: dict[str, str]
    lease_s: float

    def reservation(self) -> Reservation:
        """What the decode side's node is asked."""
        return Reservation(
            transfer_id=self.transfer_id,
            num_prompt_tokens=len(self.token_ids),
            token_digest=self.token_digest,
            claim_secret=self.claim_secret,
            skip_tokens=self.skip_tokens,
            lease_s=self.lease_s,
        )


def prefill_params(spec: OffloadSpec, landing: Reserved, deadline_s: float) -> PrefillParams:
    """Of the prefill leg, which has `deadline_s` left. `landing` is the node's answer to the reservation."""
    return PrefillParams(
        version=VERSION,
        transfer_id=spec.transfer_id,
        peer=landing.node,
        token=landing.token,
        num_prompt_tokens=len(spec.token_ids),
        skip_tokens=spec.skip_tokens,
        num_bytes=landing.num_bytes,
        deadline_s=deadline_s,
    )


def decode_params(spec: OffloadSpec) -> DecodeParams:
    """Of the decode leg."""
    return DecodeParams(
        version=VERSION,
        transfer_id=spec.transfer_id,
        num_prompt_tokens=len(spec.token_ids),
        skip_tokens=spec.skip_tokens,
        token_digest=spec.token_digest,
        claim_secret=spec.claim_secret,
    )
