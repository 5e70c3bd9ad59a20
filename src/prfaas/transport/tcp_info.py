"""TCP_INFO of a lane's socket, in one call. Field names are those of `struct tcp_info` in linux/tcp.h."""

from __future__ import annotations

import socket
import struct
from typing import Final, NamedTuple

from prfaas.core.link.estimate import LaneSample

#: Up to and with tcpi_bytes_retrans. Later kernels only append. Bit fields are those of little-endian machines.
_INFO: Final = struct.Struct("=7xB8xI48xI8xI36xQQ8xII8xQQQQ8xQQ")
#: An older kernel must at least tell what was acknowledged and received (since 4.1).
_MIN_BYTES: Final = 136
_NO_MIN_RTT: Final = 0xFFFFFFFF
_US: Final = 1e-6


class TcpInfo(NamedTuple):
    """As the kernel tells it: times in microseconds, the window in segments. What an older kernel lacks is 0."""

    flags: int
    snd_mss: int
    rtt: int
    snd_cwnd: int
    bytes_acked: int
    bytes_received: int
    notsent_bytes: int
    min_rtt: int
    delivery_rate: int
    busy_time: int
    rwnd_limited: int
    sndbuf_limited: int
    bytes_sent: int
    bytes_retrans: int


def tcp_info(sock: socket.socket) -> TcpInfo | None:
    """None for a socket that is closed or not TCP."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size)
    except OSError:
        return None
    return None if len(info) < _MIN_BYTES else TcpInfo._make(_INFO.unpack(info.ljust(_INFO.size, b"\0")))


def lane_sample(sock: socket.socket, congestion: str = "") -> LaneSample | None:
    """What the link's controller wants of one lane, which uses `congestion`; None as `tcp_info`."""
    info = tcp_info(sock)
    if info is None:
        return None
    return LaneSample(
        rtt_s=info.rtt * _US,
        min_rtt_s=0.0 if info.min_rtt == _NO_MIN_RTT else info.min_rtt * _US,
        bytes_sent=info.bytes_sent,
        bytes_retrans=info.bytes_retrans,
        bytes_acked=info.bytes_acked,
        delivery_rate_bytes_per_s=info.delivery_rate,
        delivery_is_app_limited=bool(info.flags & 1),
        unsent_bytes=info.notsent_bytes,
        busy_s=info.busy_time * _US,
        receiver_limited_s=info.rwnd_limited * _US,
        congestion=congestion,
    )
