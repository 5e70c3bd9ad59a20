"""`kv_transfer_params`: what the gateway tells the two engines of an offloaded request, and what prefill answers.

Our part stands under `prfaas`; the two flags beside it are the engine's own and say which leg it is. Only the gateway
may set them: it strips what a client sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Final, TypeVar

from msgspec import Meta

from prfaas.core.wire.contract import (
    Bytes,
    Message,
    Name,
    PromptTokens,
    Seconds,
    Secret,
    Text,
    TokenDigest,
    Tokens,
    TransferId,
    check_version,
    from_values,
    to_values,
)

#: 2 brought the claim secret.
VERSION: Final = 2

_PREFILL_LEG: Final = {"do_remote_decode": True, "do_remote_prefill": False}
_DECODE_LEG: Final = {"do_remote_decode": False, "do_remote_prefill": True}


class PrefillParams(Message, frozen=True):
    """Prefill this prompt less its last token, and send its KVCache to the landing at node `peer`. `token` opens it."""

    version: int
    transfer_id: TransferId
    peer: Name
    token: Secret
    num_prompt_tokens: PromptTokens
    skip_tokens: Tokens
    num_bytes: Annotated[int, Meta(ge=1, le=1 << 62)]
    deadline_s: Seconds

    def __repr__(self) -> str:
        return f"PrefillParams({self.transfer_id} to {self.peer}, {self.num_bytes} bytes)"


class DecodeParams(Message, frozen=True):
    """The prompt's KVCache has landed at the node beside you. Load it, if your prompt has this digest."""

    version: int
    transfer_id: TransferId
    num_prompt_tokens: PromptTokens
    skip_tokens: Tokens
    token_digest: TokenDigest
    claim_secret: Secret

    def __repr__(self) -> str:
        return f"DecodeParams({self.transfer_id}, {self.num_prompt_tokens} tokens)"


class PrefillStatus(StrEnum):
    """Whether the whole image was staged."""

    STAGED = "staged"
    FAILED = "failed"


class PrefillReport(Message, frozen=True):
    """What the prefill engine's response says of the transfer. `error` is null if it was staged."""

    transfer_id: Annotated[str, Meta(max_length=128)]
    status: PrefillStatus
    num_bytes: Bytes
    error: Text | None


Leg = TypeVar("Leg", PrefillParams, DecodeParams)


def prefill_leg(params: PrefillParams) -> dict[str, Any]:
    """`kv_transfer_params` of the request to the prefill engine."""
    return {**_PREFILL_LEG, "prfaas": to_values(params)}


def decode_leg(params: DecodeParams) -> dict[str, Any]:
    """`kv_transfer_params` of the request to the decode engine."""
    return {**_DECODE_LEG, "prfaas": to_values(params)}


def report_leg(report: PrefillReport) -> dict[str, Any]:
    """`kv_transfer_params` of the prefill engine's response."""
    return {"prfaas": to_values(report)}


def ours(kv_transfer_params: object, leg: type[Leg]) -> dict[str, Any] | None:
    """Our part, unread, if the request is that leg of an offloaded one."""
    flag = "do_remote_decode" if leg is PrefillParams else "do_remote_prefill"
    if not isinstance(kv_transfer_params, Mapping) or not kv_transfer_params.get(flag):
        return None
    part = kv_transfer_params.get("prfaas")
    return part if isinstance(part, dict) else None


def read_leg(part: Mapping[str, Any], leg: type[Leg]) -> Leg:
    """Raises BadMessage, and OtherVersion before anything else is looked at."""
    check_version("kv_transfer_params", VERSION, part.get("version"))
    return from_values(leg, part)


def read_report(answer: object) -> PrefillReport | None:
    """What a prefill engine's response says; None if it says nothing of a transfer. Raises BadMessage."""
    said = answer.get("kv_transfer_params") if isinstance(answer, Mapping) else None
    part = said.get("prfaas") if isinstance(said, Mapping) else None
    return None if part is None else from_values(PrefillReport, part)


def text_of(part: Mapping[str, Any], name: str) -> str:
    """A text of a part that could not be read, to name it in an answer; empty if it is none."""
    value = part.get(name)
    return value[:128] if isinstance(value, str) else ""
