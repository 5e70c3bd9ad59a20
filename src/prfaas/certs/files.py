"""Certificates and keys as PEM files. A key is never readable by others, not for a moment; a file that is replaced is
replaced whole, so that a running node never reads half of it."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from prfaas.certs.authority import BadAuthority, Pair
from prfaas.core.errors import PrfaasError

AUTHORITY: Final = "ca"

_KEY_MODE: Final = 0o600
_CERTIFICATE_MODE: Final = 0o644


class BadCertificateFile(PrfaasError):
    """A file cannot be read, written or understood; the text names it."""


def certificate_path(directory: Path, name: str) -> Path:
    return directory / f"{name}.pem"


def key_path(directory: Path, name: str) -> Path:
    return directory / f"{name}.key"


def write_authority(directory: Path, authority: Pair) -> None:
    """Write a new authority; the folder is made, for this user only, if it is not there. Raises BadCertificateFile if
    it has one already or cannot be written."""
    for path in (certificate_path(directory, AUTHORITY), key_path(directory, AUTHORITY)):
        if path.exists():
            text = "is there already, and every node that trusts it would have to be told of a new one"
            raise BadCertificateFile(f"{path} {text}; choose another folder with --dir")
    write_pair(directory, AUTHORITY, authority)


def write_pair(directory: Path, name: str, pair: Pair) -> None:
    """Write NAME.key and NAME.pem, replacing what is there. Each file is replaced whole, the key first; who reads both
    in between finds that they do not match, and must look again. Raises BadCertificateFile."""
    secret = pair.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise BadCertificateFile(f"{directory}: cannot be made: {error.strerror}") from None
    _replace(key_path(directory, name), secret, _KEY_MODE)
    write_certificate(certificate_path(directory, name), pair.certificate)


def write_certificate(path: Path, certificate: x509.Certificate) -> None:
    """Write one certificate, without its key. Raises BadCertificateFile."""
    _replace(path, certificate.public_bytes(serialization.Encoding.PEM), _CERTIFICATE_MODE)


def read_authority(directory: Path) -> Pair:
    """The authority that `write_authority` wrote. Its file may hold others beside it, as while one replaces another.
    Raises BadCertificateFile or BadAuthority."""
    path = key_path(directory, AUTHORITY)
    if not path.exists():
        raise BadAuthority(f"{path}: there is no authority; make one with 'prfaas certs init --dir {directory}'")
    try:
        key = serialization.load_pem_private_key(_read(path), password=None)
    except (ValueError, TypeError):
        raise BadCertificateFile(f"{path}: not a private key in PEM without a password") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise BadCertificateFile(f"{path}: not an EC key; only authorities of 'prfaas certs init' can be used here")
    for certificate in read_certificates(certificate_path(directory, AUTHORITY)):
        if certificate.public_key() == key.public_key():
            return Pair(certificate, key)
    raise BadAuthority(f"{certificate_path(directory, AUTHORITY)}: has no certificate of the key {path}")


def read_certificates(path: Path) -> list[x509.Certificate]:
    """Every certificate of a PEM file, at least one. Raises BadCertificateFile."""
    try:
        return x509.load_pem_x509_certificates(_read(path))
    except ValueError:
        raise BadCertificateFile(f"{path}: no certificate in PEM; is this the right file?") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadCertificateFile(f"{path}: {error.strerror or error}") from None


def _replace(path: Path, content: bytes, mode: int) -> None:
    temporary = ""
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # 0600 from the start
        with os.fdopen(descriptor, "wb") as stream:
            _keep_owner(path, descriptor)
            os.fchmod(descriptor, mode)
            stream.write(content)
            stream.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise BadCertificateFile(f"{path}: cannot be written: {error.strerror}") from None


def _keep_owner(path: Path, descriptor: int) -> None:
    """Root may renew the files of a node that runs as somebody else, and that must still be able to read them."""
    with contextlib.suppress(FileNotFoundError, PermissionError):
        status = path.stat()
        os.fchown(descriptor, status.st_uid, status.st_gid)
