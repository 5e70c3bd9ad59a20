"""Which processes a deployment needs on this machine. Pure: a deployment and directories in, command lines out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from prfaas.core.errors import PrfaasError
from prfaas.core.topology import Instance
from prfaas.deployment.encryption import is_throwaway
from prfaas.deployment.fronts import control_address, emulated_links
from prfaas.deployment.model import Deployment, EngineSection
from prfaas.deployment.topology import topology_of
from prfaas.engines.kinds import dialect_of, launch_of
from prfaas.engines.launch import EngineStart
from prfaas.kvnode.configure import credential_files
from prfaas.transport.credentials import CredentialFiles

#: Not ca.pem: a cluster may be called ca.
THROWAWAY_CA: Final = "ca.crt"


class PlanError(PrfaasError):
    """The deployment cannot be started as asked; the text says what to change."""


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """One process to start. `health_url` answers 200 when it is ready; with `needs_engine` (a KV node beside an engine
    that we start) only once an engine has registered there. `listens` has every host:port that it will bind, `reads`
    every file that must be there when it starts. With `stops_first_s`, it is told to stop before the others, and
    finishes within that time what goes on. 0: it is told with them."""

    name: str
    argv: tuple[str, ...]
    env: dict[str, str]
    health_url: str
    needs_engine: bool = False
    listens: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    stops_first_s: float = 0.0


def everywhere(host: str) -> bool:
    """The whole deployment is on this machine."""
    return True


def plan_processes(
    deployment: Deployment,
    file: Path,
    model_dir: Path,
    sockets: Path,
    *,
    certs: Path | None = None,
    is_here: Callable[[str], bool] = everywhere,
    with_gateway: bool = True,
) -> list[ProcessSpec]:
    """The emulated network first, if there is one, then KV nodes, engines, the gateway; only those whose host
    `is_here`. `file` is absolute. `sockets` is a short directory: Unix paths end at 107 bytes. If the deployment names
    no certificates, nodes read throw-away ones in `certs`, by default `throwaway_directory(sockets)`; the caller makes
    them (`certificates.make_throwaway`). Raises PlanError if nothing is left to start, or if nodes elsewhere would need
    such certificates too."""
    throwaway = throwaway_directory(sockets) if certs is None else certs
    nodes: list[ProcessSpec] = []
    starts: dict[str, list[tuple[Instance, EngineStart]]] = {}
    topology = topology_of(deployment)
    for instance in topology.instances:
        if not is_here(str(urlsplit(instance.kvnode_url).hostname)):
            continue
        socket_path = str(sockets / f"{instance.name}.sock")
        section = deployment.clusters[instance.cluster].engine
        nodes.append(_node(deployment, file, instance, socket_path, throwaway, section is not None))
        if section is not None:
            start = _start(deployment, file, section, instance, socket_path, model_dir)
            starts.setdefault(instance.cluster, []).append((instance, start))
    engines = [spec for cluster, members in starts.items() for spec in _engines(deployment, cluster, members)]
    networks = _networks(deployment, file, is_here)
    gateways = [_gateway(deployment, file)] if with_gateway and is_here(deployment.gateway.host) else []
    if not networks and not nodes and not gateways:
        raise PlanError(f"{file}: none of its addresses is on this machine; see clusters.*.endpoints and gateway.host")
    if nodes:
        _refuse_throwaway_elsewhere(deployment, file, is_here)
    return [*networks, *nodes, *engines, *gateways]


def throwaway_directory(sockets: Path) -> Path:
    """Where throw-away certificates are, beside the nodes' sockets."""
    return sockets / "tls"


def throwaway_files(directory: Path, cluster: str) -> CredentialFiles:
    """Throw-away certificates of a cluster's nodes."""
    ca, cert, key = (str(directory / name) for name in (THROWAWAY_CA, f"{cluster}.pem", f"{cluster}.key"))
    return CredentialFiles(ca, cert, key)


