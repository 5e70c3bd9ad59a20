"""This node's certificate and the authority it trusts, read again whenever the files change.

A lane lives for days, a certificate may not: new lanes use what the files hold then, and `version` tells the links to
renew the lanes that are older. Files that cannot be used (half written, key and certificate of different pairs) leave
the last good ones in force.
"""

from __future__ import annotations

import logging
import os
import ssl
import threading
from dataclasses import dataclass

from cryptography import x509

from prfaas.core.errors import PrfaasError

logger = logging.getLogger("prfaas.lanes")


class BadCredentials(PrfaasError):
    """The files do not make up a usable identity; the text says which and why."""


@dataclass(frozen=True, slots=True)
class CredentialFiles:
    """PEM files: trusted authorities, own certificate with its chain, its private key."""

    ca: str
    cert: str
    key: str


class Credentials:
    """TLS contexts for either end of a lane. Thread-safe."""

    def __init__(self, files: CredentialFiles) -> None:
        """Raises BadCredentials."""
        self.files = files
        #: Grows by one with every change of the files that could be used.
        self.version = 0
        self._lock = threading.Lock()
        self._seen = _stamps(files)
        self._client, self._server = _contexts(files)
        self._last_bad = ""
        self.not_after_s, self.identities = _of_certificate(files.cert)

    def context(self, *, dialer: bool) -> ssl.SSLContext:
        """For one new lane. TLS 1.3 and nothing older, and the other end must show a certificate too."""
        with self._lock:
            return self._client if dialer else self._server

    def reload(self) -> None:
        """Look at the files again; called by the node's monitor. Costs three calls of stat when nothing changed."""
        try:
            stamps = _stamps(self.files)
            if stamps == self._seen:
                return
            client, server = _contexts(self.files)
            not_after_s, identities = _of_certificate(self.files.cert)
        except BadCredentials as error:
            self._keep(error)
            return
        with self._lock:
            self._seen, self._client, self._server = stamps, client, server
            self.not_after_s, self.identities = not_after_s, identities
            self.version += 1
        logger.info("new certificate from %s, in use for new lanes", self.files.cert)

    def _keep(self, error: BadCredentials) -> None:
        if str(error) != self._last_bad:  # four looks a second, one line
            logger.warning("keeping the last certificate that was good: %s", error)
        self._last_bad = str(error)


def _stamps(files: CredentialFiles) -> tuple[tuple[int, int, int], ...]:
    found = []
    for path in (files.ca, files.cert, files.key):
        try:
            status = os.stat(path)
        except OSError as error:
            raise BadCredentials(f"{path}: {error.strerror}") from None
        found.append((status.st_ino, status.st_mtime_ns, status.st_size))
    return tuple(found)


def _contexts(files: CredentialFiles) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    made = []
    for protocol in (ssl.PROTOCOL_TLS_CLIENT, ssl.PROTOCOL_TLS_SERVER):
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        # Who the peer may be is ours to say (`LaneSecurity.problem_with`): a node's name is no host's name.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.options |= ssl.OP_NO_TICKET
        if protocol is ssl.PROTOCOL_TLS_SERVER:
            # A ticket would arrive after the handshake, where the first frame is due; and nothing is resumed.
            context.num_tickets = 0
        _load(context, files)
        made.append(context)
    return made[0], made[1]


def _load(context: ssl.SSLContext, files: CredentialFiles) -> None:
    try:
        context.load_verify_locations(cafile=files.ca)
    except (ssl.SSLError, OSError) as error:
        raise BadCredentials(f"{files.ca}: no certificate authority could be read from it ({_why(error)})") from None
    try:
        # Without a password function OpenSSL would ask on the terminal.
        context.load_cert_chain(files.cert, files.key, password=lambda: "")
    except (ssl.SSLError, OSError) as error:
        text = f"{files.cert} and {files.key}: not a certificate and its unencrypted private key ({_why(error)})"
        raise BadCredentials(text) from None


def _why(error: Exception) -> str:
    return str(getattr(error, "reason", None) or getattr(error, "strerror", None) or error).replace("_", " ").lower()


def _of_certificate(path: str) -> tuple[float, frozenset[str]]:
    """When the certificate ends, in seconds of the Unix clock, and the DNS names and URIs that it carries. The first
    one of a chain is one's own."""
    try:
        with open(path, "rb") as file:
            certificate = x509.load_pem_x509_certificate(file.read())
    except (OSError, ValueError) as error:
        raise BadCredentials(f"{path}: not a certificate ({error})") from None
    ends_s = certificate.not_valid_after_utc.timestamp()
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ends_s, frozenset()
    dns, uris = x509.DNSName, x509.UniformResourceIdentifier
    return ends_s, frozenset([*names.get_values_for_type(dns), *names.get_values_for_type(uris)])
