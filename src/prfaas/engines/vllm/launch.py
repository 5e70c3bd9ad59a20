"""How a vLLM with `PrfaasConnector` is started. Neither vLLM nor torch is needed to know."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import PurePath
from typing import Final

from prfaas.engines.launch import EngineStart

CONNECTOR_MODULE: Final = "prfaas.engines.vllm.connector"

#: No hub, no usage reports, loopback for vLLM's own sockets.
ENV: Final = {
    "VLLM_HOST_IP": "127.0.0.1",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
}


class VllmLaunch:
    """See `engines.launch.Launch`."""

    product = "vLLM"
    package = "vllm"
    shares_process = False

    def argv(self, starts: Sequence[EngineStart], python: str) -> tuple[str, ...]:
        (start,) = starts
        return (
            *(python, "-m", "vllm.entrypoints.openai.api_server", "--model", start.model_dir),
            *("--served-model-name", start.served_name, "--host", start.host, "--port", str(start.port)),
            *("--max-model-len", str(start.max_model_tokens)),
            *("--kv-transfer-config", connector_config(start.socket_path), *start.args),
        )

    def env(self, start: EngineStart) -> dict[str, str]:
        # vLLM's own sockets go beside ours, where somebody removes them: it leaves them behind when it is killed.
        return {**ENV, "VLLM_RPC_BASE_PATH": str(PurePath(start.socket_path).parent), **start.env}


def connector_config(socket_path: str) -> str:
    """Value of vLLM's --kv-transfer-config for an engine beside the KV node that listens at `socket_path`."""
    config = {
        "kv_connector": "PrfaasConnector",
        "kv_connector_module_path": CONNECTOR_MODULE,
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"socket_path": socket_path},
    }
    return json.dumps(config)
