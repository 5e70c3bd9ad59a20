"""Certificates for one run on one machine: benchmarks and tests."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from prfaas.certs.authority import issue, make_authority, new_key
from prfaas.certs.files import certificate_path, key_path, write_authority, write_pair


def issue_throwaway(directory: Path, names: Iterable[str]) -> dict[str, dict[str, str]]:
    """An authority in `directory`, and a certificate for each of `names`, which it carries as its identity; good for a
    day. Returns the paths of `ca`, `cert` and `key` by name."""
    now, serial = datetime.now(UTC), x509.random_serial_number
    authority = make_authority("PrfaaS throw-away", now=now, days=1, key=new_key(), serial=serial())
    directory.mkdir(exist_ok=True)
    write_authority(directory, authority)
    for name in names:
        write_pair(directory, name, issue(authority, name, name, now=now, days=1, key=new_key(), serial=serial()))
    ca = str(certificate_path(directory, "ca"))
    return {
        name: {"ca": ca, "cert": str(certificate_path(directory, name)), "key": str(key_path(directory, name))}
        for name in names
    }
