"""The messages between an engine and its node: strict, whatever the bytes are."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas.core.wire import engine
from prfaas.core.wire.contract import BadMessage, OtherVersion
from prfaas.core.wire.engine import (
    LENGTH,
    REQUESTS,
    VERSION,
    Attach,
    Claim,
    Confirmed,
    Done,
    Staged,
    call_id,
    content,
    decode_reply,
    decode_request,
    frame,
    refusal,
    reply,
)
from prfaas.testing.node_pair import SMALL_LAYOUT

ATTACH = Attach(id=1, version=VERSION, engine_id="e", boot_id="b", layout=SMALL_LAYOUT)
CLAIM = Claim(id=2, transfer_id="a", num_prompt_tokens=9, token_digest="0" * 64, claim_secret="s" * 22)


def payload(message: object) -> bytes:
    """Without its length."""
    return msgspec.msgpack.encode(message)


def values(message: object) -> dict[str, Any]:
    """As another program would send it."""
    found: dict[str, Any] = msgspec.msgpack.decode(payload(message))
    return found


@pytest.mark.parametrize(
    "message", [ATTACH, CLAIM, Staged(transfer_id="a", ranges=((0, 5), (7, 9)))], ids=lambda m: type(m).__name__
)
def test_messages_come_out_as_they_went_in(message: engine.AnyRequest) -> None:
    """Framed; the layout that a worker registers is what the node understands."""
    framed = frame(message)
    assert LENGTH.unpack(framed[: LENGTH.size])[0] == len(framed) - LENGTH.size
    assert decode_request(framed[LENGTH.size :]) == message
    assert call_id(framed[LENGTH.size :]) == message.id


def test_replies_come_out_as_they_went_in() -> None:
    """What was asked is what is answered, or a refusal."""
    envelope = decode_reply(reply(7, Confirmed(valid=True))[LENGTH.size :])
    assert (envelope.id, envelope.error, content(envelope, Confirmed)) == (7, None, Confirmed(valid=True))
    refused = decode_reply(refusal(8, "code", "why" * 2000)[LENGTH.size :]).error
    assert refused is not None
    assert (refused.code, len(refused.message)) == ("code", 2048)
    with pytest.raises(BadMessage, match="Confirmed: Object missing required field `valid`"):
        content(decode_reply(reply(9, Done())[LENGTH.size :]), Confirmed)


def test_another_version_is_told_before_anything_else() -> None:
    """Also by a message of which nothing else can be read."""
    for theirs in (1, VERSION + 1, None, "2", True):
        with pytest.raises(OtherVersion, match=f"version {VERSION}; upgrade the older one"):
            decode_request(payload({"op": "attach", "version": theirs, "from the": "future"}))


LAYOUT = values(ATTACH)["layout"]


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {**LAYOUT, "groups": []},
        {**LAYOUT, "groups": 5},
        {**LAYOUT, "groups": [5]},
        {**LAYOUT, "unknown": 1},
        {**LAYOUT, "groups": [{**LAYOUT["groups"][0], "unknown": 1}]},
        {**LAYOUT, "groups": [{**LAYOUT["groups"][0], "kind": "new"}]},
        {**LAYOUT, "block_tokens": 0},
        {**LAYOUT, "block_tokens": "16"},
    ],
    ids=str,
)
def test_a_layout_that_no_engine_has_is_refused(layout: object) -> None:
    """Images of it would be garbage."""
    with pytest.raises(BadMessage):
        decode_request(payload({**values(ATTACH), "layout": layout}))


@given(st.sampled_from(REQUESTS), st.data())
def test_whatever_comes_is_a_message_or_refused(kind: type[engine.Request], data: st.DataObject) -> None:
    """Any field with any value: nothing but BadMessage."""
    anything = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=5) | st.floats()
    nested = anything | st.lists(anything, max_size=3) | st.dictionaries(st.text(max_size=3), anything, max_size=3)
    names = st.sampled_from([*kind.__struct_fields__, "unknown"])
    made = data.draw(st.dictionaries(names, nested))
    body = payload({**made, "op": kind.__struct_config__.tag})
    with contextlib.suppress(BadMessage):
        decode_request(body)


@given(st.binary(max_size=64))
def test_noise_is_refused(noise: bytes) -> None:
    """Neither end raises anything else."""
    for decode in (decode_request, decode_reply):
        with contextlib.suppress(BadMessage):
            decode(noise)
    with contextlib.suppress(ValueError):
        call_id(noise)
