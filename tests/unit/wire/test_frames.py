"""Whatever bytes come, the parser answers with a frame or RemoteProtocolError, never with anything else."""

from __future__ import annotations

import random

import msgspec
import pytest
from fuzz.frames import attack as fuzz_attack
from fuzz.frames import run as fuzz_frames
from hypothesis import given, settings
from hypothesis import strategies as st

from prfaas.core.errors import LocalProtocolError, RemoteProtocolError
from prfaas.core.wire.frames import (
    CONTROL_TYPES,
    HEADER_BYTES,
    MAX_CHUNK_BYTES,
    MAX_CONTROL_BYTES,
    FrameType,
    Header,
    checksum,
    data_trailer,
    decode_header,
    encode_header,
    sum_of_header,
)
from prfaas.core.wire.lane import TRANSITIONS, LaneProtocol, LaneState, Received
from prfaas.core.wire.messages import (
    Abort,
    Hello,
    Message,
    Open,
    Opened,
    Refuse,
    Welcome,
    decode_message,
    encode_message,
)

#: CI's; the fuzzer takes another one at every run.
SEED = 20261125

HELLO = Hello("west-0", "boot", "east-0", 0, "sha256", "seed", "f")
WELCOME = Welcome("east-0", "boot", 1 << 20, 1 << 24)
MESSAGES: list[Message] = [
    HELLO, WELCOME, Refuse("code", "why"), Open("t", "token", 7, "f"), Opened("t"), Abort("t", "token", "code", "why"),
]  # fmt: skip

headers = st.builds(
    Header,
    st.sampled_from([kind for kind in FrameType if kind is not FrameType.DATA]),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.just(0),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
)


def feed(protocol: LaneProtocol, data: bytes, step: int) -> list[Received]:
    """Drive the machine with a stream cut into pieces of `step` bytes, as a shell would."""
    buffer, received = bytearray(), []
    for start in range(0, len(data), step):
        buffer += data[start : start + step]
        while len(buffer) >= protocol.wanted_bytes() > 0:
            count = protocol.wanted_bytes()
            frame = protocol.receive(bytes(buffer[:count]))
            del buffer[:count]
            if frame is not None:
                received.append(frame)
    return received


def test_golden_header() -> None:
    """The wire format does not change by accident."""
    header = Header(FrameType.DATA, 0x0102030405060708, 0x1112131415161718, 0x100, 0x21222324, 5)
    assert encode_header(header).hex() == (
        "505246530206000008070605040302011817161514131211000100002423222105000000" + encode_header(header)[-4:].hex()
    )
    assert checksum(encode_header(header)[:-4]) == int.from_bytes(encode_header(header)[-4:], "little")
    assert checksum(b"123456789") == 0xE3069283, "CRC-32C, by its published check value"


@given(headers)
def test_headers_round_trip(header: Header) -> None:
    """Exactly."""
    assert decode_header(encode_header(header), MAX_CHUNK_BYTES) == header


def test_every_flipped_bit_is_noticed() -> None:
    """Of a header's 320 bits, none can flip unseen."""
    data = encode_header(Header(FrameType.DATA, 1, 2, 3, 4, 5))
    for bit in range(8 * HEADER_BYTES):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(RemoteProtocolError):
            decode_header(bytes(damaged), MAX_CHUNK_BYTES)


@pytest.mark.parametrize("kind", list(FrameType))
def test_lengths_are_bounded_by_type(kind: FrameType) -> None:
    """A length over its type's limit is refused before anything is read."""
    limit = 1000 if kind is FrameType.DATA else MAX_CONTROL_BYTES if kind in CONTROL_TYPES else 0
    assert decode_header(encode_header(Header(kind, 0, 0, limit, 0, 0)), 1000).length == limit
    with pytest.raises(RemoteProtocolError):
        decode_header(encode_header(Header(kind, 0, 0, limit + 1, 0, 0)), 1000)


@given(st.binary(min_size=HEADER_BYTES, max_size=HEADER_BYTES))
def test_random_headers(data: bytes) -> None:
    """Noise is refused."""
    with pytest.raises(RemoteProtocolError):
        decode_header(data, MAX_CHUNK_BYTES)


@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_a_conversation_in_any_pieces(step: int) -> None:
    """Whole, byte by byte, and with trailing bytes, the frames are the same."""
    dialer, acceptor = LaneProtocol(dialer=True), LaneProtocol(dialer=False)
    [hello] = feed(acceptor, dialer.send_message(HELLO), step)
    assert hello.message == HELLO
    stream = acceptor.send_message(WELCOME) + acceptor.send_signal(FrameType.PING) + b"PRF"
    assert [frame.header.type for frame in feed(dialer, stream, step)] == [FrameType.WELCOME, FrameType.PING]
    assert dialer.state is LaneState.SENDER
    assert dialer.max_chunk_bytes == WELCOME.max_chunk_bytes


def sender_and_receiver() -> tuple[LaneProtocol, LaneProtocol]:
    """Two greeted ends."""
    dialer, acceptor = LaneProtocol(dialer=True), LaneProtocol(dialer=False)
    feed(acceptor, dialer.send_message(HELLO), 10_000)
    feed(dialer, acceptor.send_message(WELCOME), 10_000)
    return dialer, acceptor


