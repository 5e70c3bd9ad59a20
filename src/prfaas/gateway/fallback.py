"""Why an offloaded request is computed locally after all, and how an answer shows it. Pure."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from prfaas.core.wire.node_api import LandingRecord, LandingState
from prfaas.engines.dialect import PrefillAnswer, PrefillFault


class FallbackReason(StrEnum):
    """Why an offloaded request was computed locally after all. docs/gateway.md explains each; a test compares."""

    NODE_UNREACHABLE = "node_unreachable"
    NO_ENGINE = "no_engine"
    ARENA_FULL = "arena_full"
    TOO_MANY_LANDINGS = "too_many_landings"
    RESERVE_ERROR = "reserve_error"
    PREFILL_UNREACHABLE = "prefill_unreachable"
    PREFILL_HTTP_ERROR = "prefill_http_error"
    PREFILL_FAILED = "prefill_failed"
    ZERO_BYTES = "zero_bytes"
    LANDING_ABORTED = "landing_aborted"
    LANDING_EXPIRED = "landing_expired"
    LANDING_LOST = "landing_lost"
    DEADLINE = "deadline"
    DECODE_UNREACHABLE = "decode_unreachable"
    DECODE_ERROR = "decode_error"
    NOT_LOADED = "not_loaded"


class OffloadFailed(Exception):
    """The request must run locally as a fresh one."""

    def __init__(self, reason: FallbackReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


_OF_PREFILL: Final = {
    PrefillFault.HTTP_ERROR: FallbackReason.PREFILL_HTTP_ERROR,
    PrefillFault.NO_TRANSFER: FallbackReason.ZERO_BYTES,
    PrefillFault.FAILED: FallbackReason.PREFILL_FAILED,
    PrefillFault.NO_BYTES: FallbackReason.ZERO_BYTES,
}


def check_prefill(answer: PrefillAnswer) -> None:
    """Raise OffloadFailed unless the prefill engine says that it staged bytes for this transfer."""
    if answer.fault is not None:
        raise OffloadFailed(_OF_PREFILL[answer.fault], answer.detail)


def check_landed(record: LandingRecord) -> int:
    """Bytes of a landing that is past receiving. Raises OffloadFailed unless it landed with bytes in it."""
    if record.state is LandingState.LANDED:
        if record.bytes_landed == 0:
            raise OffloadFailed(FallbackReason.ZERO_BYTES, "landed without a byte")
        return record.bytes_landed
    expired = record.state is LandingState.EXPIRED
    raise OffloadFailed(
        FallbackReason.LANDING_EXPIRED if expired else FallbackReason.LANDING_ABORTED, str(record.reason)
    )


def reserve_reason(code: str) -> FallbackReason:
    """The reason for a node's error code."""
    known = (FallbackReason.NO_ENGINE, FallbackReason.ARENA_FULL, FallbackReason.TOO_MANY_LANDINGS)
    return FallbackReason(code) if code in known else FallbackReason.RESERVE_ERROR
