"""Profile files as typed values. docs/profiles.md describes them for people."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from prfaas.deployment.model import Strict

Tokens = Annotated[float, Field(gt=0, le=1 << 27, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class BytesAt(Strict):
    """KVCache size of one prompt length."""

    tokens: Tokens
    bytes: Positive


class SecondsAt(Strict):
    """Prefill time of one prompt length."""

    tokens: Tokens
    seconds: Positive


class GbpsAt(Strict):
    """KV throughput Φ_kv of one prompt length, in 10^9 bits per second."""

    tokens: Tokens
    gbps: Positive


class Quadratic(Strict):
    """s + s_per_token · l + s_per_token2 · l², in seconds for l tokens."""

    s: NotNegative
    s_per_token: NotNegative
    s_per_token2: NotNegative = 0.0


class Prefill(Strict):
    """T_prefill(l) of one instance, in exactly one of these forms. `kv_throughput`: T_prefill = S_kv / Φ_kv (Eq. 1)."""

    quadratic: Quadratic | None = None
    table: tuple[SecondsAt, ...] = ()
    kv_throughput: tuple[GbpsAt, ...] = ()

    @model_validator(mode="after")
    def _one_form(self) -> Prefill:
        if bool(self.quadratic) + bool(self.table) + bool(self.kv_throughput) != 1:
            raise ValueError("give exactly one of quadratic, table, kv_throughput")
        return self


class Step(Strict):
    """Duration of one decode step with that many sequences at once."""

    batch: int = Field(gt=0, le=1 << 20)
    step_s: Positive


class Fit(Strict):
    """A curve through measured times, for people; the table is what is planned with."""

    quadratic: Quadratic
    max_relative_error: NotNegative


class HardwareProfile(Strict):
    """How fast one instance of an accelerator prefills and decodes a model, and where the numbers are from."""

    profile: Literal[1]
    model: str
    accelerator: str
    gpus_per_instance: int = Field(gt=0, le=1024)
    source: str = Field(min_length=1)
    prefill: Prefill
    decode: tuple[Step, ...] = ()
    fit: Fit | None = None


class KvBytes(Strict):
    """S_kv(l) as a table, for models whose config is not published."""

    table: tuple[BytesAt, ...] = Field(min_length=1)


class ModelProfile(Strict):
    """KVCache size of a model: from the fields of its config.json, or from a table."""

    model: str
    source: str = Field(min_length=1)
    hf_config: dict[str, Any] | None = None
    kv_bytes: KvBytes | None = None

    @model_validator(mode="after")
    def _one_form(self) -> ModelProfile:
        if (self.hf_config is None) == (self.kv_bytes is None):
            raise ValueError("give exactly one of hf_config, kv_bytes")
        return self
