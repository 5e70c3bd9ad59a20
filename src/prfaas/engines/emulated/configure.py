"""Which engines a deployment file has emulated, and what each of them stands for."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from prfaas.core.errors import PrfaasError
from prfaas.core.model.curve import Curve
from prfaas.core.model.decode import DecodePoint, StepTimes, decode_within
from prfaas.core.model.layout import KVLayout
from prfaas.core.model.layout_of_config import layout_of_config
from prfaas.core.model.layout_of_curve import layout_of_curve
from prfaas.core.topology import Role, Topology
from prfaas.deployment.document import DeploymentError, Document
from prfaas.deployment.model import Cluster, Deployment, Emulation
from prfaas.deployment.topology import topology_of
from prfaas.engines.emulated.kv import scaled
from prfaas.profiles.load import Hardware, Model
from prfaas.scenario.hardware import decode_points_of, hardware_of, model_of
from prfaas.sim.engine import EngineProfile

KIND = "emulated"


@dataclass(frozen=True, slots=True)
class EmulatedInstance:
    """One engine to emulate, in the scale in which it is served."""

    name: str
    cluster: str
    host: str
    port: int
    socket_path: str
    profile: EngineProfile
    layout: KVLayout
    cache_tokens: int


@dataclass(frozen=True, slots=True)
class Emulated:
    """What a process is asked to emulate. Text of the model is tokenized as the files in `model_dir` say."""

    model_name: str
    max_model_tokens: int
    model_dir: Path
    stream_interval: int
    instances: tuple[EmulatedInstance, ...]


def emulated_of(
    deployment: Deployment, document: Document, model_dir: Path, sockets: Path, names: Collection[str]
) -> Emulated:
    """`names` of instances; all that are emulated, if there are none. Node sockets are NAME.sock in `sockets`. Raises
    DeploymentError with a line for everything that is missing."""
    directory = document.path.resolve().parent
    scale = deployment.emulation or Emulation()
    topology = topology_of(deployment)
    wanted = _wanted(topology, document, names)
    try:
        model = model_of(deployment.model, directory)
    except (PrfaasError, OSError) as error:
        raise DeploymentError(document.problem(("model",), str(error))) from None
    served = deployment.served_model
    layout = scaled(_layout(deployment, document, model, scale), scale.bytes_scale)
    profiles: dict[str, EngineProfile] = {}
    for instance in topology.instances:
        if instance.name in wanted and instance.cluster not in profiles:
            profiles[instance.cluster] = _profile(deployment, document, directory, instance.cluster, model, scale)
    instances = []
    for instance in topology.instances:
        if instance.name not in wanted:
            continue
        address = urlsplit(instance.engine_url)
        instances.append(
            EmulatedInstance(
                name=instance.name,
                cluster=instance.cluster,
                host=str(address.hostname),
                port=address.port or 80,
                socket_path=str(sockets / f"{instance.name}.sock"),
                profile=profiles[instance.cluster],
                layout=layout,
                cache_tokens=scale.cache_tokens,
            )
        )
    return Emulated(served.name, served.max_model_tokens, model_dir, scale.stream_interval, tuple(instances))


def _wanted(topology: Topology, document: Document, names: Collection[str]) -> set[str]:
    emulated = {instance.name for instance in topology.instances if instance.kind == KIND}
    known = ", ".join(sorted(emulated)) or "none"
    if not emulated:
        raise DeploymentError(f"{document.path}: no endpoint has kind: emulated")
    unknown = sorted(set(names) - emulated)
    if unknown:
        raise DeploymentError(f"{document.path}: {unknown[0]} is not an instance of kind emulated; there are {known}")
    return set(names) or emulated


def _layout(deployment: Deployment, document: Document, model: Model, scale: Emulation) -> KVLayout:
    block, longest = scale.block_tokens, deployment.served_model.max_model_tokens
    try:
        if model.hf_config is not None:
            return layout_of_config(model.hf_config, block_tokens=block, max_model_tokens=longest)
        return layout_of_curve(model.name, model.kv_bytes, block_tokens=block, max_model_tokens=longest)
    except (PrfaasError, ValueError) as error:
        raise DeploymentError(document.problem(("model",), str(error))) from None


def _profile(
    deployment: Deployment, document: Document, directory: Path, name: str, model: Model, scale: Emulation
) -> EngineProfile:
    cluster = deployment.clusters[name]
    try:
        hardware = hardware_of(cluster, model, directory)
    except (PrfaasError, OSError) as error:
        raise DeploymentError(document.problem(("clusters", name), str(error))) from None
    prefill_s = hardware.prefill_s.scaled(scale.time_scale)
    if Role(cluster.role) is Role.PRFAAS:
        return EngineProfile(prefill_s, 1, scale.time_scale)
    return _decoding(deployment, document, name, cluster, hardware, prefill_s, scale)


def _decoding(
    deployment: Deployment, document: Document, name: str, cluster: Cluster, hardware: Hardware, prefill_s: Curve,
    scale: Emulation,
) -> EngineProfile:  # fmt: skip
    points = decode_points_of(cluster, hardware)
    try:
        point = decode_within(points, deployment.slo.tpot)
    except PrfaasError as error:
        raise DeploymentError(document.problem(("clusters", name, "decode"), f"{name}: {error}")) from None
    steps = [DecodePoint(each.batch, each.step_s * scale.time_scale) for each in points]
    times = StepTimes(steps) if len(steps) > 1 else None
    return EngineProfile(prefill_s, point.batch, point.step_s * scale.time_scale, steps=times)
