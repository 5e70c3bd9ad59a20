"""Whether everything of a deployment works, from what gateway and nodes answer at /health."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def not_ready(gateway: Mapping[str, Any], nodes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Engines and nodes that the gateway cannot use, and lanes that are down. `nodes` has the answer of each instance's
    node by the instance's name. Raises LookupError or TypeError for an answer of another form."""
    members = gateway["instances"]
    found = [f"{name}: {what}" for name, member in members.items() for what in ("engine", "node") if not member[what]]
    for name, health in nodes.items():
        found += [f"lanes of {name} to {peer}" for peer, it in health["peers"].items() if not it["lanes_up"]]
    return found
