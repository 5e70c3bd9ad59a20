"""What `--at` says: `300s link prfaas-west pd-east 10Gbps`, `300s die prfaas-west-0`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from prfaas.core.errors import PrfaasError
from prfaas.core.topology import Topology
from prfaas.deployment.units import parse_bandwidth, parse_seconds
from prfaas.sim.conditions import (
    Condition,
    EnginesDie,
    EnginesFail,
    EnginesMend,
    EnginesReturn,
    EnginesSlow,
    LinkBecomes,
    LinkDrifts,
    LinkVaries,
)

_OF_ENGINES: Final[dict[str, Callable[[tuple[str, ...]], Condition]]] = {
    "die": EnginesDie,
    "return": EnginesReturn,
    "fail": EnginesFail,
    "mend": EnginesMend,
}
#: For whoever has written something else.
FORMS: Final = (
    "TIME link FROM TO BANDWIDTH, TIME drift FROM TO BANDWIDTH DURATION, TIME vary FROM TO PERCENT%, TIME cut FROM TO,"
    " or TIME die|return|fail|mend|slow FACTOR with names of instances or"
    " of a cluster"
)


#: After a verb of links.
_NUM_WORDS: Final = {"link": 3, "drift": 4, "vary": 3, "cut": 2}


class BadHappening(PrfaasError):
    """`--at` cannot be read, or names what is not there."""


def happenings(texts: Sequence[str], topology: Topology) -> tuple[tuple[float, Condition], ...]:
    """In the order of their times."""
    return tuple(sorted((_happening(text, topology) for text in texts), key=lambda pair: pair[0]))


def _happening(text: str, topology: Topology) -> tuple[float, Condition]:
    words = text.split()
    if len(words) < 3:
        raise BadHappening(f"--at {text!r}: write {FORMS}")
    try:
        at_s = parse_seconds(words[0])
    except ValueError as error:
        raise BadHappening(f"--at {text!r}: {error}") from None
    verb, rest = words[1], words[2:]
    if verb in _NUM_WORDS:
        return at_s, _link(text, verb, rest, topology)
    if verb == "slow":
        return at_s, EnginesSlow(_instances(text, rest[1:], topology), _factor(text, rest[0]))
    kind = _OF_ENGINES.get(verb)
    if kind is None:
        raise BadHappening(f"--at {text!r}: nothing is known of `{verb}`; write {FORMS}")
    return at_s, kind(_instances(text, rest, topology))


def _link(text: str, verb: str, rest: list[str], topology: Topology) -> Condition:
    if len(rest) != _NUM_WORDS[verb]:
        raise BadHappening(f"--at {text!r}: write {FORMS}")
    source, target = rest[:2]
    link = topology.link_between(source, target)
    if link is None or link.bytes_per_s is None:
        known = ", ".join(f"{link.source} {link.target}" for link in topology.links if link.bytes_per_s is not None)
        raise BadHappening(f"--at {text!r}: no link with a bandwidth leads from {source} to {target}; there is {known}")
    if verb == "cut":
        return LinkBecomes(source, target, 0.0)
    if verb == "vary":
        return LinkVaries(source, target, _percent(text, rest[2]))
    try:
        bytes_per_s = parse_bandwidth(rest[2])
        if verb == "drift":
            return LinkDrifts(source, target, bytes_per_s, parse_seconds(rest[3]))
        return LinkBecomes(source, target, bytes_per_s)
    except ValueError as error:
        raise BadHappening(f"--at {text!r}: {error}") from None


def _instances(text: str, names: Sequence[str], topology: Topology) -> tuple[str, ...]:
    found: list[str] = []
    for name in names:
        members = [i.name for i in topology.instances if name in (i.name, i.cluster)]
        if not members:
            known = ", ".join(cluster.name for cluster in topology.clusters)
            raise BadHappening(
                f"--at {text!r}: there is no instance or cluster {name}; clusters are {known}, and their instances have"
                " a number at the end"
            )
        found += members
    if not found:
        raise BadHappening(f"--at {text!r}: which instances? write {FORMS}")
    return tuple(found)


def _percent(text: str, word: str) -> float:
    try:
        percent = float(word.removesuffix("%"))
    except ValueError:
        percent = -1.0
    if not 0.0 <= percent <= 200.0:
        raise BadHappening(f"--at {text!r}: {word} is no percentage from 0% to 200%, such as 30%")
    return percent / 100


def _factor(text: str, word: str) -> float:
    try:
        factor = float(word)
    except ValueError:
        factor = 0.0
    if not 0.01 <= factor <= 1_000:
        raise BadHappening(f"--at {text!r}: {word} is no factor from 0.01 to 1000, such as 5")
    return factor
