"""Authenticated encryption of one lane: AES-256-GCM per frame, with keys agreed over mutual TLS 1.3.

Key schedule (docs/adr/0007 has the reasons and the threat model):

    master   = HKDF-Extract(SHA-256, salt = "prfaas lane 2", dialer's 32 bytes || acceptor's 32 bytes)
    secret_0 = Expand(master, direction)              one per direction
    key_n    = Expand(secret_n, "key")                32 bytes
    iv_n     = Expand(secret_n, "iv")                 12 bytes
    secret_n+1 = Expand(secret_n, "next")             after REKEY_BYTES under key_n

Laws of this file:
- The nonce is iv_n XOR the number of the frame under this key. The number is counted, never sent or received: what was
  replayed, reordered, dropped or taken from another lane or direction does not open.
- A key seals at most REKEY_BYTES and MAX_FRAMES. Both ends count alike; nothing on the wire says when it changes.
- The frame's whole header is associated data.
- After one frame that does not open, nothing does: the lane is over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from prfaas.core.errors import LocalProtocolError, RemoteProtocolError

TAG_BYTES: Final = 16
#: Each end contributes this much randomness.
SHARE_BYTES: Final = 32
#: RFC 8446 section 5.5 allows AES-GCM about 2^38.5 bytes of full records under one key; this is a sixth of it.
REKEY_BYTES: Final = 1 << 36
#: Frames without a payload use up nonces too. Far below the 2^64 that the counter could hold.
MAX_FRAMES: Final = 1 << 32

_SALT: Final = b"prfaas lane 2"
_IV_BYTES: Final = 12


class FrameSeal:
    """One direction of one lane. The sender calls `seal_into` for every frame in order, the receiver `open_into`."""

    def __init__(self, secret: bytes, *, rekey_bytes: int = REKEY_BYTES, max_frames: int = MAX_FRAMES) -> None:
        self._rekey_bytes = rekey_bytes
        self._max_frames = max_frames
        self._failed = False
        self._use(secret)

    def seal_into(self, header: bytes, payload: bytes | memoryview, out: memoryview) -> None:
        """Write payload's ciphertext and tag into `out`, which has exactly TAG_BYTES more bytes than `payload`."""
        self._aead.encrypt_into(self._next_nonce(), payload, header, out)
        self._used(len(payload))

    def open_into(self, header: bytes, sealed: bytes | bytearray | memoryview, out: memoryview | bytearray) -> None:
        """Write the plaintext of `sealed` into `out`. Raises RemoteProtocolError with `bad_tag` if it is not what the
        sender sealed as its next frame; `out` then holds bytes that nobody may use."""
        if self._failed:
            raise LocalProtocolError("this lane has failed before")
        try:
            self._aead.decrypt_into(self._next_nonce(), sealed, header, out)
        except InvalidTag:
            self._failed = True
            raise RemoteProtocolError("bad_tag", "a frame was damaged or forged on the way") from None
        self._used(len(out))

    def _next_nonce(self) -> bytes:
        nonce = self._iv ^ self._frames
        return nonce.to_bytes(_IV_BYTES, "big")

    def _used(self, num_bytes: int) -> None:
        self._frames += 1
        self._bytes += num_bytes
        if self._bytes >= self._rekey_bytes or self._frames >= self._max_frames:
            self._use(_expand(self._secret, b"next", 32))

    def _use(self, secret: bytes) -> None:
        self._secret = secret
        self._aead = AESGCM(_expand(secret, b"key", 32))
        self._iv = int.from_bytes(_expand(secret, b"iv", _IV_BYTES), "big")
        self._frames = 0
        self._bytes = 0


@dataclass(frozen=True, slots=True)
class LaneSeals:
    """Both directions of one lane, as one of its ends sees them."""

    outgoing: FrameSeal
    incoming: FrameSeal


def lane_seals(
    dialer_share: bytes,
    acceptor_share: bytes,
    *,
    dialer: bool,
    rekey_bytes: int = REKEY_BYTES,
    max_frames: int = MAX_FRAMES,
) -> LaneSeals:
    """Keys of a lane from the random bytes that its ends told each other inside TLS. `dialer` says which end asks."""
    if len(dialer_share) != SHARE_BYTES or len(acceptor_share) != SHARE_BYTES:
        raise LocalProtocolError(f"a key share has {SHARE_BYTES} bytes")
    extract = HMAC(_SALT, hashes.SHA256())
    extract.update(dialer_share + acceptor_share)
    master = extract.finalize()
    forth, back = (
        FrameSeal(_expand(master, label, 32), rekey_bytes=rekey_bytes, max_frames=max_frames)
        for label in (b"dialer to acceptor", b"acceptor to dialer")
    )
    return LaneSeals(forth, back) if dialer else LaneSeals(back, forth)


def _expand(secret: bytes, label: bytes, length: int) -> bytes:
    return HKDFExpand(hashes.SHA256(), length, b"prfaas lane 2 " + label).derive(secret)
