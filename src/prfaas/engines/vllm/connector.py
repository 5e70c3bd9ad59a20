"""`PrfaasConnector`: vLLM's connector interface, forwarded to its two halves.

Load it with `--kv-transfer-config '{"kv_connector": "PrfaasConnector", "kv_connector_module_path":
"prfaas.engines.vllm.connector", "kv_role": "kv_both", "kv_connector_extra_config": {"socket_path": "..."}}'`.

Calls, in vLLM's order. Scheduler: `on_new_request` once; `get_num_new_matched_tokens` many times while the request
waits; `update_state_after_alloc` once or twice; `build_connector_meta` every step; `request_finished_all_groups` once.
Worker, every step: `start_load_kv`, `save_kv_layer` per attention layer, `wait_for_save`, `get_transfer_results`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import torch
import vllm
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorTransferResults,
    SupportsHMA,
)
from vllm.model_executor.models.utils import extract_layer_index

from prfaas.core.errors import Refused
from prfaas.core.wire.engine import VERSION, Attach
from prfaas.engines.node_client import NodeClient
from prfaas.engines.vllm.layouts import check_supported, layout_of
from prfaas.engines.vllm.metadata import StepMetadata
from prfaas.engines.vllm.pages import LayerPages
from prfaas.engines.vllm.scheduler_side import SchedulerSide
from prfaas.engines.vllm.worker_side import WorkerSide

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.forward_context import ForwardContext
    from vllm.v1.attention.backend import AttentionMetadata
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request


class PrfaasConnector(KVConnectorBase_V1, SupportsHMA):
    """Moves KVCache between this engine and the KV node beside it."""

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        check_supported(vllm.__version__, vllm_config)
        transfer = vllm_config.kv_transfer_config
        assert transfer is not None
        socket_path = transfer.get_from_extra_config("socket_path", None)
        if not socket_path:
            raise Refused("socket_path", "set kv_connector_extra_config.socket_path to the KV node's --socket")
        boot_id = f"{transfer.engine_id}:{vllm_config.instance_id}"
        self._greeting = Attach(version=VERSION, engine_id=str(transfer.engine_id), boot_id=boot_id, layout=None)
        self._socket_path = str(socket_path)
        self._scheduler: SchedulerSide | None = None
        self._worker: WorkerSide | None = None
        if role is KVConnectorRole.SCHEDULER:
            client = NodeClient(self._socket_path, self._greeting)
            self._scheduler = SchedulerSide(client, kv_cache_config.has_mamba_layers)

    # -- scheduler

    @property
    def supports_divergent_local_hybrid_hits(self) -> bool:
        """A landing always brings the linear state, so a deeper local hit of full attention can be used."""
        return True

    @property
    def requires_kv_delivery(self) -> bool:
        """False: what is shipped was copied while it was computed; blocks freed afterwards are not missed."""
        return False

    def on_new_request(self, request: Request) -> None:
        """See SchedulerSide.new_request."""
        assert self._scheduler is not None
        self._scheduler.new_request(request)

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int | None, bool]:
        """See SchedulerSide.num_tokens_to_load; loads run beside the engine's steps."""
        assert self._scheduler is not None
        count = self._scheduler.num_tokens_to_load(request, num_computed_tokens)
        return count, count > 0

    def get_loaded_kv_cache_group_ids(self, request: Request) -> tuple[int, ...]:
        """A landing restores every group."""
        return tuple(range(len(self._kv_cache_config.kv_cache_groups)))

    def update_state_after_alloc(self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int) -> None:
        """See SchedulerSide.allocated."""
        assert self._scheduler is not None
        self._scheduler.allocated(request, blocks, num_external_tokens)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        """See SchedulerSide.step."""
        assert self._scheduler is not None
        return self._scheduler.step(scheduler_output)

    def request_finished_all_groups(
        self, request: Request, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Blocks are free at once: everything shipped is in the arena already."""
        assert self._scheduler is not None
        return False, self._scheduler.finished(request)

    # -- worker

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Learn the tensors and register the layout with the node. Raises Refused for unknown tensor layouts."""
        config = self._kv_cache_config
        layout = layout_of(self._vllm_config, config, kv_caches)
        pages: dict[int, LayerPages] = {}
        layer_of: dict[str, int] = {}
        for group, ours in zip(config.kv_cache_groups, layout.groups, strict=True):
            for name in group.layer_names:
                layer = layer_of[name] = extract_layer_index(name)
                pages[layer] = LayerPages(name, kv_caches[name], ours, config.num_blocks)
        client = NodeClient(self._socket_path, msgspec.structs.replace(self._greeting, layout=layout))
        self._worker = WorkerSide(client, layout, pages, layer_of)

    def start_load_kv(self, forward_context: ForwardContext, **kwargs: Any) -> None:
        """Start this step's loads; vLLM calls it behind the forward pass when none is needed for it."""
        assert self._worker is not None
        self._worker.start_loads(self._metadata().loads)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing to wait for: a request is scheduled only when its load is over."""

    def save_kv_layer(
        self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: AttentionMetadata, **kwargs: Any
    ) -> None:
        """Ship this layer and those before it."""
        metadata = self._metadata()
        if self._worker is not None and metadata.ships:
            self._worker.layer_computed(layer_name, metadata)

    def wait_for_save(self) -> None:
        """Ship what is left of this step. Saves are copies and over when they return."""
        assert self._worker is not None
        self._worker.end_step(self._metadata())
        self._worker.begin_step()

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        """Close what ended; report what was loaded. A failed load fails the request here, and the gateway runs it
        again as a fresh one: recomputing inside the engine is what its users report wrong output from."""
        assert self._worker is not None
        self._worker.finished(finished_req_ids)
        loaded, failed = self._worker.take_finished_loads()
        return KVConnectorTransferResults(finished_recving=loaded, failed_recving=failed)

    def shutdown(self) -> None:
        """Hang up; the node frees what this engine held."""
        if self._worker is not None:
            self._worker.close()
        if self._scheduler is not None:
            self._scheduler.close()

    def _metadata(self) -> StepMetadata:
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, StepMetadata)
        return metadata
