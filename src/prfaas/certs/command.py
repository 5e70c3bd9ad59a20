"""`prfaas certs`: options in, files and exit status out."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from prfaas.certs.authority import BadAuthority, issue, make_authority, new_key
from prfaas.certs.describe import describe, is_valid_at
from prfaas.certs.files import (
    AUTHORITY,
    BadCertificateFile,
    certificate_path,
    key_path,
    read_authority,
    read_certificates,
    write_authority,
    write_pair,
)
from prfaas.core.errors import PrfaasError
from prfaas.deployment.document import DeploymentError
from prfaas.deployment.identity import checked_identity, is_uri
from prfaas.deployment.load import read_deployment

AUTHORITY_NAME = "PrfaaS lanes"


class BadCertsRequest(PrfaasError):
    """What was asked for does not make sense; the text says what does."""


def run_init(directory: Path, days: int) -> int:
    """0 once there is a new authority; 2 if there was one already or the folder cannot be written."""
    key, serial = new_key(), x509.random_serial_number()
    authority = make_authority(AUTHORITY_NAME, now=datetime.now(UTC), days=days, key=key, serial=serial)
    try:
        write_authority(directory, authority)
    except BadCertificateFile as error:
        return _refused(error)
    certificate, secret = certificate_path(directory, AUTHORITY), key_path(directory, AUTHORITY)
    sys.stdout.write(f"wrote {certificate} (for every node) and {secret} (for no node: who has it can be any node)\n")
    return 0


def run_issue(names: list[str], deployment: Path | None, uri: str | None, directory: Path, days: int) -> int:
    """0 once every certificate is written; 2 if the request, the deployment file or the authority cannot be used:
    nothing is written then, unless the folder could not be written."""
    try:
        identities = _wanted(names, deployment, uri)
        authority = read_authority(directory)
        now = datetime.now(UTC)
        for name, identity in identities.items():
            key, serial = new_key(), x509.random_serial_number()
            pair = issue(authority, name, identity, now=now, days=days, key=key, serial=serial)
            write_pair(directory, name, pair)
            paths = f"{certificate_path(directory, name)} and {key_path(directory, name)}"
            end = f"{pair.certificate.not_valid_after_utc:%Y-%m-%d}"
            sys.stdout.write(f"wrote {paths} for {identity}, valid until {end}\n")
    except (BadCertsRequest, BadCertificateFile, BadAuthority, DeploymentError) as error:
        return _refused(error)
    return 0


def run_show(paths: list[Path]) -> int:
    """0 if every certificate is valid now, 1 if one is not, 2 if a file has none."""
    now = datetime.now(UTC)
    good = True
    for path in paths:
        try:
            certificates = read_certificates(path)
        except BadCertificateFile as error:
            return _refused(error)
        for certificate in certificates:
            sys.stdout.write("\n  ".join([f"{path}", *describe(certificate, now)]) + "\n")
            good = good and is_valid_at(certificate, now)
    return 0 if good else 1


def _wanted(names: list[str], deployment: Path | None, uri: str | None) -> dict[str, str]:
    """What each certificate must carry, by the name of its files. Raises BadCertsRequest or DeploymentError."""
    if bool(names) == (deployment is not None):
        raise BadCertsRequest("give either names or --deployment FILE, for example: prfaas certs issue pd-east")
    if uri is not None and len(names) != 1:
        raise BadCertsRequest("--uri: goes with exactly one name, which the files are called")
    if deployment is not None:
        known, _ = read_deployment(deployment)
        wanted = {name: known.identity_of(name) for name in known.clusters}
    else:
        wanted = {name: _checked("NAME", name) if uri is None else _checked("--uri", uri, uri=True) for name in names}
    for name in wanted:
        _checked("NAME", name)
        if name == AUTHORITY:
            raise BadCertsRequest(f"{AUTHORITY}: the authority's own files are called that; choose another name")
    return wanted


def _checked(option: str, text: str, *, uri: bool = False) -> str:
    try:
        checked_identity(text)
    except ValueError as error:
        raise BadCertsRequest(f"{option}: {error}") from None
    if is_uri(text) != uri:
        example = "write for example spiffe://example.com/pd-east" if uri else "give the URI with --uri"
        raise BadCertsRequest(f"{option}: {text!r} is {'no' if uri else 'a'} URI; {example}")
    return text


def _refused(error: PrfaasError) -> int:
    sys.stderr.write(f"{error}\n")
    return 2
