"""What one link is emulated as, and how people change it. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from prfaas.core.errors import PrfaasError
from prfaas.deployment.units import parse_bandwidth, parse_seconds

#: A router's queue at the bottleneck, unless somebody says otherwise.
QUEUE_S: Final = 0.05
#: The shortest time after which TCP sends again what nobody acknowledged (Linux' TCP_RTO_MIN).
RTO_MIN_S: Final = 0.2

CUTS: Final = ("reset", "silent")


class BadSetting(PrfaasError):
    """A link cannot be set so; the text has a line for each problem, with the setting's name."""


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """`bandwidth` in bytes per second, None: no limit. `rtt` there and back, `jitter` up to so much more or less one
    way, `queue` how long bytes wait at most before the bottleneck, in seconds. Stalls come `stalls_per_s` times a
    second of use and `stalls_per_mb` times in 10⁶ bytes; `flips_per_mb` bits in 10⁶ bytes arrive as the other one.
    `cut`: `reset` ends connections and refuses new ones, `silent` lets nothing pass."""

    bandwidth: float | None = None
    rtt: float = 0.0
    jitter: float = 0.0
    queue: float = QUEUE_S
    stalls_per_s: float = 0.0
    stalls_per_mb: float = 0.0
    flips_per_mb: float = 0.0
    cut: str | None = None

    @property
    def stall_s(self) -> float:
        """How long a connection pauses when something of it is lost."""
        return max(RTO_MIN_S, 2 * self.rtt)


def changed(before: LinkSettings, values: Mapping[str, Any]) -> LinkSettings:
    """`before` with what `values` has, as people write it: `10Gbps`, `20ms`, null. Raises BadSetting with every
    problem."""
    problems: list[str] = []
    found: dict[str, Any] = {}
    for name, value in values.items():
        parse = _PARSERS.get(name)
        if parse is None:
            problems.append(f"{name}: there is no such setting; there are {', '.join(_PARSERS)}")
            continue
        try:
            found[name] = parse(value)
        except ValueError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise BadSetting("\n".join(problems))
    return replace(before, **found)


def as_values(settings: LinkSettings) -> dict[str, Any]:
    """As `changed` reads them, in numbers: bits per second as networks are sold, seconds."""
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    if settings.bandwidth is not None:
        values["bandwidth"] = f"{settings.bandwidth * 8e-6:.12g}Mbps"
    return values


def _bandwidth(value: object) -> float | None:
    if value is None:
        return None
    bytes_per_s = parse_bandwidth(value)
    if bytes_per_s < 1:
        raise ValueError(f"{value!r} is no bandwidth; to cut the link set cut to reset or silent")
    return bytes_per_s


def _seconds(most_s: float) -> Callable[[object], float]:
    def parse(value: object) -> float:
        seconds = parse_seconds(value)
        if seconds > most_s:
            raise ValueError(f"{value!r} is more than {most_s:g} s")
        return seconds

    return parse


def _per(number_of: str) -> Callable[[object], float]:
    def parse(value: object) -> float:
        try:
            number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
        except ValueError:
            number = math.nan
        if not 0 <= number <= 1000:
            raise ValueError(f"{value!r} is no number of {number_of} from 0 to 1000; write for example 0.1")
        return number

    return parse


def _cut(value: object) -> str | None:
    if value is None or value in CUTS:
        return None if value is None else str(value)
    raise ValueError(f"{value!r} is no way to cut a link; write reset, silent, or null to heal it")


_PARSERS: Final[dict[str, Callable[[object], Any]]] = {
    "bandwidth": _bandwidth,
    "rtt": _seconds(10.0),
    "jitter": _seconds(5.0),
    "queue": _seconds(10.0),
    "stalls_per_s": _per("stalls a second"),
    "stalls_per_mb": _per("stalls per MB"),
    "flips_per_mb": _per("flipped bits per MB"),
    "cut": _cut,
}
