"""What our contracts have in common: bounded fields, strict decoding, and versions.

Laws of this file:
- Both ends of a contract use the same types. A field that is unknown, missing, mistyped or out of bounds makes the
  whole message refused, in one sentence that names the message and the field.
- So a new field is a new version: each contract has one number, which is compared before anything else is read. An
  older peer then hears of two versions, and not of a field that it does not know.
- Text in a message may be shown and logged: ids and names hold no blanks, quotes or line ends.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta

from prfaas.core.errors import PrfaasError

T = TypeVar("T")

#: The gateway draws 32 hexadecimal digits.
TransferId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._:-]{1,128}\Z", description="letters, digits and `._:-`")]
#: A node's name, an engine's or node's boot id.
Name = Annotated[str, Meta(pattern=r"\A[^\x00-\x1f\x7f-\x9f\u2028\u2029]{1,256}\Z")]
Text = Annotated[str, Meta(max_length=2048)]
#: 22 characters of base64 hold 128 bits; a shorter one could be guessed.
Secret = Annotated[str, Meta(min_length=22, max_length=128)]
#: The hex SHA-256 of a prompt's token ids (`core.cache.hashing.token_digest`).
TokenDigest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z", description="64 hexadecimal digits")]
Fingerprint = Annotated[str, Meta(max_length=256)]
Tokens = Annotated[int, Meta(ge=0, le=1 << 31)]
#: A transfer moves all but the last token, so a prompt has two or more.
PromptTokens = Annotated[int, Meta(ge=2, le=1 << 31)]
#: What fits into 64 bits with room to add.
MAX_BYTES: Final = 1 << 62
Bytes = Annotated[int, Meta(ge=0, le=MAX_BYTES)]
Count = Annotated[int, Meta(ge=0, le=1 << 62)]
#: Longer than any transfer, lease or poll may take.
MAX_SECONDS: Final = 3600.0
Seconds = Annotated[float, Meta(ge=0, le=MAX_SECONDS)]
#: A duration or moment that somebody measured.
Measured = Annotated[float, Meta(ge=0)]


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every message between our own processes."""


class BadMessage(PrfaasError):
    """A message that breaks its contract. The text names message, field and what is wrong with it."""


class OtherVersion(BadMessage):
    """The peer speaks another version of the contract."""


def check_version(contract: str, ours: int, theirs: object) -> None:
    """Raise OtherVersion unless both ends speak the same version."""
    if theirs == ours and not isinstance(theirs, bool):
        return
    shown = f"version {theirs!r}" if isinstance(theirs, (int, str)) else "no version"
    raise OtherVersion(f"{contract}: the peer speaks {shown[:40]}, this process version {ours}; upgrade the older one")


def from_json(kind: type[T], body: bytes) -> T:
    """Raises BadMessage, whatever the bytes are."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadMessage(f"{kind.__name__}: {error}") from None


def from_values(kind: type[T], values: object, *, texts: bool = False) -> T:
    """From plain values; with `texts` numbers may be written as text, as in a query string. Raises BadMessage."""
    try:
        return msgspec.convert(values, type=kind, strict=not texts)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BadMessage(f"{kind.__name__}: {error}") from None


def to_values(message: Message) -> dict[str, Any]:
    """Plain values; the inverse of `from_values`."""
    values: dict[str, Any] = msgspec.to_builtins(message)
    return values
