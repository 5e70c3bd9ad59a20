"""PrfaaS' layout of a vLLM engine, read from its KV cache config. What is not known is refused, never guessed."""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Final

import torch
from vllm.model_executor.models.utils import extract_layer_index
from vllm.v1.kv_cache_interface import (
    ChunkedLocalAttentionSpec,
    FullAttentionSpec,
    KVCacheSpec,
    MambaSpec,
    SlidingWindowSpec,
)

from prfaas.core.errors import Refused
from prfaas.core.model.layout import KVGroup, KVGroupKind, KVLayout

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

#: Half-open range of vLLM versions that the whole test suite passed on. The connector interface is experimental and
#: has changed in every minor release, so anything outside is refused at start.
TESTED_VLLM: Final = ((0, 32, 0), (0, 33, 0))


def check_supported(version: str, config: VllmConfig) -> None:
    """Raise Refused with one clear sentence if this engine cannot be trusted to move KV correctly."""
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    numbers = tuple(int(part) for part in found.groups()) if found else ()
    low, high = TESTED_VLLM
    if not low <= numbers < high:
        wanted = f"{'.'.join(map(str, low))} <= version < {'.'.join(map(str, high))}"
        raise Refused("vllm_version", f"PrfaasConnector is tested with vLLM {wanted}, this is {version}")
    parallel = config.parallel_config
    for name in ("tensor_parallel_size", "pipeline_parallel_size", "decode_context_parallel_size"):
        if getattr(parallel, name, 1) > 1:
            raise Refused("parallel", f"PrfaasConnector does not support {name} = {getattr(parallel, name)} yet; use 1")
    if config.speculative_config is not None:
        raise Refused("speculative", "PrfaasConnector does not support speculative decoding yet; switch it off")


def layout_of(config: VllmConfig, kv: KVCacheConfig, caches: dict[str, torch.Tensor]) -> KVLayout:
    """The layout that this engine registers with its node; `caches` are its KV tensors by layer name.

    Raises Refused for KV cache kinds and tensor layouts it does not know.
    """
    block_tokens = max(group.kv_cache_spec.block_size for group in kv.kv_cache_groups)
    kernels = config.compilation_config.static_forward_context
    groups = tuple(
        _group(group.kv_cache_spec, group.layer_names, caches, kernels.get(group.layer_names[0]))
        for group in kv.kv_cache_groups
    )
    return KVLayout(
        model=_model_identity(config),
        groups=groups,
        block_tokens=block_tokens,
        align_tokens=block_tokens,
        max_model_tokens=config.model_config.max_model_len,
    )


def _group(spec: KVCacheSpec, names: list[str], caches: dict[str, torch.Tensor], layer: object) -> KVGroup:
    layers = tuple(extract_layer_index(name) for name in names)
    if isinstance(spec, MambaSpec):
        if spec.num_speculative_blocks:
            raise Refused("speculative", "linear state with speculative blocks is not supported")
        state_bytes = sum(_product(shape) * _size(dtype) for shape, dtype in zip(spec.shapes, spec.dtypes, strict=True))
        detail = f"{spec.mamba_type} {spec.shapes} {spec.dtypes} {_kernel(layer)}"
        return KVGroup(KVGroupKind.LINEAR_STATE, layers, 0, 0, state_bytes, 0, detail)
    if isinstance(spec, ChunkedLocalAttentionSpec) or not isinstance(spec, (FullAttentionSpec, SlidingWindowSpec)):
        raise Refused("layout", f"KV cache kind {type(spec).__name__} is not supported")
    page = caches[names[0]][0]
    page_tokens, page_bytes = int(page.shape[-2]), page.numel() * page.element_size()
    kernel_pages, rest = divmod(spec.block_size, page_tokens)
    if rest or kernel_pages * page_bytes != spec.unpadded_page_size_bytes:
        shape = f"{tuple(page.shape)} {page.dtype}"
        raise Refused("layout", f"layer {names[0]}: pages {shape} do not make up blocks of {spec.block_size} tokens")
    detail = (
        f"{type(spec).__name__} {spec.num_kv_heads}x{spec.head_size} {tuple(page.shape)} {page.dtype} {_kernel(layer)}"
    )
    # A full-attention spec may stand for windowed layers when the hybrid cache is off; then all tokens are kept.
    window = int(spec.sliding_window) if isinstance(spec, SlidingWindowSpec) else 0
    kind = KVGroupKind.SLIDING_WINDOW if window else KVGroupKind.FULL_ATTENTION
    return KVGroup(kind, layers, page_tokens, page_bytes, 0, window, detail)


def _kernel(layer: object) -> str:
    """How the kernel arranges a page: its backend and, on CPUs, the instruction set it packs keys for."""
    backend = getattr(layer, "attn_backend", None)
    name = backend.get_name() if backend is not None else type(layer).__name__
    return f"{name} {getattr(layer, 'isa', '')}".strip()


def _product(shape: tuple[int, ...]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result


def _size(dtype: object) -> int:
    return int(dtype.itemsize)  # type: ignore[attr-defined]


def _model_identity(config: VllmConfig) -> str:
    """Digest of the model's architecture; where it lies on disk does not matter, what it computes does."""
    values = config.model_config.hf_config.to_dict()
    for name in ("_name_or_path", "transformers_version", "torch_dtype", "dtype"):
        values.pop(name, None)
    extra = config.kv_transfer_config.get_from_extra_config("model_id", "") if config.kv_transfer_config else ""
    digest = hashlib.sha256(json.dumps([values, extra], sort_keys=True, default=str).encode()).hexdigest()
    return f"{values.get('model_type')}:{digest[:32]}"
