"""Emulated engines speak vLLM's dialect."""

from __future__ import annotations

from prfaas.engines.vllm.dialect import VllmDialect


class EmulatedDialect(VllmDialect):
    """See `engines.dialect.Dialect`."""
