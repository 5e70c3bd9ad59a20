"""TCP_INFO of real sockets."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from prfaas.testing.node_pair import wait_until
from prfaas.transport.sockets import bytes_moved, receive_into, send_all
from prfaas.transport.tcp_info import lane_sample, tcp_info

#: From linux/socket.h; Python does not name it.
SO_MAX_PACING_RATE = 47


@pytest.fixture
def lane() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A TCP connection on loopback, both ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as ours:
        theirs, _ = listener.accept()
        with theirs:
            yield ours, theirs


def test_counters_are_those_of_the_connection(lane: tuple[socket.socket, socket.socket]) -> None:
    """Bytes sent are bytes acknowledged are bytes received, and nothing waits. (The kernel counts the SYN as a byte.)"""
    ours, theirs = lane
    for _ in range(10):
        send_all(ours, bytes(100_000))
        receive_into(theirs, memoryview(bytearray(100_000)))
    wait_until(lambda: (info := tcp_info(ours)) is not None and info.bytes_acked >= 1_000_000)
    sample, info, peer = lane_sample(ours), tcp_info(ours), tcp_info(theirs)
    assert sample is not None and info is not None and peer is not None
    assert sample.bytes_sent - sample.bytes_retrans == 1_000_000
    assert sample.bytes_acked - 1_000_000 in (0, 1)
    assert peer.bytes_received == 1_000_000
    assert sample.unsent_bytes == 0
    assert 0 < sample.min_rtt_s <= sample.rtt_s < 1
    assert sample.delivery_rate_bytes_per_s > 0
    assert info.snd_cwnd * info.snd_mss >= 1000
    assert bytes_moved(ours) == sample.bytes_acked
    assert bytes_moved(theirs) >= 1_000_000


def test_bytes_that_cannot_leave_are_unsent(lane: tuple[socket.socket, socket.socket]) -> None:
    """A paced lane that gets more than its pace shows the rest as unsent, and busy time grows."""
    ours, _theirs = lane
    ours.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, 1_000_000)
    ours.setblocking(False)
    ours.send(bytes(1 << 20))
    sample = wait_until(lambda: s if (s := lane_sample(ours)) is not None and s.busy_s > 0 else None)
    assert 0 < sample.unsent_bytes < 1 << 20


def test_what_is_not_tcp_has_no_sample(lane: tuple[socket.socket, socket.socket]) -> None:
    """Unix socket pairs and closed sockets: None, and no bytes moved."""
    left, right = socket.socketpair()
    with left, right:
        assert lane_sample(left) is None
        assert bytes_moved(left) == 0
    lane[0].close()
    assert lane_sample(lane[0]) is None
    assert bytes_moved(lane[0]) == 0


class OldKernel(socket.socket):
    """A socket of a kernel that tells fewer fields."""

    known_bytes = 136

    def getsockopt(self, level: int, name: int, size: int = 0) -> bytes:  # type: ignore[override]
        """The first fields only."""
        return b"\1" * min(size, self.known_bytes)


def test_fields_that_an_older_kernel_lacks_are_zero() -> None:
    """And too few to tell what moved are no sample at all."""
    with OldKernel() as sock:
        sample = lane_sample(sock)
        assert sample is not None
        assert sample.bytes_acked == int.from_bytes(b"\1" * 8, "little")
        assert (sample.bytes_sent, sample.unsent_bytes, sample.min_rtt_s, sample.busy_s) == (0, 0, 0.0, 0.0)
        sock.known_bytes = 104
        assert lane_sample(sock) is None
