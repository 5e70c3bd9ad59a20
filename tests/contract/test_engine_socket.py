"""The engines' Unix socket of a KV node, on the real process and on the fake alike: raw frames, as any program could
send them, and the client that connectors use."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from prfaas.core.errors import Refused
from prfaas.core.wire.engine import LENGTH, MAX_MESSAGE_BYTES, VERSION, StageOpen
from prfaas.engines.node_client import NodeUnavailable
from prfaas.testing.fake_kvnode import fake_layout
from tests.contract.nodes import DIGEST, SECRET, Nodes, engine

ATTACH = {"op": "attach", "version": VERSION, "engine_id": "raw", "boot_id": "raw", "layout": None}
CLAIM = {"op": "claim", "transfer_id": "nobody", "num_prompt_tokens": 9, "token_digest": DIGEST, "claim_secret": SECRET}


class Raw:
    """Frames by hand."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(60)
        self.sock.connect(path)

    def send(self, message: object) -> None:
        """Any value, framed."""
        payload = msgspec.msgpack.encode(message)
        self.sock.sendall(LENGTH.pack(len(payload)) + payload)

    def receive(self) -> Any:
        """One message; None if the node has hung up."""
        head = self.sock.recv(LENGTH.size, socket.MSG_WAITALL)
        if not head:
            return None
        return msgspec.msgpack.decode(self.sock.recv(LENGTH.unpack(head)[0], socket.MSG_WAITALL))

    def ask(self, message: object) -> Any:
        """Send and receive."""
        self.send(message)
        return self.receive()


@pytest.fixture
def raw(pair: Nodes) -> Iterator[Raw]:
    """A connection that has said nothing yet."""
    connection = Raw(pair.sink[1])
    yield connection
    connection.sock.close()


def test_replies_have_the_ids_of_their_calls_and_posts_get_none(pair: Nodes, raw: Raw) -> None:
    """In order."""
    attached = raw.ask({**ATTACH, "id": 7})
    assert attached.keys() == {"id", "ok"}
    assert attached["id"] == 7
    assert attached["ok"].keys() == {"node", "node_boot_id", "arena_path", "arena_bytes"}
    raw.send({"op": "stage_close", "transfer_id": "nobody"})
    raw.send({"op": "ping", "id": 8})
    assert raw.ask({"op": "ping", "id": 9}) == {"id": 8, "ok": {}}
    assert raw.receive() == {"id": 9, "ok": {}}


@pytest.mark.parametrize(
    ("message", "code", "words"),
    [
        ({"op": "fly"}, "bad_request", "'fly'"),
        ({}, "bad_request", "missing required field `op`"),
        ({"op": "ping", "unknown": 1}, "bad_request", "unknown field `unknown`"),
        *(
            ({k: v for k, v in CLAIM.items() if k != name}, "bad_request", f"missing required field `{name}`")
            for name in ("transfer_id", "num_prompt_tokens", "token_digest", "claim_secret")
        ),
        ({**CLAIM, "num_prompt_tokens": "9"}, "bad_request", "`$.num_prompt_tokens`"),
        ({**CLAIM, "transfer_id": "two\nlines"}, "bad_request", "`$.transfer_id`"),
        ({"op": "staged", "transfer_id": "a", "ranges": [[0, -1]]}, "bad_request", "`$.ranges[0][1]`"),
        ({"op": "consumed", "transfer_id": "a", "loaded": 1.5, "recomputed": 1}, "bad_request", "`$.loaded`"),
        ({**ATTACH, "boot_id": "again"}, "bad_request", "attached already"),
        (CLAIM, "unknown_landing", "no landing here"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_message_that_breaks_the_contract_gets_one_clear_refusal(
    pair: Nodes, raw: Raw, message: dict[str, Any], code: str, words: str
) -> None:
    """And the connection, on which the engine's stagings hang, goes on."""
    raw.ask({**ATTACH, "id": 1})
    refused = raw.ask({**message, "id": 2})
    assert refused.keys() == {"id", "error"}
    assert (refused["id"], refused["error"]["code"]) == (2, code)
    assert words in refused["error"]["message"]
    raw.send(message)
    assert raw.ask({"op": "ping", "id": 3}) == {"id": 3, "ok": {}}, "as a post it gets no answer"


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"version": VERSION + 1, "new": 1}, "version", f"version {VERSION + 1}, this process version {VERSION}"),
        ({"version": 1}, "version", "upgrade the older one"),
        ({"version": None}, "version", "speaks no version"),
        ({"engine_id": 5}, "bad_request", "`$.engine_id`"),
        ({"layout": {"model": "m"}}, "bad_request", "`$.layout`"),
        ({"layout": {"unknown": 1}}, "bad_request", "unknown field 'unknown'"),
    ],
    ids=str,
)
def test_an_engine_that_speaks_otherwise_is_not_attached(
    pair: Nodes, raw: Raw, change: dict[str, Any], code: str, words: str
) -> None:
    """It is told why, and may do nothing."""
    refused = raw.ask({**ATTACH, **change, "id": 1})
    assert refused["error"]["code"] == code
    assert words in refused["error"]["message"]
    assert raw.ask({**CLAIM, "id": 2})["error"]["code"] == "not_attached"


@pytest.mark.parametrize(
    "noise",
    [
        LENGTH.pack(MAX_MESSAGE_BYTES + 1),
        LENGTH.pack(1) + b"\xc1",
        LENGTH.pack(2) + b"\x91\x01",
        LENGTH.pack(9) + b"\x81\xa2id\xa3two\x00",
    ],
    ids=["too long", "no msgpack", "no map", "no id"],
)
def test_what_is_no_message_ends_the_connection(pair: Nodes, raw: Raw, noise: bytes) -> None:
    """There is nobody to answer to, and no telling where the next message begins."""
    raw.sock.sendall(noise)
    assert raw.receive() is None
    pair.decode.ping()


def test_the_client_tells_refusals_from_a_node_that_is_away(pair: Nodes) -> None:
    """With the node's code, or NodeUnavailable."""
    wrong = engine(pair.sink[1], "other", fake_layout(bytes_per_token=32))
    with pytest.raises(Refused) as refused:
        wrong.attach()
    assert refused.value.code == "layout_mismatch"
    with pytest.raises(Refused) as refused:
        pair.prefill.stage_open(StageOpen(transfer_id="a", peer="nobody", token="t" * 22, num_bytes=1, deadline_s=1.0))
    assert refused.value.code == "unknown_peer"
    with pytest.raises(NodeUnavailable, match="no KV node listens"):
        engine(pair.sink[1] + ".gone", "lonely").attach()
