"""What the two engines of an offloaded request are told of it, as docs/protocols.md states it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

PROTOCOL_VERSION: Final = 2


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
    deadline_s: float
    lease_s: float


def prefill_params(spec: OffloadSpec, landing: dict[str, Any], num_bytes: int) -> dict[str, Any]:
    """Of the prefill leg. `landing` is the node's answer to the reservation."""
    return {
        **_common(spec),
        "peer": landing.get("node"),
        "token": landing.get("token"),
        "num_bytes": num_bytes,
        "deadline_s": spec.deadline_s,
    }


def decode_params(spec: OffloadSpec) -> dict[str, Any]:
    """Of the decode leg."""
    return {**_common(spec), "token_digest": spec.token_digest, "claim_secret": spec.claim_secret}


def _common(spec: OffloadSpec) -> dict[str, Any]:
    return {
        "version": PROTOCOL_VERSION,
        "transfer_id": spec.transfer_id,
        "num_prompt_tokens": len(spec.token_ids),
        "skip_tokens": spec.skip_tokens,
    }
