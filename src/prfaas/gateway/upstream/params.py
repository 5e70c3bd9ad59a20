"""What the gateway sends to the two engines of an offloaded request, as docs/protocols.md states it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import orjson

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


def prefill_body(spec: OffloadSpec, landing: dict[str, Any], num_bytes: int) -> bytes:
    """The prefill leg: token ids, one token wanted, no stream. `landing` is the node's answer to the reservation."""
    prfaas = {
        **_common(spec),
        "peer": landing.get("node"),
        "token": landing.get("token"),
        "num_bytes": num_bytes,
        "deadline_s": spec.deadline_s,
    }
    body: dict[str, Any] = {
        "model": spec.model,
        "prompt": spec.token_ids,
        "max_tokens": 1,
        "stream": False,
        "kv_transfer_params": {"do_remote_decode": True, "do_remote_prefill": False, "prfaas": prfaas},
    }
    if spec.cache_salt:
        body["cache_salt"] = spec.cache_salt
    return orjson.dumps(body)


def decode_params(spec: OffloadSpec) -> dict[str, Any]:
    """`kv_transfer_params` of the decode leg, which goes with the client's own body."""
    prfaas = {**_common(spec), "token_digest": spec.token_digest, "claim_secret": spec.claim_secret}
    return {"do_remote_decode": False, "do_remote_prefill": True, "prfaas": prfaas}


def _common(spec: OffloadSpec) -> dict[str, Any]:
    return {
        "version": PROTOCOL_VERSION,
        "transfer_id": spec.transfer_id,
        "num_prompt_tokens": len(spec.token_ids),
        "skip_tokens": spec.skip_tokens,
    }