def test_data_is_reported_at_its_header_and_judged_by_its_checksum() -> None:
    """The machine never sees the payload."""
    dialer, acceptor = sender_and_receiver()
    for payload, good in ((b"abc", True), (b"abd", False)):
        header = dialer.send_data_header(9, 4, 3)
        frame = acceptor.receive(header)
        assert frame is not None
        assert (frame.header.handle, frame.header.offset, frame.header.length) == (9, 4, 3)
        with pytest.raises(LocalProtocolError):
            acceptor.wanted_bytes()
        trailer = data_trailer(checksum(b"abc", sum_of_header(header)))
        assert acceptor.data_received(checksum(payload, acceptor.data_sum()), trailer) is good


def test_a_header_is_no_payload_with_its_checksum() -> None:
    """A chunk of 36 bytes that was cut off is not replaced by the header behind it, which ends in a CRC of 36 bytes."""
    dialer, acceptor = sender_and_receiver()
    acceptor.receive(dialer.send_data_header(9, 0, 36))
    behind = dialer.send_signal(FrameType.PING)
    assert not acceptor.data_received(checksum(behind[:36], acceptor.data_sum()), behind[36:])


@pytest.mark.parametrize("state", list(LaneState))
@pytest.mark.parametrize("kind", list(FrameType))
def test_what_the_table_does_not_allow_closes_the_lane(state: LaneState, kind: FrameType) -> None:
    """Every state and every frame: legal ones move as the table says, others are refused."""
    protocol = LaneProtocol(dialer=True)
    protocol.state = state
    message = next((m for m in MESSAGES if type(m).__name__.upper() == kind.name), None)
    other = LaneProtocol(dialer=True)
    other.state = LaneState.SENDER
    if message is not None:
        data = other.send_message(message)
    elif kind is FrameType.DATA:
        data = other.send_data_header(1, 0, 1)
    else:
        data = other.send_signal(kind)
    if kind in TRANSITIONS[state]:
        [frame] = feed(protocol, data, 10_000) if kind is not FrameType.DATA else [protocol.receive(data)]
        assert frame is not None
        assert protocol.state is TRANSITIONS[state][kind]
    else:
        with pytest.raises(RemoteProtocolError):
            feed(protocol, data, 10_000)
        assert protocol.state is LaneState.CLOSED


@pytest.mark.parametrize("order", [[1], [0, 0], [0, 2], [0, 1, 0]])
def test_gaps_repeats_and_reorder_are_refused(order: list[int]) -> None:
    """Frames of a lane are numbered."""
    dialer, acceptor = sender_and_receiver()
    pings = [dialer.send_signal(FrameType.PING) for _ in range(3)]
    for index in order[:-1]:
        acceptor.receive(pings[index])
    with pytest.raises(RemoteProtocolError, match="due"):
        acceptor.receive(pings[order[-1]])


@settings(max_examples=200)
@given(st.binary(max_size=400), st.booleans(), st.integers(1, 60))
def test_random_streams(data: bytes, dialer: bool, step: int) -> None:
    """Noise ends the lane and nothing else."""
    protocol = LaneProtocol(dialer=dialer)
    try:
        feed(protocol, data, step)
    except RemoteProtocolError:
        assert protocol.state is LaneState.CLOSED


@pytest.mark.slow
def test_a_hundred_thousand_attacked_streams() -> None:
    """Good conversations, plain and encrypted, with one thing flipped, cut, repeated, swapped, dropped or put in: what is
    delivered was sent, in its order, once."""
    print(f"seed {SEED}")
    rng = random.Random(SEED)
    for index in range(100_000):
        fuzz_attack(rng, bool(index & 1))


def test_short_fuzz() -> None:
    """The fuzzer's short form; `python -m fuzz.frames --inputs 10000000` is the long one."""
    print(f"seed {SEED}")
    assert fuzz_frames(SEED, 20_000) == 20_000


@pytest.mark.parametrize("break_", ["\n", "\r", "\x1b", "\x85", "\u2028", "a\n"])
@pytest.mark.parametrize("field", ["node", "boot_id", "target", "hash_seed", "fingerprint"])
def test_a_name_with_a_line_break_is_malformed(break_: str, field: str) -> None:
    """It would forge lines in the logs of whoever is told of it."""
    hello = Hello("west-0", "b", "east-0", 0, "sha256", "prfaas", "")
    assert decode_message(FrameType.HELLO, encode_message(hello)) == hello
    with pytest.raises(RemoteProtocolError, match="HELLO"):
        decode_message(FrameType.HELLO, encode_message(msgspec.structs.replace(hello, **{field: break_})))


def test_a_peers_words_stay_on_one_line() -> None:
    """What it refuses or gives up for may repeat anything."""
    refuse = Refuse("wrong_node", "no\n2026-01-01 ERROR forged é")
    told = decode_message(FrameType.REFUSE, encode_message(refuse))
    assert told == Refuse("wrong_node", "no 2026-01-01 ERROR forged é")
    abort = Abort("t", "s", "sender_aborted", "a\rb")
    assert decode_message(FrameType.ABORT, encode_message(abort)) == Abort("t", "s", "sender_aborted", "a b")
