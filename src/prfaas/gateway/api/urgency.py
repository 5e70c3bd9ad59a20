"""How soon a request wants to be served, and for whom: from its headers and its body. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from prfaas.gateway.api.errors import bad_request

MAX_TTFT_HEADER: Final = b"x-prfaas-max-ttft-ms"
MAX_TTFT_MS: Final = 3_600_000
#: Of vLLM's field of this name; far beyond what anybody needs.
MAX_PRIORITY: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Urgency:
    """See `RequestArrived`."""

    priority: int
    tenant: str
    max_ttft_s: float | None


def urgency_of(headers: Mapping[bytes, bytes], body: Mapping[str, Any], *, trusts_priority: bool) -> Urgency:
    """A tenant is whoever has the same `Authorization`. Raises ApiError 400 for a bound that is none."""
    key = headers.get(b"authorization", b"")
    tenant = hashlib.sha256(key).hexdigest()[:16] if key else ""
    priority = body.get("priority") if trusts_priority else 0
    if not isinstance(priority, int) or isinstance(priority, bool):
        priority = 0  # the engine refuses what is no number, in its own words
    return Urgency(max(-MAX_PRIORITY, min(priority, MAX_PRIORITY)), tenant, _max_ttft_s(headers.get(MAX_TTFT_HEADER)))


def _max_ttft_s(text: bytes | None) -> float | None:
    if text is None:
        return None
    if not text.isdigit() or len(text) > 9 or not 1 <= int(text) <= MAX_TTFT_MS:
        name = MAX_TTFT_HEADER.decode()
        raise bad_request(f"{name} must be a whole number of milliseconds from 1 to {MAX_TTFT_MS}", name)
    return int(text) / 1e3