def _refuse_throwaway_elsewhere(deployment: Deployment, file: Path, is_here: Callable[[str], bool]) -> None:
    if not is_throwaway(deployment.transfer):
        return
    nodes = (instance.kvnode_url for instance in topology_of(deployment).instances)
    far = [url for url in nodes if not is_here(str(urlsplit(url).hostname))]
    if not far:
        return
    raise PlanError(
        f"{file}: transfer.tls: missing, and the node at {far[0]} is on another machine: both ends of a lane need"
        " certificates of one authority. Make them with 'prfaas certs init' and 'prfaas certs issue --deployment"
        f" {file}', and name the files in transfer.tls; or write transfer.encryption: none if the network between the"
        " machines is private"
    )


def _node(
    deployment: Deployment, file: Path, instance: Instance, socket_path: str, throwaway: Path, has_engine: bool
) -> ProcessSpec:
    argv = [sys.executable, "-m", "prfaas", "kvnode", str(file), "--name", instance.name, "--socket", socket_path]
    files = credential_files(deployment, file, instance)
    if files is None and is_throwaway(deployment.transfer):
        files = throwaway_files(throwaway, instance.cluster)
        argv += ["--tls-ca", files.ca, "--tls-cert", files.cert, "--tls-key", files.key]
    health = f"{instance.kvnode_url}/health"
    listens = (urlsplit(instance.kvnode_url).netloc, instance.lanes)
    reads = () if files is None else (files.ca, files.cert, files.key)
    return ProcessSpec(f"kvnode-{instance.name}", tuple(argv), {}, health, has_engine, listens, reads)


def _start(
    deployment: Deployment, file: Path, section: EngineSection, instance: Instance, socket_path: str, model_dir: Path
) -> EngineStart:
    address, model = urlsplit(instance.engine_url), deployment.served_model
    return EngineStart(
        name=instance.name,
        deployment_file=str(file),
        model_dir=str(model_dir),
        served_name=model.name,
        max_model_tokens=model.max_model_tokens,
        host=str(address.hostname),
        port=address.port or 80,
        socket_path=socket_path,
        args=section.args,
        env=section.env,
    )


def _engines(
    deployment: Deployment, cluster: str, members: Sequence[tuple[Instance, EngineStart]]
) -> Iterator[ProcessSpec]:
    """Of one cluster."""
    section = deployment.clusters[cluster].engine
    assert section is not None, "engines without a section run already"
    launch = launch_of(section.kind)
    apart = deployment.emulation is not None and deployment.emulation.process_for == "instance"
    is_shared = launch.shares_process and not apart
    groups = [members] if is_shared else [[member] for member in members]
    for group in groups:
        instance, start = group[0]
        name = f"engines-{cluster}" if is_shared else f"engine-{instance.name}"
        argv = launch.argv([each for _, each in group], sys.executable)
        health = instance.engine_url + dialect_of(instance.kind).health_path
        listens = tuple(urlsplit(member.engine_url).netloc for member, _ in group)
        yield ProcessSpec(name, argv, launch.env(start), health, listens=listens)


def _networks(deployment: Deployment, file: Path, is_here: Callable[[str], bool]) -> list[ProcessSpec]:
    """`prfaas wan`, if links are emulated on this machine."""
    control = control_address(deployment)
    fronts = [front.listen for link in emulated_links(deployment) for front in link.fronts]
    if control is None or not any(is_here(host) for host, _ in fronts):
        return []
    argv = (sys.executable, "-m", "prfaas", "wan", str(file))
    listens = tuple(f"{host}:{port}" for host, port in (control, *fronts))
    return [ProcessSpec("wan", argv, {}, f"http://{control[0]}:{control[1]}/health", listens=listens)]


def _gateway(deployment: Deployment, file: Path) -> ProcessSpec:
    address = f"{deployment.gateway.host}:{deployment.gateway.port}"
    argv = (sys.executable, "-m", "prfaas", "gateway", str(file))
    # Its /health needs a decode engine; engines that somebody else starts are not waited for.
    starts_engines = all(cluster.engine is not None for cluster in deployment.clusters_of_role("pd").values())
    health = f"http://{address}/{'health' if starts_engines else 'live'}"
    stops_s = deployment.gateway.stop_notice + deployment.gateway.stop_grace
    return ProcessSpec("gateway", argv, {}, health, listens=(address,), stops_first_s=stops_s)
