"""How many lanes a link wants, and how large their chunks. Pure.

Where the numbers come from: one connection carries at most its window per round trip, and with the buffers that a
kernel comes with (4 MiB to send) that is 2.6 MB of payload, measured. Cubic under random loss has far smaller windows,
so that it wants more lanes; at 2 Gbit/s, 20 ms and 0.01% loss one lane got a tenth of the link and eight two thirds.
"""

from __future__ import annotations

import math
from typing import Final

WINDOW_BYTES: Final = 2.6e6
#: Fewer leave a thread or a lost connection too much weight; more cost more than they bring, a thread each.
MIN_LANES: Final = 4
MAX_LANES: Final = 32
#: Times as many with a congestion control that takes every loss for congestion.
LOSS_FACTOR: Final = 2

#: Slow start on a long link is over by then.
WIDEN_AFTER_S: Final = 1.5

#: A chunk keeps its lane busy for this long. Below it, Python's part of every chunk shows (a tenth of a millisecond at
#: either end); above it, the urgent waits. Lanes are not in step, so that it waits for a fraction of it.
CHUNK_S: Final = 0.08
MIN_CHUNK_BYTES: Final = 256 * 1024
#: The most, unless somebody says otherwise: what a lane of 1.7 Gbit/s carries in that time.
MAX_CHUNK_BYTES: Final = 16 << 20
#: While nothing is known of the link.
FIRST_CHUNK_BYTES: Final = 1 << 20


def num_lanes(bandwidth_bytes_per_s: float | None, rtt_s: float | None, *, congestion: str) -> int:
    """For one pair of nodes. `congestion` is the kernel's name of it; an unknown bandwidth or round trip gives the
    fewest."""
    factor = 1 if congestion == "bbr" else LOSS_FACTOR
    in_flight = (bandwidth_bytes_per_s or 0.0) * (rtt_s or 0.0)
    return min(MAX_LANES, factor * max(MIN_LANES, math.ceil(in_flight / WINDOW_BYTES)))


def wider(lanes: int, limit: int, unused_s: float) -> int:
    """How many lanes there should be. For `unused_s` seconds the present ones had enough to send, and neither the link
    nor the rate held them back. What holds them back is then their windows: losses keep these small, or the round trip
    is too long for the buffers. More lanes have more windows."""
    return min(limit, lanes + max(2, lanes // 2)) if unused_s >= WIDEN_AFTER_S and lanes < limit else lanes


def senders_at_once(num_cores: int) -> int:
    """On a link so short that processors are its limit. Half of the cores, since the other half of the work is the
    receiver's or the kernel's; measured on two cores, one sender moved 1.3 times what four did."""
    return max(1, num_cores // 2)


def chunk_bytes(capacity_bytes_per_s: float | None, lanes: int, limit_bytes: int, *, is_short: bool = False) -> int:
    """Of a link whose capacity has been measured, or not yet (None), when `lanes` send at once. At most `limit_bytes`,
    which both ends agreed on; a power of two, so that it does not change with every look. A link within a building
    (`is_short`) is taken for fast until it is known."""
    if capacity_bytes_per_s is None or lanes < 1:
        return limit_bytes if is_short else min(limit_bytes, FIRST_CHUNK_BYTES)
    wanted = max(MIN_CHUNK_BYTES, capacity_bytes_per_s / lanes * CHUNK_S)
    return min(limit_bytes, 1 << (int(wanted).bit_length() - 1))


def next_chunk_bytes(full_bytes: int, unsent_bytes: int, lanes: int) -> int:
    """Of a transfer of which so many bytes have not been sent: half of a lane's share of them, so that the lanes end at
    about the same time, each with a small chunk."""
    return min(full_bytes, max(MIN_CHUNK_BYTES, unsent_bytes // (2 * max(1, lanes))))
