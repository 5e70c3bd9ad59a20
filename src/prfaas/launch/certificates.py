"""Files that encrypted lanes need before nodes start: made here for one machine, or looked for."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509

from prfaas.certs.authority import issue, make_authority, new_key
from prfaas.certs.files import write_certificate, write_pair
from prfaas.deployment.encryption import is_throwaway
from prfaas.deployment.model import Deployment
from prfaas.launch.plan import THROWAWAY_CA, PlanError, ProcessSpec

#: Longer than any `prfaas up` runs. Nothing can be signed later: the authority's key is never written.
THROWAWAY_DAYS: Final = 3650


def make_throwaway(deployment: Deployment, directory: Path, *, now: datetime | None = None) -> str | None:
    """Make an authority, and a certificate for every cluster, in `directory`, which is made for this user only; returns
    a sentence that says so. None, and nothing made, if the deployment names certificates or wants none. Raises
    BadCertificateFile or OSError."""
    if not is_throwaway(deployment.transfer):
        return None
    now = datetime.now(UTC) if now is None else now
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)  # whoever made it
    serial = x509.random_serial_number
    authority = make_authority("PrfaaS throw-away", now=now, days=THROWAWAY_DAYS, key=new_key(), serial=serial())
    write_certificate(directory / THROWAWAY_CA, authority.certificate)
    for cluster in deployment.clusters:
        identity = deployment.identity_of(cluster)
        pair = issue(authority, cluster, identity, now=now, days=THROWAWAY_DAYS, key=new_key(), serial=serial())
        write_pair(directory, cluster, pair)
    return f"lanes are encrypted, with throw-away certificates in {directory}"


def refuse_missing(specs: Iterable[ProcessSpec]) -> None:
    """Raises PlanError if a process is about to read a file that is not there."""
    for spec in specs:
        for path in spec.reads:
            if not Path(path).is_file():
                hint = "see transfer.tls in the deployment file; 'prfaas certs' makes certificates"
                raise PlanError(f"{spec.name}: there is no file {path}; {hint}")
