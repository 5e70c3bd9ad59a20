"""What can be done to a deployment, in words and as values. Pure.

Laws of this file:
- `text` of a fault is read back as the same fault.
- No two faults of a plan do the same to one target at one time: the first one's end would undo the second.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from prfaas.core.errors import PrfaasError
from prfaas.deployment.units import parse_bandwidth, parse_seconds

#: How long a killed process may be away, until its supervisor has started it again: nothing else is done to it then.
AWAY_S: Final = 15.0
#: Nobody watches a test for longer.
MOST_S: Final = 3600.0
CUTS: Final = ("silent", "reset")

GATEWAY: Final = "gateway"


class BadFault(PrfaasError):
    """It cannot be done; the text says what to write instead."""


class Kind(StrEnum):
    """See docs/chaos.md."""

    KILL = "kill"
    STOP = "stop"
    FILL = "fill"
    CUT = "cut"
    SLOW = "slow"
    FLIP = "flip"

    @property
    def is_of_link(self) -> bool:
        return self in (Kind.CUT, Kind.SLOW, Kind.FLIP)


_KINDS: Final = frozenset(kind.value for kind in Kind)

#: The setting of an emulated link that a kind changes.
SETTINGS: Final[Mapping[Kind, str]] = {Kind.CUT: "cut", Kind.SLOW: "bandwidth", Kind.FLIP: "flips_per_mb"}


@dataclass(frozen=True, slots=True)
class Fault:
    """`target`: a process of `prfaas up`, or `FROM TO` of a link. `at_s` since the first request was due, `lasts_s`
    until it is undone; a killed process is away until it is started again. `value`: how the link is cut, its bandwidth,
    or flipped bits in 10⁶ bytes."""

    kind: Kind
    target: str
    at_s: float
    lasts_s: float = 0.0
    value: str = ""

    @property
    def ends_s(self) -> float:
        """As planned; of a killed process not known."""
        return self.at_s + self.lasts_s

    @property
    def text(self) -> str:
        """As people write it."""
        lasts = "" if self.kind is Kind.KILL else f"{self.lasts_s:g}s"
        return " ".join(filter(None, (f"{self.at_s:g}s", self.kind, self.target, self.value, lasts)))

    def clashes(self, other: Fault) -> bool:
        """Both do the same to one target at one time."""
        if self.target != other.target or (self.kind.is_of_link and self.kind != other.kind):
            return False
        return self.at_s <= other._until_s and other.at_s <= self._until_s

    @property
    def _until_s(self) -> float:
        return self.at_s + (AWAY_S if self.kind is Kind.KILL else self.lasts_s)


@dataclass(frozen=True, slots=True)
class Menu:
    """What there is to harm. `engines`: processes with the instances that they serve; `clusters`: with the names of
    their instances; `decoders`: instances that decode; `links`: emulated ones over which lanes are made."""

    engines: Mapping[str, tuple[str, ...]]
    nodes: tuple[str, ...]
    has_gateway: bool
    clusters: Mapping[str, tuple[str, ...]]
    decoders: tuple[str, ...]
    links: tuple[tuple[str, str], ...]

    @property
    def processes(self) -> tuple[str, ...]:
        return (*self.engines, *self.nodes, *((GATEWAY,) if self.has_gateway else ()))

    def named(self, word: str) -> tuple[str, ...]:
        """Processes that `word` means: one by its name, or the engines of a cluster or an instance. Raises BadFault."""
        if word in self.processes:
            return (word,)
        wanted = set(self.clusters.get(word, (word,)))
        found = tuple(name for name, instances in self.engines.items() if wanted & set(instances))
        if not found:
            raise BadFault(f"there is no process {word!r}; there are {', '.join(self.processes)}")
        return found

    def lines(self) -> list[str]:
        """Everything on it, as it can be written."""
        found = [f"kill {name}" for name in self.processes]
        found += [f"{kind} {name} 3s" for kind in ("stop", "fill") for name in self.processes]
        for source, target in self.links:
            link = f"{source} {target}"
            found += [f"cut {link} silent 3s", f"cut {link} reset 3s", f"slow {link} 10Mbps 3s", f"flip {link} 1 3s"]
        return found


def read_faults(texts: Sequence[str], menu: Menu, default_at_s: float) -> tuple[Fault, ...]:
    """In the order of their times. Those without a time come at `default_at_s`. Raises BadFault."""
    faults = [fault for text in texts for fault in _read(text, menu, default_at_s)]
    faults.sort(key=lambda fault: fault.at_s)
    for index, fault in enumerate(faults):
        for other in faults[index + 1 :]:
            if fault.clashes(other):
                raise BadFault(
                    f"{fault.text!r} and {other.text!r} would do the same to {fault.target} at one time; leave"
                    f" {AWAY_S:g} s after a kill, or take another target"
                )
    return tuple(faults)


def _read(text: str, menu: Menu, default_at_s: float) -> Iterator[Fault]:
    words = text.split()
    at_s = default_at_s
    if len(words) > 1 and words[0] not in _KINDS and words[1] in _KINDS:
        at_s = _seconds(text, words.pop(0))
    if not words or words[0] not in _KINDS:
        raise BadFault(f"{text!r} is no fault; write for example '5s kill gateway' ({', '.join(Kind)}; see --list)")
    kind, words = Kind(words[0]), words[1:]
    if kind.is_of_link:
        yield _of_link(text, kind, words, menu, at_s)
        return
    wanted = 1 if kind is Kind.KILL else 2
    if len(words) != wanted:
        lasts = "" if kind is Kind.KILL else " 3s"
        raise BadFault(f"{text!r}: write [TIME] {kind} PROCESS{lasts}")
    lasts_s = 0.0 if kind is Kind.KILL else _seconds(text, words[1])
    for name in menu.named(words[0]):
        yield Fault(kind, name, at_s, lasts_s)


def _of_link(text: str, kind: Kind, words: list[str], menu: Menu, at_s: float) -> Fault:
    if kind is Kind.CUT and len(words) == 3:
        words.insert(2, CUTS[0])
    if len(words) != 4:
        shape = {Kind.CUT: "[silent|reset]", Kind.SLOW: "10Mbps", Kind.FLIP: "BITS_PER_MB"}[kind]
        raise BadFault(f"{text!r}: write [TIME] {kind} FROM TO {shape} 3s")
    source, target, value, lasts = words
    if (source, target) not in menu.links:
        known = ", ".join(" ".join(link) for link in menu.links) or "none"
        raise BadFault(
            f"{text!r}: no lanes are made over an emulated link from {source} to {target}; there are: {known}"
        )
    try:
        if kind is Kind.CUT and value not in CUTS:
            raise ValueError(f"{value!r} is no way to cut a link; write silent or reset")
        if kind is Kind.SLOW and parse_bandwidth(value) < 1:
            raise ValueError(f"{value!r} is no bandwidth; write for example 10Mbps")
        if kind is Kind.FLIP and not 0 < float(value) <= 1000:
            raise ValueError(f"{value!r} is no number of flipped bits per MB up to 1000")
    except ValueError as error:
        raise BadFault(f"{text!r}: {error}") from None
    return Fault(kind, f"{source} {target}", at_s, _seconds(text, lasts), value)


def _seconds(text: str, word: str) -> float:
    try:
        seconds = parse_seconds(word)
    except ValueError as error:
        raise BadFault(f"{text!r}: {error}") from None
    if not 0 <= seconds <= MOST_S:
        raise BadFault(f"{text!r}: {word} is not from 0 to {MOST_S:g} s")
    return seconds
