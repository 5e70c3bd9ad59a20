"""The handshake of an encrypted lane: mutual TLS 1.3 on the connection itself, then keys, then no TLS any more.

TLS says who is there and carries one random share each way; `core.wire.seal` makes the lane's keys of them. The payload
itself goes sealed frame by frame, because a TLS record is 16 KiB and Python's ssl moves a third of what a frame does.

TLS records are read one by one, never past the last of the handshake: what follows is the first frame.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

from prfaas.core.errors import RemoteProtocolError
from prfaas.core.wire.frames import MAGIC
from prfaas.core.wire.seal import SHARE_BYTES, LaneSeals, lane_seals
from prfaas.transport.credentials import Credentials
from prfaas.transport.sockets import LaneClosed, receive_into, send_all

T = TypeVar("T")

_INDEX: Final = re.compile(r"-[0-9]+$")
_RECORD_HEADER_BYTES: Final = 5
#: RFC 8446: a record's ciphertext is at most 2^14 + 256 bytes.
_MAX_RECORD_BYTES: Final = (1 << 14) + 256
#: A handshake with the longest sensible chains is a few dozen records; more is someone who wants to keep us busy.
_MAX_RECORDS: Final = 64


@dataclass(frozen=True, slots=True)
class SecurePeer:
    """What a handshake gave: the lane's keys, the names that the peer's certificate carries, and when it ends (seconds
    of the Unix clock)."""

    seals: LaneSeals
    identities: frozenset[str]
    not_after_s: float


@dataclass(frozen=True, slots=True)
class LaneSecurity:
    """Who this node is, and what the certificates of the others must carry. `identities` maps every node that may
    connect to a DNS name or URI; where it is None, a node must show its cluster's name (`pd-east` for `pd-east-0`)."""

    credentials: Credentials
    identities: Mapping[str, str] | None

    def knows(self, node: str) -> bool:
        """May a node of this name connect at all?"""
        return self.identities is None or node in self.identities

    def problem_with(self, node: str, peer: SecurePeer) -> str | None:
        """Why this peer is not `node`, or None if it is."""
        wanted = _INDEX.sub("", node) if self.identities is None else self.identities.get(node)
        if wanted is None:
            return f"this node knows no {node}; is it in the deployment file?"
        if wanted in peer.identities:
            return None
        shown = ", ".join(sorted(peer.identities)) or "nothing"
        return f"the certificate of {node} must carry {wanted!r} and carries {shown}; see clusters.*.identity"


def shake_hands(sock: socket.socket, credentials: Credentials, *, dialer: bool) -> SecurePeer:
    """Blocks until both ends know each other. Raises RemoteProtocolError (`tls`) with the reason, or LaneClosed."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = credentials.context(dialer=dialer).wrap_bio(incoming, outgoing, server_side=not dialer)
    records = _Records(sock, incoming, outgoing)
    try:
        records.drive(tls.do_handshake)
        share = secrets.token_bytes(SHARE_BYTES)
        # Acceptor first: that the dialer can read it tells the dialer that its own certificate was taken, too.
        if dialer:
            theirs = _read_share(tls, records)
            tls.write(share)
        else:
            tls.write(share)
            records.flush()
            theirs = _read_share(tls, records)
        records.flush()
    except ssl.SSLError as error:
        records.flush_alert()
        raise RemoteProtocolError("tls", _explain(error)) from None
    if incoming.pending:
        raise RemoteProtocolError("tls", "bytes behind the handshake")
    seals = lane_seals(share, theirs, dialer=True) if dialer else lane_seals(theirs, share, dialer=False)
    return SecurePeer(seals, *_peer(tls))


class _Records:
    """Moves whole TLS records between the socket and the two memory buffers."""

    def __init__(self, sock: socket.socket, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> None:
        self._sock = sock
        self._incoming = incoming
        self._outgoing = outgoing
        self._left = _MAX_RECORDS

    def drive(self, step: Callable[[], T]) -> T:
        """Repeat `step` with more and more of the peer's records until it has enough."""
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                self.flush()
                self._feed()

    def flush(self) -> None:
        data = self._outgoing.read()
        if data:
            send_all(self._sock, data)

    def flush_alert(self) -> None:
        """Tell the peer why, if it still listens."""
        with contextlib.suppress(LaneClosed):
            self.flush()

    def _feed(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise RemoteProtocolError("tls", f"no handshake within {_MAX_RECORDS} records")
        header = bytearray(_RECORD_HEADER_BYTES)
        receive_into(self._sock, memoryview(header))
        if header[:4] == MAGIC:
            raise RemoteProtocolError("tls", "the peer speaks plaintext; set transfer.encryption alike on both sides")
        length = int.from_bytes(header[3:5], "big")
        if length > _MAX_RECORD_BYTES:
            raise RemoteProtocolError("tls", f"a record of {length} bytes; this is not TLS")
        body = bytearray(length)
        receive_into(self._sock, memoryview(body))
        self._incoming.write(header + body)


def _read_share(tls: ssl.SSLObject, records: _Records) -> bytes:
    share = b""
    while len(share) < SHARE_BYTES:
        part = records.drive(partial(tls.read, SHARE_BYTES - len(share)))
        if not part:
            raise LaneClosed("the peer ended TLS during the handshake")
        share += part
    return share


def _peer(tls: ssl.SSLObject) -> tuple[frozenset[str], float]:
    certificate = tls.getpeercert()
    assert certificate, "CERT_REQUIRED was asked for"
    names = [entry for entry in certificate.get("subjectAltName", ()) if entry[0] in ("DNS", "URI")]
    identities = frozenset(str(entry[1]) for entry in names)
    return identities, ssl.cert_time_to_seconds(str(certificate["notAfter"]))


#: What the alerts of a peer that does not want us mean.
_ALERTS: Final = {
    "UNKNOWN_CA": "the peer does not know the authority that signed our certificate",
    "CERTIFICATE_EXPIRED": "the peer says that our certificate has expired",
    "CERTIFICATE_REQUIRED": "the peer wants a certificate",
    "BAD_CERTIFICATE": "the peer does not take our certificate",
    "CERTIFICATE_UNKNOWN": "the peer does not take our certificate",
    "UNSUPPORTED_CERTIFICATE": "our certificate is not made for this use; it needs clientAuth and serverAuth",
    "WRONG_VERSION_NUMBER": "the peer does not speak TLS 1.3; set transfer.encryption alike on both sides",
}


def _explain(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the peer's certificate is not good: {error.verify_message}"
    reason = error.reason or "handshake failed"
    return next((text for key, text in _ALERTS.items() if reason.endswith(key)), reason.replace("_", " ").lower())
