"""Why one leg of a request failed."""

from __future__ import annotations

from enum import StrEnum

from prfaas.core.record import record


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


@record
class Failure:
    """`refused`: the process does not listen at all, so the next request need not find that out again."""

    reason: FallbackReason
    detail: str
    refused: bool = False
