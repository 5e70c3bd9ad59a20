"""Identities: what a node's certificate must carry as a subject alternative name, a DNS name or a URI."""

from __future__ import annotations

import re

_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DNS_NAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*")
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[!-~]+")
_INDEX = re.compile(r"-[0-9]+$")


def checked_identity(text: str) -> str:
    """The text itself. Raises ValueError with an example if it is neither a DNS name nor a URI."""
    if not (_DNS_NAME.fullmatch(text) or _URI.fullmatch(text)):
        example = "pd-east, kv.east.example.com or spiffe://example.com/pd-east"
        raise ValueError(f"{text!r} is neither a DNS name nor a URI; write for example {example}")
    return text


def is_uri(identity: str) -> bool:
    """Is a checked identity a URI? Otherwise it is a DNS name."""
    return "://" in identity


def default_identity(node: str) -> str:
    """What a node must carry if nobody says otherwise: its cluster's name, that is its own without the -INDEX."""
    return _INDEX.sub("", node)
