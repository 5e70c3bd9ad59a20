"""Errors of the pure core. Shells translate I/O errors at their own boundary and raise these for broken rules."""

from __future__ import annotations


class PrfaasError(Exception):
    """Base of every error that PrfaaS raises on purpose."""


class Refused(PrfaasError):
    """A request that cannot be served now or ever. `code` is stable and machine-readable, the text is for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class RemoteProtocolError(PrfaasError):
    """The peer broke the wire protocol. The lane it came on must be closed; nothing it sent last may be trusted."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class LocalProtocolError(PrfaasError):
    """We were about to break the wire protocol: a defect in PrfaaS, never the peer's fault."""
