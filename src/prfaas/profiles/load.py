"""From profile files to curves."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from prfaas.core.errors import PrfaasError
from prfaas.core.model.curve import Curve, polynomial, through
from prfaas.core.model.decode import DecodePoint
from prfaas.core.model.hf_config import cache_size_of
from prfaas.deployment.document import read_document, validated
from prfaas.profiles.format import HardwareProfile, ModelProfile, Prefill

_SHIPPED: Final = Path(__file__).parent

#: Bytes per second in one Gbps.
_GBPS: Final = 125e6


class ProfileError(PrfaasError):
    """A profile cannot be used; the text says which and why."""


@dataclass(frozen=True, slots=True)
class Model:
    """S_kv(l) of a model, and where it is from. `hf_config` is what it was computed from, None if it was measured."""

    name: str
    kv_bytes: Curve
    source: str
    hf_config: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True)
class Hardware:
    """T_prefill(l) and decode steps of one instance. `max_tokens`: longest prompt that was measured; None if a formula
    covers all."""

    model: str
    accelerator: str
    gpus_per_instance: int
    prefill_s: Curve
    decode: tuple[DecodePoint, ...]
    source: str
    max_tokens: float | None


def shipped_models() -> list[str]:
    """Names of the model profiles that come with PrfaaS."""
    return sorted(path.name.removesuffix(".yaml") for path in (_SHIPPED / "models").glob("*.yaml"))


def shipped_accelerators(model: str) -> list[str]:
    """Accelerators for which there is a hardware profile of a shipped model."""
    return sorted(path.name.removesuffix(".yaml") for path in (_SHIPPED / "hardware" / model).glob("*.yaml"))


def load_model(name_or_file: str, directory: Path) -> Model:
    """A shipped model profile by its name, or a file relative to `directory`. Raises ProfileError, DeploymentError."""
    known = shipped_models()
    path = directory / name_or_file
    if name_or_file in known:
        path = _SHIPPED / "models" / f"{name_or_file}.yaml"
    elif not path.is_file():
        raise ProfileError(f"{name_or_file!r} is neither a file nor a shipped profile{_hint(name_or_file, known)}")
    profile = validated(read_document(path), ModelProfile)
    if profile.kv_bytes is not None:
        points = [(point.tokens, point.bytes) for point in profile.kv_bytes.table]
        return Model(profile.model, _through(path, points), profile.source)
    assert profile.hf_config is not None
    try:
        curve = cache_size_of(profile.hf_config).curve()
    except PrfaasError as error:
        raise ProfileError(f"{path}: hf_config: {error}") from None
    return Model(profile.model, curve, profile.source, profile.hf_config)


def model_of_config(path: Path) -> Model:
    """A model from its Hugging Face config.json. Raises ProfileError."""
    try:
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise ProfileError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise ProfileError(f"{path}: not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ProfileError(f"{path}: expected a config.json, an object with model_type")
    try:
        curve = cache_size_of(config).curve()
    except PrfaasError as error:
        raise ProfileError(f"{path}: {error}") from None
    name = config.get("_name_or_path") or config["model_type"]
    return Model(str(name), curve, f"computed from {path.name}", config)


def shipped_hardware(model: Model, accelerator: str) -> Hardware:
    """The hardware profile of a shipped model. Raises ProfileError that names those there are."""
    known = shipped_accelerators(model.name)
    if accelerator not in known:
        raise ProfileError(
            f"there is no hardware profile of {model.name} on {accelerator!r}{_hint(accelerator, known)};"
            " measure one with 'prfaas profile' and give its file as profile"
        )
    return load_hardware(_SHIPPED / "hardware" / model.name / f"{accelerator}.yaml", model)


def load_hardware(path: Path, model: Model) -> Hardware:
    """A hardware profile's file. `model` is what its KV throughput, if it has one, refers to. Raises ProfileError or
    DeploymentError."""
    profile = validated(read_document(path), HardwareProfile)
    measured = [point.tokens for point in profile.prefill.table]
    measured += [point.tokens for point in profile.prefill.kv_throughput]
    return Hardware(
        model=profile.model,
        accelerator=profile.accelerator,
        gpus_per_instance=profile.gpus_per_instance,
        prefill_s=_prefill(path, profile.prefill, model),
        decode=tuple(DecodePoint(step.batch, step.step_s) for step in profile.decode),
        source=profile.source,
        max_tokens=max(measured, default=None),
    )


def _prefill(path: Path, prefill: Prefill, model: Model) -> Curve:
    if prefill.quadratic is not None:
        form = prefill.quadratic
        if form.s + form.s_per_token + form.s_per_token2 <= 0:
            raise ProfileError(f"{path}: prefill.quadratic: all coefficients are 0; prefill takes time")
        return polynomial(form.s, form.s_per_token, form.s_per_token2)
    if prefill.table:
        return _through(path, [(point.tokens, point.seconds) for point in prefill.table])
    rates = [(point.tokens, model.kv_bytes.at(point.tokens) / (point.gbps * _GBPS)) for point in prefill.kv_throughput]
    return _through(path, rates)


def _through(path: Path, points: list[tuple[float, float]]) -> Curve:
    try:
        return through(points)
    except ValueError as error:
        raise ProfileError(f"{path}: {error}") from None


def _hint(given: str, known: list[str]) -> str:
    close = difflib.get_close_matches(given, known, 1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there are {', '.join(known)}" if known else ""
