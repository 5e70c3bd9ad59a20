"""Sealed frames: what opens, what must not, and that no nonce is ever used twice under one key."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas.core.errors import LocalProtocolError, RemoteProtocolError
from prfaas.core.wire import seal
from prfaas.core.wire.frames import HEADER_BYTES, SEALED, SEGMENT_BYTES, FrameType, segments
from prfaas.core.wire.lane import LaneProtocol, LaneState
from prfaas.core.wire.messages import Hello, Welcome
from prfaas.core.wire.seal import SHARE_BYTES, TAG_BYTES, FrameSeal, LaneSeals, lane_seals

DIALER, ACCEPTOR = bytes(range(32)), bytes(range(32, 64))
HELLO = Hello("west-0", "boot", "east-0", 0, "sha256", "prfaas", "")


def seals() -> tuple[LaneSeals, LaneSeals]:
    """Of the dialer and of the acceptor."""
    return lane_seals(DIALER, ACCEPTOR, dialer=True), lane_seals(DIALER, ACCEPTOR, dialer=False)


def sealed(sender: FrameSeal, payload: bytes, header: bytes = b"header") -> bytes:
    """What goes over the wire behind the header."""
    out = bytearray(len(payload) + TAG_BYTES)
    sender.seal_into(header, payload, memoryview(out))
    return bytes(out)


def opened(receiver: FrameSeal, data: bytes, header: bytes = b"header") -> bytes:
    """The plaintext, or RemoteProtocolError."""
    out = bytearray(len(data) - TAG_BYTES)
    receiver.open_into(header, data, out)
    return bytes(out)


def test_golden_key_schedule() -> None:
    """The keys of given shares do not change by accident: two versions of PrfaaS must open each other's frames."""
    dialer, acceptor = seals()
    assert sealed(dialer.outgoing, b"kv").hex() == "3c844e926afde78c7b25cdd12f329dce9241"
    assert sealed(acceptor.outgoing, b"kv").hex() == "b7e1871799482d7f01c32138d5e9704d8a41"


def test_directions_and_lanes_have_keys_of_their_own() -> None:
    """A frame that is sent back, or into another lane, does not open."""
    dialer, acceptor = seals()
    frame = sealed(dialer.outgoing, b"kv")
    with pytest.raises(RemoteProtocolError, match="damaged or forged"):
        opened(dialer.incoming, frame)
    other = lane_seals(DIALER, bytes(32), dialer=False)
    with pytest.raises(RemoteProtocolError, match="damaged or forged"):
        opened(other.incoming, frame)
    assert opened(acceptor.incoming, frame) == b"kv"


