"""vLLM's dialect: its OpenAI server with `PrfaasConnector`, as docs/protocols.md states it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import orjson

from prfaas.core.wire.contract import BadMessage
from prfaas.core.wire.params import (
    DecodeParams,
    PrefillParams,
    PrefillStatus,
    decode_leg,
    prefill_leg,
    read_report,
)
from prfaas.engines.dialect import EngineLoad, PrefillAnswer, PrefillFault, PrefillPrompt, Route

#: An engine's error text may be long, and may repeat the prompt.
MAX_DETAIL_CHARS: Final = 200

#: Gauges of vLLM's /metrics. Each data-parallel rank has a line of its own.
RUNNING: Final = b"vllm:num_requests_running"
WAITING: Final = b"vllm:num_requests_waiting"


class VllmDialect:
    """See `engines.dialect.Dialect`."""

    paths: Mapping[Route, str] = MappingProxyType({"completions": "/v1/completions", "chat": "/v1/chat/completions"})
    prefill_path = "/v1/completions"
    health_path = "/health"
    load_path = "/metrics"
    steering_fields = frozenset({"kv_transfer_params", "ec_transfer_params", "data_parallel_rank"})
    #: vLLM copies these arguments into the same place as `kv_transfer_params`, so they could smuggle them in.
    steering_containers = frozenset({"vllm_xargs"})

    def prefill_body(self, prompt: PrefillPrompt, params: PrefillParams) -> bytes:
        """Token ids, one token wanted, no stream."""
        body: dict[str, Any] = {
            "model": prompt.model,
            "prompt": prompt.token_ids,
            "max_tokens": 1,
            "stream": False,
            "kv_transfer_params": prefill_leg(params),
        }
        if prompt.cache_salt:
            body["cache_salt"] = prompt.cache_salt
        return orjson.dumps(body)

    def read_prefill(self, status: int, body: bytes) -> PrefillAnswer:
        if status != 200:
            return _fault(
                PrefillFault.HTTP_ERROR, f"status {status}: {body[:MAX_DETAIL_CHARS].decode('utf-8', 'replace')}"
            )
        try:
            report = read_report(orjson.loads(body))
        except orjson.JSONDecodeError:
            report = None
        except BadMessage as error:
            return _fault(PrefillFault.FAILED, str(error)[:MAX_DETAIL_CHARS])
        if report is None:
            # An engine without the connector answers like this: it computed one token and moved nothing.
            return _fault(PrefillFault.NO_TRANSFER, "the prefill engine says nothing of a transfer")
        if report.status is not PrefillStatus.STAGED:
            return _fault(PrefillFault.FAILED, str(report.error)[:MAX_DETAIL_CHARS])
        if not report.num_bytes:
            return _fault(PrefillFault.NO_BYTES, "the prefill engine staged no bytes")
        return PrefillAnswer(report.num_bytes)

    def decode_body(self, body: bytes, params: DecodeParams) -> bytes:
        # Put before the last brace: to read and write a long prompt would take milliseconds.
        ours = orjson.dumps({"kv_transfer_params": decode_leg(params)})
        return body.rstrip(b" \t\r\n").removesuffix(b"}") + b"," + ours.removeprefix(b"{")

    def read_load(self, status: int, body: bytes) -> EngineLoad | None:
        if status != 200:
            return None
        running, waiting = _gauge(body, RUNNING), _gauge(body, WAITING)
        return None if running is None or waiting is None else EngineLoad(running, waiting)


def _fault(fault: PrefillFault, detail: str) -> PrefillAnswer:
    return PrefillAnswer(0, fault, detail)


def _gauge(text: bytes, name: bytes) -> int | None:
    """Sum over all lines of one metric; None without any, or if one is no count."""
    total: int | None = None
    for line in text.splitlines():
        if not line.startswith((name + b"{", name + b" ")):
            continue
        try:
            # Label values may hold blanks; what stands behind the last brace does not, but for a time stamp.
            value = float(line.rpartition(b"}")[2].removeprefix(name).split()[0])
        except (ValueError, IndexError):
            return None
        if not (math.isfinite(value) and value >= 0):
            return None
        total = (total or 0) + int(value)
    return total
