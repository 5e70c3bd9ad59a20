"""KVCache size of a model from its Hugging Face config.json, by `model_type`.

Laws of this file:
- A `model_type` is known or refused, a field is as published or refused. Nothing is inferred from similar models: a
  wrong size plans a link that is too narrow, and nobody would notice before the traffic does.
- Layers for speculative decoding (MTP) and vision towers are not counted: neither crosses between datacenters.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from prfaas.core.model.cache_size import CacheSize
from prfaas.core.model.config_fields import BadModelConfig, Dtypes, Fields, UnknownArchitecture
from prfaas.core.model.hybrid_models import HYBRID_READERS
from prfaas.core.model.softmax_models import SOFTMAX_READERS, Reader

__all__ = ["KNOWN_MODEL_TYPES", "BadModelConfig", "UnknownArchitecture", "cache_size_of"]

_READERS: dict[str, Reader] = {**SOFTMAX_READERS, **HYBRID_READERS}

#: Multimodal models: the language model is the object `text_config`, with a `model_type` of its own.
_WRAPPERS = frozenset({"gemma3", "kimi_k25", "mistral3", "qwen3_5", "qwen3_5_moe"})

KNOWN_MODEL_TYPES = tuple(sorted(_READERS | dict.fromkeys(_WRAPPERS)))


def cache_size_of(
    config: Mapping[str, object], *, cache_dtype: str | None = None, state_dtype: str | None = None
) -> CacheSize:
    """S_kv of the model that `config`, the parsed config.json, describes.

    Number formats:
    - Keys, values and MLA latents: `cache_dtype` ("fp8" for an engine that quantises its KVCache), else the model's
      `dtype` or `torch_dtype`. A quantised checkpoint still computes in that format, so it is right for fp8 weights.
    - Recurrent state: `state_dtype`, else the config's `mamba_ssm_dtype` or `mamba_ssm_cache_dtype`, else float32.
      SGLang keeps every state so. vLLM 0.32 does for KDA, Nemotron-H and what the config asks for (Qwen3.5); Lightning,
      Qwen3-Next and the other Mamba2 models it keeps in the model's format unless told otherwise by
      --mamba-ssm-cache-dtype (--mamba-cache-dtype for Lightning): for these pass state_dtype="bfloat16".
    - Convolution state: always the model's format, in both engines.

    Raises UnknownArchitecture for a `model_type` that is not in KNOWN_MODEL_TYPES, BadModelConfig for a field that is
    missing or makes no sense and for an unknown dtype.
    """
    model_type = _model_type(config, "model_type")
    outer = Fields(config, model_type)
    inner = outer
    if model_type in _WRAPPERS:
        inner = outer.section("text_config")
        # Errors keep the outer name, which is what people know the file by.
        inner_type = _model_type(inner.values, "text_config.model_type")
    else:
        inner_type = model_type
    reader = _READERS.get(inner_type)
    if reader is None:
        raise _unknown(inner_type)
    groups = reader(inner, Dtypes(inner, outer, cache_dtype, state_dtype))
    if not groups:
        raise BadModelConfig(f"model_type {model_type}: no layer keeps a cache")
    return CacheSize(model_type, tuple(groups))


def _model_type(values: Mapping[str, object], name: str) -> str:
    value = values.get("model_type")
    if not isinstance(value, str):
        found = "is missing" if value is None else f"must be a string, got {value!r:.80}"
        raise BadModelConfig(f"field {name} {found}")
    return value


def _unknown(model_type: str) -> UnknownArchitecture:
    near = difflib.get_close_matches(model_type[:80], KNOWN_MODEL_TYPES, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    return UnknownArchitecture(
        f"model_type {model_type[:80]!r} is not known, and its KVCache will not be guessed.{hint} "
        f"Known: {', '.join(KNOWN_MODEL_TYPES)}"
    )
