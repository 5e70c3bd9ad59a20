"""Parsing of command-line values that are not plain."""

from __future__ import annotations

import re

from prfaas.core.errors import PrfaasError
from prfaas.deployment.identity import checked_identity
from prfaas.deployment.units import parse_bytes, parse_seconds
from prfaas.transport.credentials import CredentialFiles

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,79}")
#: sizeof(sockaddr_un.sun_path) less the final zero.
MAX_SOCKET_PATH_BYTES = 107


class BadArgument(PrfaasError):
    """A value cannot be used; the text names the option and shows how to write it."""


def node_name(option: str, text: str) -> str:
    """`pd-east-0`: part of file names, so nothing but small letters, digits and dashes."""
    if not _NAME.fullmatch(text):
        raise BadArgument(f"{option}: {text!r} is not a node's name; use a-z, 0-9 and -, for example pd-east-0")
    return text


def socket_path(option: str, text: str) -> str:
    """A path that fits a Unix socket address."""
    if not 0 < len(text.encode()) <= MAX_SOCKET_PATH_BYTES:
        raise BadArgument(
            f"{option}: a Unix socket's path has 1 to {MAX_SOCKET_PATH_BYTES} bytes; choose a shorter one"
        )
    return text


def host_port(option: str, text: str) -> tuple[str, int]:
    """`127.0.0.1:8300` or `[::1]:8300`."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdigit()) or not 0 <= int(port[:6]) <= 65535:
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


def seconds(option: str, text: str | None) -> float | None:
    """`60s`, `20ms` or `0.5`: positive, at most a year; None of None."""
    if text is None:
        return None
    try:
        value = parse_seconds(text)
    except ValueError as error:
        raise BadArgument(f"{option}: {error}") from None
    if not 0 < value <= 31_536_000:
        raise BadArgument(f"{option}: {text} is not between 0 and a year; write for example 60s")
    return value


def peers(texts: list[str]) -> dict[str, tuple[str, int]]:
    """`--peer NAME=HOST:PORT`, repeated."""
    parsed: dict[str, tuple[str, int]] = {}
    for text in texts:
        name, equals, address = text.partition("=")
        if not equals or not name:
            raise BadArgument(f"--peer: {text!r} is not NAME=HOST:PORT; write for example pd-east-0=10.0.0.7:8300")
        if parsed.setdefault(node_name("--peer", name), host_port("--peer", address)) != host_port("--peer", address):
            raise BadArgument(f"--peer: {name} is given twice with different addresses")
    return parsed


def identities(texts: list[str], *, plain: bool) -> dict[str, str]:
    """`--identity NAME=IDENTITY`, repeated."""
    if plain and texts:
        raise BadArgument("--identity: nothing is checked with --plain; remove one of the two")
    parsed: dict[str, str] = {}
    for text in texts:
        name, equals, identity = text.partition("=")
        if not equals:
            raise BadArgument(f"--identity: {text!r} is not NAME=IDENTITY; write for example pd-east-0=pd-east")
        try:
            checked_identity(identity)
        except ValueError as error:
            raise BadArgument(f"--identity: {error}") from None
        if parsed.setdefault(node_name("--identity", name), identity) != identity:
            raise BadArgument(f"--identity: {name} is given twice with different identities")
    return parsed


def tls_files(ca: str | None, cert: str | None, key: str | None, *, plain: bool) -> CredentialFiles | None:
    """How lanes are secured: with three files, or not at all if somebody says so. Nobody gets plaintext by leaving
    something out."""
    given = {"--tls-ca": ca, "--tls-cert": cert, "--tls-key": key}
    present = [option for option, path in given.items() if path is not None]
    if plain:
        if present:
            raise BadArgument(f"--plain: contradicts {present[0]}; remove one of the two")
        return None
    if not present:
        raise BadArgument(
            "lanes are encrypted: give --tls-ca, --tls-cert and --tls-key ('prfaas certs' makes the files), or --plain"
            " if the network between the nodes is private"
        )
    if not (ca and cert and key):
        missing = next(option for option, path in given.items() if not path)
        raise BadArgument(f"{missing}: missing; --tls-ca, --tls-cert and --tls-key belong together")
    return CredentialFiles(ca, cert, key)


def whole_numbers(option: str, text: str) -> tuple[int, ...]:
    """`1,2,4,8`: positive whole numbers."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and 0 < int(part[:8]) <= 1 << 20 for part in parts):
        raise BadArgument(f"{option}: {text!r} is not a list of positive whole numbers; write for example 1,2,4,8")
    return tuple(int(part) for part in parts)
