"""The Unix-socket protocol between an engine and the KV node beside it: messages and framing.

A message is a 4-byte little-endian length and a msgpack map; `op` names its type. One with `id` is a call and gets a
reply with the same `id`; one without is a post and gets none. Posts and calls of one connection are handled in order.
Only paths with mode 0600 in the node's own directory are used, so the peer is the same user. The version stands in
`attach`, the first message of every connection.
"""

from __future__ import annotations

import struct
from dataclasses import fields
from typing import Annotated, ClassVar, Final, TypeVar

import msgspec
from msgspec import Meta

from prfaas.core.model.layout import KVGroup, KVLayout
from prfaas.core.wire.contract import (
    BadMessage,
    Bytes,
    Count,
    Message,
    Name,
    PromptTokens,
    Seconds,
    Secret,
    Text,
    TokenDigest,
    Tokens,
    TransferId,
    check_version,
)

#: 2 brought the claim secret and refusals of unknown fields.
VERSION: Final = 2

LENGTH: Final = struct.Struct("<I")
#: The longest message is a post of the byte ranges of one engine step: 16 bytes each, thousands of them.
MAX_MESSAGE_BYTES: Final = 4 << 20


class Reply(Message, frozen=True):
    """Base of what a call is answered with."""


class Done(Reply, frozen=True):
    """There is nothing to say."""


class Attached(Reply, frozen=True):
    """The node that an engine has connected to, and the file that both map."""

    node: Name
    node_boot_id: Name
    arena_path: Text
    arena_bytes: Bytes


class StageOpened(Reply, frozen=True):
    """Place for an image in the arena of that life of the node, to be filled and posted as `staged`."""

    arena_offset: Bytes
    num_bytes: Bytes
    node_boot_id: Name


class Claimed(Reply, frozen=True):
    """Where the landing lies in the arena of that life of the node."""

    arena_offset: Bytes
    num_bytes: Bytes
    skip_tokens: Tokens
    node_boot_id: Name


class Confirmed(Reply, frozen=True):
    """Whether the claim still held when everything had been copied. If not, the copy must not be used."""

    valid: bool


class Request(Message, frozen=True, tag_field="op"):
    """Base of what an engine sends. `id` is null in a post."""

    answer: ClassVar[type[Reply]] = Done

    id: Count | None = None


class Attach(Request, frozen=True, kw_only=True, tag="attach"):
    """One part of an engine has connected. Its worker brings the layout, its scheduler none."""

    answer: ClassVar[type[Reply]] = Attached

    version: int
    engine_id: Name
    boot_id: Name
    layout: KVLayout | None


class Ping(Request, frozen=True, kw_only=True, tag="ping"):
    """Is the node still there?"""


class StageOpen(Request, frozen=True, kw_only=True, tag="stage_open"):
    """Reserve staging for an image that goes to `peer` within `deadline_s`. `token` opens its landing there."""

    answer: ClassVar[type[Reply]] = StageOpened

    transfer_id: TransferId
    peer: Name
    token: Secret
    num_bytes: Annotated[int, Meta(ge=1, le=1 << 62)]
    deadline_s: Seconds


class Staged(Request, frozen=True, kw_only=True, tag="staged"):
    """These half-open byte ranges of the image are in the arena and will not change."""

    transfer_id: TransferId
    ranges: tuple[tuple[Bytes, Bytes], ...]


class StageClose(Request, frozen=True, kw_only=True, tag="stage_close"):
    """The engine writes no more into this staging."""

    transfer_id: TransferId


class Claim(Request, frozen=True, kw_only=True, tag="claim"):
    """The engine wants to load a landing. `token_digest` is that of the prompt which it has itself."""

    answer: ClassVar[type[Reply]] = Claimed

    transfer_id: TransferId
    num_prompt_tokens: PromptTokens
    token_digest: TokenDigest
    claim_secret: Secret


class Consumed(Request, frozen=True, kw_only=True, tag="consumed"):
    """Everything that was wanted of the landing is copied."""

    answer: ClassVar[type[Reply]] = Confirmed

    transfer_id: TransferId
    loaded: Tokens
    recomputed: Tokens


class Declined(Request, frozen=True, kw_only=True, tag="declined"):
    """The engine computes the prompt itself. Without the landing's own secret it changes nothing."""

    transfer_id: TransferId
    claim_secret: Secret
    reason: Text
    recomputed: Tokens


class EngineError(Message, frozen=True):
    """`code` is stable and for programs, `message` for people."""

    code: Name
    message: Text


class Envelope(Message, frozen=True, omit_defaults=True):
    """A reply on its way: to the call `id`, either `ok` or `error`."""

    id: Count
    ok: msgspec.Raw = msgspec.Raw()
    error: EngineError | None = None


REQUESTS: Final = (Attach, Ping, StageOpen, Staged, StageClose, Claim, Consumed, Declined)
AnyRequest = Attach | Ping | StageOpen | Staged | StageClose | Claim | Consumed | Declined

_encoder = msgspec.msgpack.Encoder()
_request_decoder = msgspec.msgpack.Decoder(AnyRequest)
_envelope_decoder = msgspec.msgpack.Decoder(Envelope)

R = TypeVar("R", bound=Reply)


class _Peek(msgspec.Struct):
    """As much as is needed to answer a message that cannot be read."""

    op: object = None
    id: int | None = None
    version: object = None
    layout: object = None


def call_id(payload: bytes) -> int | None:
    """The id of a request that may be malformed; None if it has none. Raises ValueError for what is no message."""
    try:
        return msgspec.msgpack.decode(payload, type=_Peek).id
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(str(error)) from None


def decode_request(payload: bytes) -> AnyRequest:
    """Raises BadMessage; OtherVersion for an `attach` of another version, whatever else is in it."""
    try:
        peek = msgspec.msgpack.decode(payload, type=_Peek)
        if peek.op == "attach":
            check_version("engine's socket", VERSION, peek.version)
            _check_layout(peek.layout)
        request: AnyRequest = _request_decoder.decode(payload)
        return request
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadMessage(f"engine's message: {error}") from None


def _check_layout(layout: object) -> None:
    # A KVLayout is a dataclass, and of those msgspec lets unknown fields pass.
    if not isinstance(layout, dict):
        return
    groups = layout.get("groups")
    inner = groups if isinstance(groups, list) else []
    parts = [(layout, KVLayout), *((group, KVGroup) for group in inner if isinstance(group, dict))]
    for part, kind in parts:
        unknown = sorted(str(name) for name in part.keys() - {field.name for field in fields(kind)})
        if unknown:
            raise BadMessage(f"engine's message: {kind.__name__} has the unknown field {unknown[0][:64]!r}")


def decode_reply(payload: bytes) -> Envelope:
    """Raises BadMessage."""
    try:
        return _envelope_decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadMessage(f"the node's reply: {error}") from None


def content(envelope: Envelope, kind: type[R]) -> R:
    """What a call was answered with. Raises BadMessage."""
    try:
        return msgspec.msgpack.decode(envelope.ok, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadMessage(f"the node's reply, {kind.__name__}: {error}") from None


def reply(call: int, answer: Reply) -> bytes:
    """A framed reply."""
    return frame(Envelope(id=call, ok=msgspec.Raw(_encoder.encode(answer))))


def refusal(call: int, code: str, message: str) -> bytes:
    """A framed reply that says no."""
    return frame(Envelope(id=call, error=EngineError(code=code, message=message[:2048])))


def frame(message: Message) -> bytes:
    """A framed message."""
    payload = _encoder.encode(message)
    return LENGTH.pack(len(payload)) + payload
