"""What a person should know about how a deployment's lanes are secured."""

from __future__ import annotations

import ipaddress

from prfaas.deployment.model import Deployment, Transfer
from prfaas.deployment.topology import topology_of


def is_throwaway(transfer: Transfer) -> bool:
    """Are lanes encrypted with certificates that nobody has made yet?"""
    return transfer.encryption == "tls" and transfer.tls is None


def encryption_notes(deployment: Deployment) -> list[str]:
    """What a person should know of a deployment that works: a sentence for each, without the file's name."""
    far = [address for address in _lanes(deployment) if not _is_loopback(address)]
    if not far:
        return []
    if deployment.transfer.encryption == "none":
        more = f" and {len(far) - 1} more" if len(far) > 1 else ""
        text = (
            f"warning: KV crosses the network in plaintext, to {far[0]}{more}; anybody on the way can read and change"
        )
        return [f"{text} it. Set transfer.encryption: tls unless the network is private"]
    if deployment.transfer.tls is None:
        return ["note: transfer.tls is missing; 'prfaas up' needs it unless every node is on one machine"]
    return []


def _lanes(deployment: Deployment) -> list[str]:
    return [instance.lanes for instance in topology_of(deployment).instances]


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
