"""The model and the hardware that a deployment file names."""

from __future__ import annotations

from pathlib import Path

from prfaas.core.model.decode import DecodePoint
from prfaas.deployment.model import Cluster, ModelSection
from prfaas.profiles.load import (
    Hardware,
    Model,
    ProfileError,
    load_hardware,
    load_model,
    model_of_config,
    shipped_hardware,
)


def model_of(section: ModelSection, directory: Path) -> Model:
    """How large its KVCache is; files are relative to `directory`. Raises PrfaasError or OSError."""
    if section.profile is not None:
        return load_model(section.profile, directory)
    if section.hf_config is not None:
        return model_of_config(directory / section.hf_config)
    if section.path is not None:
        return model_of_config(directory / section.path / "config.json")
    raise ProfileError("planning needs the KVCache's size: give profile, or hf_config with a config.json")


def hardware_of(cluster: Cluster, model: Model, directory: Path) -> Hardware:
    """How fast one instance is. Raises PrfaasError or OSError."""
    if cluster.profile is not None:
        return load_hardware(directory / cluster.profile, model)
    if cluster.accelerator is not None:
        return shipped_hardware(model, cluster.accelerator)
    raise ProfileError("planning needs the hardware: give accelerator, or profile with a measured one")


def decode_points_of(cluster: Cluster, hardware: Hardware) -> tuple[DecodePoint, ...]:
    """The file's own, or else those that were measured."""
    if cluster.decode is not None:
        return (DecodePoint(cluster.decode.max_batch, cluster.decode.step),)
    return hardware.decode
