"""What is kept of a cluster is what its instances would say if they were asked one by one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas.core.cache.hashing import TokenChain
from prfaas.core.control.fleet import Fleet
from prfaas.core.control.standing import landing_rank
from prfaas.core.topology import Duty
from tests.unit.control.driving import topology_of

MEMBERS = (
    "west-0 prefill",
    "west-1 prefill",
    "west-2 prefill",
    "pd-0 decode",
    "pd-1 decode",
    "pd-2 both",
    "pd-p prefill",
)
NAMES = tuple(member.split()[0] for member in MEMBERS)
MAX_BATCH = 2

step = st.tuples(
    st.sampled_from(NAMES),
    st.sampled_from(("up", "down", "node", "no node", "cut", "joined", "drain", "stay", "add", "begin", "remove", "more",
                     "less", "load")),
    st.floats(0.0, 3.0),
)  # fmt: skip


def change(fleet: Fleet, name: str, what: str, seconds: float, now_s: float) -> None:
    """One thing happens to one instance."""
    instance = fleet.instances[name]
    first = next(iter(instance.work), None)
    match what:
        case "up" | "down":
            instance.engine_seen(what == "up", None)
        case "node" | "no node":
            instance.node_ready = what == "node"
        case "cut" | "joined":
            instance.cut_off_from = frozenset({"pd-0"} if what == "cut" else ())
        case "drain" | "stay":
            instance.converts_to = Duty.BOTH if what == "drain" else None
        case "add":
            instance.work.add(f"r{now_s}-{len(instance.work)}", seconds, now_s)
        case "begin" if first is not None:
            instance.work.begins(first, now_s)
        case "remove" if first is not None:
            instance.work.remove(first, now_s)
        case "more":
            instance.num_inflight += 1
        case "less" if instance.num_inflight:
            instance.num_inflight -= 1
        case "load":
            instance.engine_seen(True, round(seconds))


def check(fleet: Fleet, now_s: float) -> None:
    """Against instances that are asked one by one."""
    for cluster in ("west", "pd"):
        members = [i for i in fleet.instances.values() if i.cluster == cluster]
        standing = fleet.standing(cluster)
        prefillers = [i for i in members if not i.duty.decodes and i.may_prefill_for_others]
        decoders = [i for i in members if i.duty.decodes and i.may_decode]
        assert standing.prefillers == prefillers
        assert standing.decoders == decoders
        assert standing.some_are_cut_off == any(i.cut_off_from for i in prefillers)
        remaining_s = [i.work.remaining_s(now_s) for i in prefillers]
        backlog = standing.backlog(now_s)
        assert backlog.num == len(prefillers)
        assert backlog.soonest_s == pytest.approx(min(remaining_s, default=float("inf")), abs=1e-9)
        assert backlog.sum_s == pytest.approx(sum(remaining_s), abs=1e-9)
        assert standing.in_flight() == sum(i.num_inflight for i in decoders)
        ready = [i for i in decoders if i.node_ready]
        assert standing.landing(MAX_BATCH) is min(ready, key=lambda i: landing_rank(i, MAX_BATCH), default=None)


@given(st.lists(step, max_size=60))
def test_what_is_kept_is_what_instances_would_say(steps: list[tuple[str, str, float]]) -> None:
    """After every change, and while time passes without one."""
    fleet, now_s = Fleet(topology_of(*MEMBERS)), 100.0
    for name, what, seconds in steps:
        change(fleet, name, what, seconds, now_s)
        check(fleet, now_s)
        now_s += seconds / 2
        check(fleet, now_s)


def test_who_knows_all_of_a_prompt_gets_it_and_a_common_beginning_draws_nobody() -> None:
    """Knowledge weighs as much as a whole batch: all of it beats emptier ones, a tenth of it only a tenth emptier."""
    fleet = Fleet(topology_of("pd-0 decode", "pd-1 decode"))
    knows, other = (fleet.instances[name] for name in ("pd-0", "pd-1"))
    knows.num_inflight = 40

    def goes_to_who_knows(share: float, max_batch: int | None = 100) -> bool:
        return landing_rank(knows, max_batch, share) < landing_rank(other, max_batch)

    assert goes_to_who_knows(1.0)
    assert goes_to_who_knows(0.5)
    assert not goes_to_who_knows(0.1)
    assert goes_to_who_knows(1.0, None)
    assert not goes_to_who_knows(0.1, None)
    knows.num_inflight = 100
    assert not goes_to_who_knows(1.0), "its batch is full"


def chain(*names: str) -> TokenChain:
    return TokenChain(10 * len(names), 10, tuple(name.encode() for name in names))


def test_holders_are_those_with_the_first_block() -> None:
    """Until it is evicted, forgotten, or its engine begins another life; and not those that have left."""
    fleet = Fleet(topology_of(*MEMBERS))
    first, second = (fleet.instances[name] for name in ("west-0", "west-1"))
    for instance in (first, second):
        instance.engine_registered(10, "life", ("full_attention",))
        instance.cache.ran_locally(chain("a", "b"))
        instance.cache.ran_locally(chain("c"))
    assert list(fleet.holders.of(b"a")) == [first, second]
    assert list(fleet.holders.of(b"b")) == [], "nobody's first block"
    first.cache.lacked(chain("a", "b"), 0)
    assert list(fleet.holders.of(b"a")) == [second]
    assert list(fleet.holders.of(b"c")) == [first, second], "used since"
    second.engine_registered(10, "another life", ("full_attention",))
    assert list(fleet.holders.of(b"a")) == []
    assert list(fleet.holders.of(b"c")) == [first]
    fleet.apply(topology_of(*MEMBERS[1:]))
    fleet.forget_drained()
    assert list(fleet.holders.of(b"c")) == []
