"""Parsing of command-line values that are not plain."""

from __future__ import annotations

from prfaas.core.errors import PrfaasError
from prfaas.deployment.units import parse_bytes


class BadArgument(PrfaasError):
    """A value cannot be used; the text names the option and shows how to write it."""


def host_port(option: str, text: str) -> tuple[str, int]:
    """`127.0.0.1:8300` or `[::1]:8300`."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 <= int(port) <= 65535:
        raise BadArgument(f"{option}: {text!r} is not HOST:PORT; write for example 127.0.0.1:8300")
    return host.strip("[]"), int(port)


def size(option: str, text: str, minimum: int, maximum: int = 1 << 50) -> int:
    """`256MiB` in bytes."""
    try:
        value = parse_bytes(text)
    except ValueError as error:
        raise BadArgument(f"{option}: {error}") from None
    if not minimum <= value <= maximum:
        raise BadArgument(f"{option}: {text} is outside {minimum} to {maximum} bytes")
    return value


def peers(texts: list[str]) -> dict[str, tuple[str, int]]:
    """`--peer NAME=HOST:PORT`, repeated."""
    parsed: dict[str, tuple[str, int]] = {}
    for text in texts:
        name, equals, address = text.partition("=")
        if not equals or not name:
            raise BadArgument(f"--peer: {text!r} is not NAME=HOST:PORT; write for example pd-east-0=10.0.0.7:8300")
        parsed[name] = host_port("--peer", address)
    return parsed
