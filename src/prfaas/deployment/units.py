"""Quantities as people write them in files: `100Gbps`, `20ms`, `256MiB`. Inside: bytes, seconds, bytes per second."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, WithJsonSchema

_QUANTITY = re.compile(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-zµ/]*)\s*$")

_BYTES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
          "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}  # fmt: skip
_SECONDS = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "min": 60.0, "h": 3600.0}
_BYTES_PER_S = {"bps": 0.125, "Kbps": 125.0, "Mbps": 125e3, "Gbps": 125e6, "Tbps": 125e9}


def _parse(value: object, scale: dict[str, float] | dict[str, int], kind: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"expected {kind} such as {_example(kind)}, got {type(value).__name__}")
    match = _QUANTITY.match(str(value))
    if match is None or match[2] not in scale:
        units = ", ".join(unit for unit in scale if unit)
        raise ValueError(f"{value!r} is not {kind}; write for example {_example(kind)} (units: {units})")
    return float(match[1]) * scale[match[2]]


def _example(kind: str) -> str:
    return {"a size": "256MiB", "a duration": "20ms", "a bandwidth": "100Gbps"}[kind]


def parse_bytes(value: object) -> int:
    """Bytes from `4096`, `256MiB`, `1GB`. Raises ValueError with an example."""
    return int(_parse(value, _BYTES, "a size"))


def parse_seconds(value: object) -> float:
    """Seconds from `0.02`, `20ms`, `5min`. Raises ValueError with an example."""
    return _parse(value, _SECONDS, "a duration")


def parse_bandwidth(value: object) -> float:
    """Bytes per second from `100Gbps`. A unit is required. Raises ValueError with an example."""
    return _parse(value, _BYTES_PER_S, "a bandwidth")


def _schema(description: str, example: str) -> WithJsonSchema:
    return WithJsonSchema(
        {"anyOf": [{"type": "string"}, {"type": "number"}], "description": description, "examples": [example]}
    )


ByteSize = Annotated[int, BeforeValidator(parse_bytes), _schema("A size: bytes, or with a unit.", "256MiB")]
Seconds = Annotated[float, BeforeValidator(parse_seconds), _schema("A duration: seconds, or with a unit.", "20ms")]
Bandwidth = Annotated[float, BeforeValidator(parse_bandwidth), _schema("A bandwidth with its unit.", "100Gbps")]
