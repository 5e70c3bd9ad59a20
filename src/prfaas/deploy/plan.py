"""Which processes a deployment needs on this machine. Pure: a deployment and directories in, command lines out."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from prfaas.deployment.model import Cluster, Deployment, Endpoint, node_name

#: Environment of every vLLM that we start: no hub, no usage reports, loopback for its own sockets.
ENGINE_ENV = {
    "VLLM_HOST_IP": "127.0.0.1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
}


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """One process to start. `health_url` answers 200 when it is ready; `engines_expected` waits for a node's engine."""

    name: str
    argv: tuple[str, ...]
    env: dict[str, str]
    health_url: str
    needs_engine: bool = False


def plan_processes(deployment: Deployment, file: Path, model_dir: Path, sockets: Path) -> list[ProcessSpec]:
    """KV nodes first, then engines, then the gateway. `sockets` is a short directory: Unix paths end at 107 bytes."""
    nodes: list[ProcessSpec] = []
    engines: list[ProcessSpec] = []
    for cluster_name, cluster in deployment.clusters.items():
        for index, endpoint in enumerate(cluster.endpoints):
            name = node_name(cluster_name, index)
            socket_path = str(sockets / f"{name}.sock")
            has_engine = cluster.engine is not None
            nodes.append(_node(deployment, cluster_name, name, endpoint, socket_path, has_engine))
            if has_engine:
                engines.append(_engine(deployment, cluster, name, endpoint, socket_path, model_dir))
    return [*nodes, *engines, _gateway(deployment, file)]


def peers_of(deployment: Deployment, cluster_name: str) -> dict[str, str]:
    """Nodes that a cluster's nodes send to: every node of every cluster that a link leads to; without links, all PD."""
    if deployment.clusters[cluster_name].role != "prfaas":
        return {}
    targets = {link.to for link in deployment.links if link.from_ == cluster_name}
    if not deployment.links:
        targets = set(deployment.clusters_of_role("pd"))
    return {
        node_name(target, index): endpoint.lanes
        for target in deployment.clusters
        if target in targets
        for index, endpoint in enumerate(deployment.clusters[target].endpoints)
    }


def _node(
    deployment: Deployment, cluster: str, name: str, endpoint: Endpoint, socket_path: str, has_engine: bool
) -> ProcessSpec:
    transfer = deployment.transfer
    argv = [sys.executable, "-m", "prfaas", "kvnode", "--name", name, "--http", urlsplit(endpoint.kvnode).netloc]
    argv += ["--lanes", endpoint.lanes, "--socket", socket_path, "--arena", str(transfer.arena)]
    argv += ["--num-lanes", str(transfer.lanes), "--chunk", str(transfer.chunk)]
    argv += ["--hash-algorithm", transfer.hash.algorithm, "--hash-seed", transfer.hash.seed]
    for peer, address in peers_of(deployment, cluster).items():
        argv += ["--peer", f"{peer}={address}"]
    return ProcessSpec(f"kvnode-{name}", tuple(argv), {}, f"{endpoint.kvnode}/health", has_engine)


def _engine(
    deployment: Deployment, cluster: Cluster, name: str, endpoint: Endpoint, socket_path: str, model_dir: Path
) -> ProcessSpec:
    assert cluster.engine is not None
    address = urlsplit(endpoint.engine)
    connector = {
        "kv_connector": "PrfaasConnector",
        "kv_connector_module_path": "prfaas.engines.vllm.connector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"socket_path": socket_path},
    }
    argv = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model_dir)]
    argv += ["--served-model-name", deployment.model.name, "--host", str(address.hostname), "--port", str(address.port)]
    argv += ["--max-model-len", str(deployment.model.max_model_tokens)]
    argv += ["--kv-transfer-config", json.dumps(connector), *cluster.engine.args]
    return ProcessSpec(f"engine-{name}", tuple(argv), {**ENGINE_ENV, **cluster.engine.env}, f"{endpoint.engine}/health")


def _gateway(deployment: Deployment, file: Path) -> ProcessSpec:
    url = f"http://{deployment.gateway.host}:{deployment.gateway.port}/health"
    return ProcessSpec("gateway", (sys.executable, "-m", "prfaas", "gateway", str(file)), {}, url)
