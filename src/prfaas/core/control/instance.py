"""One instance as events have told of it: health, load, and what its cache holds."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from operator import attrgetter
from typing import Any, Final

from prfaas.core.cache.engine_cache import NO_MATCH, EngineCache, PrefixMatch
from prfaas.core.cache.hashing import TokenChain
from prfaas.core.control.holders import RootsOf
from prfaas.core.control.marks import Marks
from prfaas.core.control.prefill_work import PrefillWork
from prfaas.core.control.router import Candidate
from prfaas.core.topology import Duty
from prfaas.core.topology import Instance as Member

#: 32-byte names, about 150 bytes each with their table: 40 MB per engine at most; 140 million tokens at 544 a block.
MAX_RECORD_BLOCKS: Final = 262_144
#: A busy engine answers late; only several silences in a row mean that it is gone. Refusal means so at once.
MAX_SILENT_PROBES: Final = 3


def _noticed(name: str, leaves_mark: Callable[[Instance], object]) -> Any:
    """A value of an instance whose change leaves a mark."""
    slot = f"_{name}"

    def change(instance: Instance, value: object) -> None:
        setattr(instance, slot, value)
        leaves_mark(instance)

    return property(attrgetter(slot), change)


def _other_member(instance: Instance) -> None:
    instance.marks.has_new_members = True


def _other_load(instance: Instance) -> None:
    instance.marks.new_load.add(instance)


class Instance:
    """One engine and the KV node beside it. `num_inflight` requests of ours are there, and `num_landings` landings.
    Of those in flight its batch answers `num_answers`, or will as soon as it has a place. It has no lane up to the
    nodes of the instances `cut_off_from`. `converts_to`: the duty that it is to get when it is idle; till then it takes
    no new work. Nor does it while it `is_out`: see `health`."""

    engine_healthy: bool = _noticed("engine_healthy", _other_member)
    node_ready: bool = _noticed("node_ready", _other_member)
    is_draining: bool = _noticed("is_draining", _other_member)
    cut_off_from: frozenset[str] = _noticed("cut_off_from", _other_member)
    converts_to: Duty | None = _noticed("converts_to", _other_member)
    is_out: bool = _noticed("is_out", _other_member)
    block_tokens: int | None = _noticed("block_tokens", _other_member)
    num_inflight: int = _noticed("num_inflight", _other_load)

    def __init__(
        self,
        member: Member,
        *,
        num_inflight: int = 0,
        num_landings: int = 0,
        max_record_blocks: int = MAX_RECORD_BLOCKS,
    ) -> None:
        self.member = member
        self.marks = Marks()
        self.roots: RootsOf[Instance] = RootsOf(self)
        self.cache = EngineCache(max_record_blocks, self.roots)
        #: Place in the fleet.
        self.number = 0
        self.work = PrefillWork()
        self.engine_healthy = self.node_ready = self.is_draining = self.is_out = False
        self.block_tokens = None
        self.cut_off_from = frozenset()
        self.converts_to = None
        self.num_inflight, self.num_landings, self.num_answers = num_inflight, num_landings, 0
        self.num_silent_probes = 0
        self._reported: int | None = None
        self._inflight_at_report = 0

    def __repr__(self) -> str:
        return f"<instance {self.name}>"

    def leaves(self, marks: Marks) -> None:
        """Its changes leave these from now on."""
        self.marks = self.work.marks = marks

    @property
    def member(self) -> Member:
        """As the topology has it. Its name, cluster and duty are asked for with every prompt, and so are kept here."""
        return self._member

    @member.setter
    def member(self, member: Member) -> None:
        self._member = member
        self.name, self.cluster, self.duty = member.name, member.cluster, member.duty

    @property
    def takes_work(self) -> bool:
        return not self.is_draining and not self.is_out and self.converts_to is None

    @property
    def may_decode(self) -> bool:
        return self.engine_healthy and self.takes_work

    @property
    def may_prefill_for_others(self) -> bool:
        return self.engine_healthy and self.node_ready and self.takes_work

    @property
    def is_idle(self) -> bool:
        return self.num_inflight == 0 and self.num_landings == 0

    @property
    def num_requests(self) -> int | None:
        """What the engine said it had, and what we have sent since; None if it has not said."""
        if self._reported is None:
            return None
        return max(self.num_inflight, self._reported + self.num_inflight - self._inflight_at_report)

    def engine_seen(self, healthy: bool, num_requests: int | None) -> None:
        self.engine_healthy, self.num_silent_probes = healthy, 0
        self._reported, self._inflight_at_report = num_requests, self.num_inflight
        _other_load(self)

    def engine_silent(self, *, refused: bool) -> None:
        self.num_silent_probes += 1
        if refused or self.num_silent_probes >= MAX_SILENT_PROBES:
            self.engine_healthy = False
            self._reported = None
            _other_load(self)

    def engine_registered(
        self, block_tokens: int | None, boot_id: str | None, kinds: Collection[str] | None = None
    ) -> bool:
        """What the node says of its engine. Returns True if the engine is another than before."""
        restarted = self.cache.observe_boot(boot_id)
        if block_tokens and block_tokens != self.block_tokens:
            # Chains of another block size name other tokens; keeping them would only waste room.
            self.block_tokens, restarted = block_tokens, True
        if kinds is not None:
            self.cache.observe_kinds(kinds)
        return restarted

    def match(self, chains: Mapping[int, TokenChain]) -> PrefixMatch:
        """What it is known to hold of a prompt, given the prompt's chains by block size."""
        chain = chains.get(self.block_tokens or 0)
        return NO_MATCH if chain is None else self.cache.match(chain)

    def candidate(self, chains: Mapping[int, TokenChain] | None = None) -> Candidate:
        """As the router sees it."""
        prefix = self.match(chains) if chains else NO_MATCH
        return Candidate(
            self.name, self.cluster, self.engine_healthy and self.takes_work, self.node_ready, self.num_inflight,
            prefix, self.cut_off_from, self.duty, self.num_requests,
        )  # fmt: skip
