"""Which processes a deployment needs on this machine. Pure: a deployment and directories in, command lines out."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from prfaas.core.errors import PrfaasError
from prfaas.deployment.model import Cluster, Deployment, Endpoint, node_name

#: Environment of every vLLM that we start: no hub, no usage reports, loopback for its own sockets.
ENGINE_ENV = {
    "VLLM_HOST_IP": "127.0.0.1",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
}

CONNECTOR_MODULE = "prfaas.engines.vllm.connector"


class PlanError(PrfaasError):
    """The deployment cannot be started as asked; the text says what to change."""


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """One process to start. `health_url` answers 200 when it is ready; with `needs_engine` (a KV node beside an engine
    that we start) only once an engine has registered there. `listens` has every host:port that it will bind."""

    name: str
    argv: tuple[str, ...]
    env: dict[str, str]
    health_url: str
    needs_engine: bool = False
    listens: tuple[str, ...] = ()


def everywhere(host: str) -> bool:
    """The whole deployment is on this machine."""
    return True


def plan_processes(
    deployment: Deployment,
    file: Path,
    model_dir: Path,
    sockets: Path,
    *,
    is_here: Callable[[str], bool] = everywhere,
    with_gateway: bool = True,
) -> list[ProcessSpec]:
    """KV nodes first, then engines, then the gateway; only those whose host `is_here`. `sockets` is a short directory:
    Unix paths end at 107 bytes. Raises PlanError if nothing is left to start."""
    nodes: list[ProcessSpec] = []
    engines: list[ProcessSpec] = []
    for cluster_name, cluster in deployment.clusters.items():
        for index, endpoint in enumerate(cluster.endpoints):
            if not is_here(str(urlsplit(endpoint.kvnode).hostname)):
                continue
            name = node_name(cluster_name, index)
            socket_path = str(sockets / f"{name}.sock")
            has_engine = cluster.engine is not None
            nodes.append(_node(deployment, cluster_name, name, endpoint, socket_path, has_engine))
            if has_engine:
                engines.append(_engine(deployment, cluster, name, endpoint, socket_path, model_dir))
    gateways = [_gateway(deployment, file)] if with_gateway and is_here(deployment.gateway.host) else []
    if not nodes and not gateways:
        raise PlanError(f"{file}: none of its addresses is on this machine; see clusters.*.endpoints and gateway.host")
    return [*nodes, *engines, *gateways]


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


def connector_config(socket_path: str) -> str:
    """Value of vLLM's --kv-transfer-config for an engine beside the KV node that listens at `socket_path`."""
    config = {
        "kv_connector": "PrfaasConnector",
        "kv_connector_module_path": CONNECTOR_MODULE,
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"socket_path": socket_path},
    }
    return json.dumps(config)


def _node(
    deployment: Deployment, cluster: str, name: str, endpoint: Endpoint, socket_path: str, has_engine: bool
) -> ProcessSpec:
    transfer = deployment.transfer
    control = urlsplit(endpoint.kvnode).netloc
    argv = [sys.executable, "-m", "prfaas", "kvnode", "--name", name, "--http", control]
    argv += ["--lanes", endpoint.lanes, "--socket", socket_path, "--arena", str(transfer.arena)]
    argv += ["--num-lanes", str(transfer.lanes), "--chunk", str(transfer.chunk)]
    argv += ["--hash-algorithm", transfer.hash.algorithm, "--hash-seed", transfer.hash.seed]
    for peer, address in peers_of(deployment, cluster).items():
        argv += ["--peer", f"{peer}={address}"]
    health = f"{endpoint.kvnode}/health"
    return ProcessSpec(f"kvnode-{name}", tuple(argv), {}, health, has_engine, (control, endpoint.lanes))


def _engine(
    deployment: Deployment, cluster: Cluster, name: str, endpoint: Endpoint, socket_path: str, model_dir: Path
) -> ProcessSpec:
    assert cluster.engine is not None
    address = urlsplit(endpoint.engine)
    argv = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model_dir)]
    argv += [
        "--served-model-name",
        deployment.served_model.name,
        "--host",
        str(address.hostname),
        "--port",
        str(address.port),
    ]
    argv += ["--max-model-len", str(deployment.served_model.max_model_tokens)]
    argv += ["--kv-transfer-config", connector_config(socket_path), *cluster.engine.args]
    # vLLM's own sockets go beside ours, where somebody removes them: it leaves them behind when it is killed.
    env = {**ENGINE_ENV, "VLLM_RPC_BASE_PATH": str(Path(socket_path).parent), **cluster.engine.env}
    return ProcessSpec(f"engine-{name}", tuple(argv), env, f"{endpoint.engine}/health", listens=(address.netloc,))


def _gateway(deployment: Deployment, file: Path) -> ProcessSpec:
    address = f"{deployment.gateway.host}:{deployment.gateway.port}"
    argv = (sys.executable, "-m", "prfaas", "gateway", str(file))
    # Its /health needs a decode engine; engines that somebody else starts are not waited for.
    starts_engines = all(cluster.engine is not None for cluster in deployment.clusters_of_role("pd").values())
    health = f"http://{address}/{'health' if starts_engines else 'live'}"
    return ProcessSpec("gateway", argv, {}, health, listens=(address,))
