"""Identities, and what is said of how lanes are secured."""

from __future__ import annotations

from typing import Any

import pytest

from prfaas.deployment.encryption import encryption_notes
from prfaas.deployment.identity import checked_identity, default_identity, is_uri
from prfaas.deployment.model import Deployment


def deployment(*hosts: str, **transfer: Any) -> Deployment:
    """One PD cluster with a node at each host."""
    endpoints = [
        {"engine": f"http://{host}:1{index}", "kvnode": f"http://{host}:2{index}", "lanes": f"{host}:3{index}"}
        for index, host in enumerate(hosts)
    ]
    clusters = {"east": {"role": "pd", "endpoints": endpoints, "instances": len(hosts) or 1}}
    return Deployment.model_validate({"model": {}, "clusters": clusters, "transfer": transfer})


@pytest.mark.parametrize(
    ("hosts", "encryption", "expected"),
    [
        (["127.0.0.1", "localhost", "127.9.9.9"], "none", None),
        (["127.0.0.1"], "tls", None),
        ([], "none", None),
        (["10.0.0.1"], "none", "in plaintext, to 10.0.0.1:30; anybody"),
        (["127.0.0.1", "east.example", "10.0.0.1"], "none", "in plaintext, to east.example:31 and 1 more; anybody"),
        (["10.0.0.1"], "tls", "transfer.tls is missing"),
    ],
)
def test_what_is_said(hosts: list[str], encryption: str, expected: str | None) -> None:
    """Only if lanes leave the machine."""
    notes = encryption_notes(deployment(*hosts, encryption=encryption))
    assert len(notes) == (expected is not None)
    assert all(str(expected) in note for note in notes)


def test_nothing_is_said_of_lanes_that_are_secured() -> None:
    """Wherever they lead."""
    assert encryption_notes(deployment("10.0.0.1", tls={"ca": "a", "cert": "b", "key": "c"})) == []


def test_encryption_is_the_default() -> None:
    """Plaintext must be asked for."""
    assert deployment().transfer.encryption == "tls"


@pytest.mark.parametrize("text", ["pd-east", "a", "kv.east.Example.com", "spiffe://example.com/pd-east", "x" * 63])
def test_identities(text: str) -> None:
    """DNS names and URIs."""
    assert checked_identity(text) == text
    assert is_uri(text) == text.startswith("spiffe:")


@pytest.mark.parametrize(
    "text", ["", "-a", "a-", "a..b", "a.", "*.example.com", "a b", "é", "x" * 64, "a/b", "../a", "a\n", "://x", "u://", "u://a b", "a:8300"]
)  # fmt: skip
def test_what_is_no_identity(text: str) -> None:
    """With an example of one."""
    with pytest.raises(ValueError, match="write for example pd-east"):
        checked_identity(text)


def test_a_node_must_carry_its_clusters_name() -> None:
    """Its own name without the index, if it has one."""
    found = {node: default_identity(node) for node in ("pd-east-0", "pd-2-17", "pd-east", "3")}
    assert found == {"pd-east-0": "pd-east", "pd-2-17": "pd-2", "pd-east": "pd-east", "3": "3"}