@given(st.lists(st.binary(max_size=40), min_size=2, max_size=6), st.data())
def test_only_the_frames_of_the_sender_in_their_order_open(payloads: list[bytes], data: st.DataObject) -> None:
    """Whatever is replayed, dropped, swapped, cut or changed on the way is detected at that very frame."""
    dialer, acceptor = seals()
    frames = [sealed(dialer.outgoing, payload) for payload in payloads]
    at = data.draw(st.integers(0, len(frames) - 1))
    attack = data.draw(st.sampled_from(["replay", "drop", "flip", "cut", "header"]))
    header = b"header"
    if attack == "replay":
        frames.insert(at + 1, frames[at])
        at += 1
    elif attack == "drop" and at + 1 < len(frames):
        del frames[at]
    elif attack == "header":
        header = b"Header"
    elif attack == "cut":
        frames[at] = frames[at][:-1] if len(frames[at]) > TAG_BYTES else bytes(TAG_BYTES)
    else:
        bit = data.draw(st.integers(0, len(frames[at]) * 8 - 1))
        changed = bytearray(frames[at])
        changed[bit // 8] ^= 1 << bit % 8
        frames[at] = bytes(changed)
    for frame, payload in zip(frames[:at], payloads, strict=False):
        assert opened(acceptor.incoming, frame) == payload
    with pytest.raises(RemoteProtocolError) as caught:
        opened(acceptor.incoming, frames[at], header)
    assert caught.value.code == "bad_tag"
    with pytest.raises(LocalProtocolError):
        opened(acceptor.incoming, frames[-1])


def test_no_nonce_twice_under_one_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over both directions, many lanes and many changes of keys: (key, nonce) is unique. Counted at the cipher itself."""
    used: set[tuple[bytes, bytes]] = set()

    class Recording:
        def __init__(self, key: bytes) -> None:
            self.key = key

        def encrypt_into(self, nonce: bytes, payload: bytes, header: bytes, out: memoryview) -> None:
            assert (self.key, nonce) not in used, "a nonce came twice"
            used.add((self.key, nonce))

    monkeypatch.setattr(seal, "AESGCM", Recording)
    for lane in range(10):
        acceptor = lane.to_bytes(SHARE_BYTES, "big")
        both = lane_seals(DIALER, acceptor, dialer=True, rekey_bytes=100, max_frames=7)
        for index in range(200):
            sealed(both.outgoing, bytes(index % 50))
            sealed(both.incoming, bytes(index % 50))
    assert len(used) == 4000
    assert len({key for key, _ in used}) > 10 * 2 * 200 // 7


@pytest.mark.parametrize(("rekey_bytes", "max_frames"), [(100, 1000), (1 << 40, 3)])
def test_keys_change_at_both_ends_at_once(rekey_bytes: int, max_frames: int) -> None:
    """By bytes or by frames, without a word on the wire."""
    sender = FrameSeal(DIALER, rekey_bytes=rekey_bytes, max_frames=max_frames)
    receiver = FrameSeal(DIALER, rekey_bytes=rekey_bytes, max_frames=max_frames)
    never = FrameSeal(DIALER)
    frames = [sealed(sender, bytes([index]) * 33) for index in range(20)]
    assert [opened(receiver, frame) for frame in frames] == [bytes([index]) * 33 for index in range(20)]
    same = list(
        itertools.takewhile(
            lambda pair: pair[0] == pair[1], ((f, sealed(never, opened_of(i))) for i, f in enumerate(frames))
        )
    )
    assert len(same) == (4 if max_frames == 1000 else 3)


def opened_of(index: int) -> bytes:
    """Payload number `index` of the test above."""
    return bytes([index]) * 33


def conversation(limit: int = 1 << 19) -> tuple[LaneProtocol, LaneProtocol]:
    """Two ends of an encrypted lane, past their greeting."""
    dialer_seals, acceptor_seals = seals()
    dialer = LaneProtocol(dialer=True, max_chunk_bytes=limit, seals=dialer_seals)
    acceptor = LaneProtocol(dialer=False, max_chunk_bytes=limit, seals=acceptor_seals)
    feed(acceptor, dialer.send_message(HELLO))
    feed(dialer, acceptor.send_message(Welcome("east-0", "boot", limit, 1 << 20)))
    return dialer, acceptor


def feed(protocol: LaneProtocol, data: bytes) -> None:
    """One control frame or signal."""
    while data:
        count = protocol.wanted_bytes()
        protocol.receive(data[:count])
        data = data[count:]


def test_sealed_data_arrives() -> None:
    """The chunk is what was sent, and not to be seen on the wire."""
    dialer, acceptor = conversation()
    payload = b"secret KV " * 30_000
    header = dialer.send_data_header(7, 0, len(payload))
    assert header[6] == SEALED
    assert acceptor.receive(header) is not None
    plain = bytearray(len(payload))
    for start, end in segments(len(payload)):
        out = bytearray(end - start + TAG_BYTES)
        dialer.seal_segment(memoryview(payload)[start:end], memoryview(out))
        assert b"secret" not in out
        acceptor.open_segment(memoryview(out), memoryview(plain)[start:end])
    assert plain == payload
    feed(dialer, acceptor.send_signal(FrameType.ACK, 7, 0))


def test_a_changed_header_of_data_is_found() -> None:
    """Even one with a good CRC: someone who moves a chunk to another place of the image is found by the tag."""
    from dataclasses import replace

    from prfaas.core.wire.frames import decode_header, encode_header

    dialer, acceptor = conversation()
    out = bytearray(100 + TAG_BYTES)
    header = dialer.send_data_header(7, 0, 100)
    dialer.seal_segment(memoryview(bytes(100)), memoryview(out))
    forged = encode_header(replace(decode_header(header, 4096, SEALED), offset=4096), SEALED)
    assert acceptor.receive(forged) is not None
    with pytest.raises(RemoteProtocolError) as caught:
        acceptor.open_segment(memoryview(out), memoryview(bytearray(100)))
    assert caught.value.code == "bad_tag"
    assert acceptor.state is LaneState.CLOSED


def test_plain_frames_are_no_part_of_an_encrypted_lane() -> None:
    """Nor the other way round: there is no mode to fall back to."""
    _, acceptor = conversation()
    plain = LaneProtocol(dialer=True)
    plain.state = LaneState.SENDER
    plain.send_signal(FrameType.PING)
    with pytest.raises(RemoteProtocolError, match="flags"):
        acceptor.receive(plain.send_signal(FrameType.PING)[:HEADER_BYTES])
    dialer, _ = conversation()
    with pytest.raises(RemoteProtocolError, match="flags"):
        LaneProtocol(dialer=False).receive(dialer.send_signal(FrameType.PING)[:HEADER_BYTES])
    plain.send_data_header(1, 0, 1)
    with pytest.raises(LocalProtocolError):
        plain.seal_segment(memoryview(b"x"), memoryview(bytearray(17)))


def test_segments_of_one_chunk_do_not_change_places() -> None:
    """Each has a nonce of its own."""
    dialer, acceptor = conversation(1 << 20)
    acceptor.receive(dialer.send_data_header(7, 0, 2 * SEGMENT_BYTES))
    parts = [bytearray(SEGMENT_BYTES + TAG_BYTES) for _ in range(2)]
    for part in parts:
        dialer.seal_segment(memoryview(bytes(SEGMENT_BYTES)), memoryview(part))
    with pytest.raises(RemoteProtocolError, match="damaged or forged"):
        acceptor.open_segment(memoryview(parts[1]), memoryview(bytearray(SEGMENT_BYTES)))
