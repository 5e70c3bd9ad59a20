"""Faults by a seed. Pure: one seed and one menu are the same faults on every machine."""

from __future__ import annotations

import random
from typing import Final

from prfaas.chaos.faults import CUTS, GATEWAY, Fault, Kind, Menu

MAX_FAULTS: Final = 3
#: The shortest that does something: less than a heartbeat of a lane.
MIN_LASTS_S: Final = 0.3
#: Shares of what the link carries, and flipped bits in 10⁶ bytes.
SLOW_MBPS: Final = (1, 5, 20)
FLIPS_PER_MB: Final = (0.5, 5, 50)
_TRIES: Final = 20


def drawn_faults(menu: Menu, seed: int, from_s: float, span_s: float) -> tuple[Fault, ...]:
    """One to three, which begin and end within `span_s` after `from_s`, but for killed processes, which are away until
    they are started again. In the order of their times. Times are whole hundredths of a second."""
    rng = random.Random(f"prfaas chaos {seed}")
    found: list[Fault] = []
    wanted = rng.randint(1, MAX_FAULTS)
    for _ in range(_TRIES):
        if len(found) == wanted:
            break
        fault = _draw(menu, rng, from_s, span_s)
        if not any(fault.clashes(other) for other in found):
            found.append(fault)
    return tuple(sorted(found, key=lambda fault: (fault.at_s, fault.text)))


def _draw(menu: Menu, rng: random.Random, from_s: float, span_s: float) -> Fault:
    kind = rng.choice([kind for kind in Kind if menu.links or not kind.is_of_link])
    lasts_s = 0.0 if kind is Kind.KILL else _hundredths(rng.uniform(MIN_LASTS_S, max(MIN_LASTS_S, span_s)))
    at_s = from_s + _hundredths(rng.uniform(0.0, max(0.0, span_s - lasts_s)))
    if kind.is_of_link:
        source, target = rng.choice(menu.links)
        value = {
            Kind.CUT: rng.choice(CUTS),
            Kind.SLOW: f"{rng.choice(SLOW_MBPS)}Mbps",
            Kind.FLIP: f"{rng.choice(FLIPS_PER_MB):g}",
        }[kind]
        return Fault(kind, f"{source} {target}", _hundredths(at_s), lasts_s, value)
    # Kinds of processes first: there are more nodes than gateways.
    groups = [group for group in (tuple(menu.engines), menu.nodes, (GATEWAY,) * menu.has_gateway) if group]
    return Fault(kind, rng.choice(rng.choice(groups)), _hundredths(at_s), lasts_s)


def _hundredths(seconds: float) -> float:
    return int(seconds * 100) / 100
