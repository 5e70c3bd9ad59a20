"""Limits and clocks of the lanes, each with its reason."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from prfaas.core.link.lane_plan import MAX_CHUNK_BYTES, MAX_LANES, MIN_LANES, senders_at_once


@dataclass(frozen=True, slots=True)
class LaneLimits:
    """Shared by both ends of every lane of one node."""

    num_lanes: int = MIN_LANES
    #: A link whose windows and not whose bandwidth is its limit gets more lanes, up to this.
    max_lanes: int = MAX_LANES
    #: Lanes that send at the same time on a link so short that processors are its limit; half of the cores by default.
    short_link_senders: int = field(default_factory=lambda: senders_at_once(os.cpu_count() or 1))
    #: The most; how large they are follows from what the link carries (`core.link.lane_plan`).
    chunk_bytes: int = MAX_CHUNK_BYTES
    #: Unacknowledged bytes per peer. 256 MiB covers 100 Gbit/s at 20 ms; more only hides a stalled receiver.
    credit_bytes: int = 256 << 20
    #: Congestion control of outgoing lanes; empty: BBR and cubic share the lanes until it is clear which moves more
    #: (`core.link.congestion_trial`), where the kernel has both.
    congestion: str = ""
    #: Bytes that one lane hands to the kernel ahead of sending; 0 leaves it to the kernel. What waits in a socket can
    #: neither be overtaken by a shorter transfer nor move to a lane that is free.
    unsent_bytes: int = 512 << 10
    #: Hold all lanes of a link together to the rate that it carries (`core.link.pacing`).
    pacing: bool = True
    #: A ping leaves a lane that has been silent this long.
    heartbeat_s: float = 1.0
    #: No byte moved for this long: the lane is dead. Three heartbeats, so that one lost ping is not a death.
    lane_dead_after_s: float = 3.0
    #: No lane up for this long: the peer is lost and its transfers are aborted, so that requests can fall back.
    peer_lost_after_s: float = 3.0
    #: A connection that has not shown a valid Hello by then is closed: strangers hold no thread for long.
    handshake_s: float = 5.0
    #: First and longest pause between attempts to connect.
    redial_first_s: float = 0.05
    redial_max_s: float = 1.0
    #: Connections accepted at once; each costs a thread. 64 peers with 8 lanes each.
    max_inbound: int = 512
