"""How much a client's connection may cost before there is a request, and how many connections there may be."""

from __future__ import annotations

import contextlib
import resource
import sys
from dataclasses import dataclass
from typing import Final

from prfaas.deployment.model import Gateway

#: Descriptors for probes, nodes, files and the event loop.
_OWN_DESCRIPTORS: Final = 256
#: Of one request that goes on: to its engines and its node.
_UPSTREAM_DESCRIPTORS: Final = 2
#: Each costs about 5 KB while it is idle.
MAX_CONNECTIONS: Final = 65_536


@dataclass(frozen=True, slots=True)
class FrontLimits:
    """Of each connection but the last two. A head is the request line and its headers. A body that comes more slowly
    than `body_bytes_per_s` on average is given up after `body_grace_s`; a client that takes nothing of what is written
    to it for `write_s`, too. `idle_s` is the time between two requests; before its first one a connection has
    `head_s`."""

    head_bytes: int
    head_s: float
    idle_s: float
    body_bytes_per_s: float
    body_grace_s: float
    write_s: float
    max_connections: int
    max_connections_of_address: int | None

    @property
    def look_every_s(self) -> float:
        """Deadlines are kept to a tenth of the shortest, and to a second at best."""
        return min(1.0, self.head_s / 10, self.body_grace_s / 10, self.write_s / 10)


def front_limits(gateway: Gateway, num_descriptors: int) -> FrontLimits:
    """Of a gateway whose process may have so many open descriptors."""
    front = gateway.front
    upstream = _OWN_DESCRIPTORS + _UPSTREAM_DESCRIPTORS * gateway.max_inflight_requests
    possible = max(num_descriptors // 2, num_descriptors - upstream)
    return FrontLimits(
        head_bytes=front.max_head,
        head_s=front.head_timeout,
        idle_s=front.idle_timeout,
        body_bytes_per_s=front.min_body_rate,
        body_grace_s=front.body_grace,
        write_s=front.write_timeout,
        max_connections=min(front.max_connections or MAX_CONNECTIONS, possible),
        max_connections_of_address=front.max_connections_of_address,
    )


def num_descriptors() -> int:
    """That this process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def raise_descriptor_limit() -> None:
    """To what the system lets this process have without asking. Many systems begin with 1,024, for programs that wait
    with select(2)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # macOS refuses what it says is allowed
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
