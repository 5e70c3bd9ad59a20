"""One instance as events have told of it: health, load, and what its cache holds."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from operator import attrgetter
from typing import Any, Final

from prfaas.core.cache.engine_cache import NO_MATCH, EngineCache, PrefixMatch
from prfaas.core.cache.hashing import TokenChain
from prfaas.core.control.holders import RootsOf
from prfaas.core.control.marks import NOWHERE, Marks
from prfaas.core.control.prefill_work import PrefillWork
from prfaas.core.control.router import Candidate
from prfaas.core.topology import Duty
from prfaas.core.topology import Instance as Member

#: 32-byte names, about 150 bytes each with their table: 40 MB per engine at most; 140 million tokens at 544 a block.
MAX_RECORD_BLOCKS: Final = 262_144
#: A busy engine answers late; only several silences in a row mean that it is gone. Refusal means so at once.
MAX_SILENT_PROBES: Final = 3


def _noticed(name: str, flag: str) -> Any:
    """A value of an instance whose change leaves a mark."""
    slot = f"_{name}"

    def change(instance: Instance, value: object) -> None:
        setattr(instance, slot, value)
        setattr(instance.marks, flag, True)

    return property(attrgetter(slot), change)


class Instance:
    """One engine and the KV node beside it. `num_inflight` requests of ours are there, and `num_landings` landings.
    Of those in flight its batch answers `num_answers`, or will as soon as it has a place. It has no lane up to the
    nodes of the instances `cut_off_from`. `converts_to`: the duty that it is to get when it is idle; till then it takes
    no new work. Nor does it while it `is_out`: see `health`."""

    engine_healthy: bool = _noticed("engine_healthy", "has_new_members")
    node_ready: bool = _noticed("node_ready", "has_new_members")
    is_draining: bool = _noticed("is_draining", "has_new_members")
    cut_off_from: frozenset[str] = _noticed("cut_off_from", "has_new_members")
    converts_to: Duty | None = _noticed("converts_to", "has_new_members")
    is_out: bool = _noticed("is_out", "has_new_members")
    block_tokens: int | None = _noticed("block_tokens", "has_new_members")
    num_inflight: int = _noticed("num_inflight", "has_new_load")

    def __init__(self, member: Member, *, num_inflight: int = 0, num_landings: int = 0) -> None:
        self.member = member
        self.marks = NOWHERE
        self.roots: RootsOf[Instance] = RootsOf(self)
        self.cache = EngineCache(MAX_RECORD_BLOCKS, self.roots)
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
    def name(self) -> str:
        return self.member.name

    @property
    def cluster(self) -> str:
        return self.member.cluster

    @property
    def duty(self) -> Duty:
        return self.member.duty

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
        self.marks.has_new_load = True

    def engine_silent(self, *, refused: bool) -> None:
        self.num_silent_probes += 1
        if refused or self.num_silent_probes >= MAX_SILENT_PROBES:
            self.engine_healthy = False
            self._reported = None
            self.marks.has_new_load = True

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
