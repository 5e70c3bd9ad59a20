"""Where a request goes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas.core.cache.engine_cache import PrefixMatch
from prfaas.core.control.route import RouteKind
from prfaas.core.control.router import Candidate, Reach, RequestFacts, RoutePolicy, decide, least_busy
from prfaas.core.topology import Duty

POLICY = RoutePolicy(offload=True, threshold_tokens=100)


def instance(
    name: str, *, up: bool = True, ready: bool = True, busy: int = 0, prefix: int = 0, cut_off_from: str = ""
) -> Candidate:
    """A candidate of the cluster that its name begins with."""
    match = PrefixMatch(prefix, prefix, prefix)
    return Candidate(name, name.split("-", maxsplit=1)[0], up, ready, busy, match, cut_off_from.split())


PD, PRFAAS = instance("pd-0"), instance("west-0")


def reached_from(prefillers: list[Candidate]) -> Reach:
    """All of them send to every PD cluster, and none is in one."""
    return lambda kind, decode: prefillers if kind is RouteKind.REMOTE else []


@pytest.mark.parametrize(
    ("facts", "policy", "decoders", "prefillers", "expected"),
    [
        (RequestFacts(101, None), POLICY, [PD], [PRFAAS], ("remote", "above_threshold", "pd-0", "west-0")),
        (RequestFacts(100, None), POLICY, [PD], [PRFAAS], ("local", "below_threshold", "pd-0", "")),
        (RequestFacts(150, None), POLICY, [instance("pd-0", prefix=50)], [PRFAAS],
         ("local", "below_threshold", "pd-0", "")),
        (RequestFacts(151, None), POLICY, [instance("pd-0", prefix=50)], [PRFAAS],
         ("remote", "above_threshold", "pd-0", "west-0")),
        (RequestFacts(500, "echo"), POLICY, [PD], [PRFAAS], ("local", "echo", "pd-0", "")),
        (RequestFacts(None, None), POLICY, [PD], [PRFAAS], ("local", "uncounted", "pd-0", "")),
        (RequestFacts(500, None), RoutePolicy(offload=False, threshold_tokens=0), [PD], [PRFAAS],
         ("local", "policy", "pd-0", "")),
        (RequestFacts(1, None), RoutePolicy(offload=True, threshold_tokens=0), [PD], [PRFAAS],
         ("local", "prompt_too_short", "pd-0", "")),
        (RequestFacts(9, None), RoutePolicy(offload=True, threshold_tokens=0), [instance("pd-0", prefix=8)], [PRFAAS],
         ("local", "prefix_cached", "pd-0", "")),
        (RequestFacts(500, None), POLICY, [PD], [], ("local", "prfaas_unhealthy", "pd-0", "")),
        (RequestFacts(500, None), POLICY, [PD], [instance("west-0", up=False)],
         ("local", "prfaas_unhealthy", "pd-0", "")),
        (RequestFacts(500, None), POLICY, [PD], [instance("west-0", ready=False)],
         ("local", "prfaas_unhealthy", "pd-0", "")),
        (RequestFacts(500, None), POLICY, [PD], [instance("west-0", cut_off_from="pd-0")],
         ("local", "prfaas_unhealthy", "pd-0", "")),
        (RequestFacts(500, None), POLICY, [PD], [instance("west-0", cut_off_from="pd-0"), instance("west-1", busy=9)],
         ("remote", "above_threshold", "pd-0", "west-1")),
        (RequestFacts(500, None), POLICY, [PD, instance("pd-1", busy=9)], [instance("west-0", cut_off_from="pd-0")],
         ("remote", "above_threshold", "pd-1", "west-0")),
        (RequestFacts(500, None), POLICY, [PD, instance("pd-1", busy=9, prefix=490)],
         [instance("west-0", cut_off_from="pd-0")], ("local", "prfaas_unhealthy", "pd-0", "")),
        (RequestFacts(500, None), POLICY, [PD], [instance("west-0", cut_off_from="pd-1")],
         ("remote", "above_threshold", "pd-0", "west-0")),
        (RequestFacts(500, None), POLICY, [instance("pd-0", ready=False)], [PRFAAS],
         ("local", "no_landing_node", "pd-0", "")),
        (RequestFacts(500, None), POLICY, [instance("pd-0", ready=False), instance("pd-1", busy=9)], [PRFAAS],
         ("remote", "above_threshold", "pd-1", "west-0")),
        (RequestFacts(500, None), POLICY, [instance("pd-0", up=False)], [PRFAAS],
         ("none", "no_healthy_engine", "", "")),
        (RequestFacts(50, None), POLICY, [instance("pd-0", busy=2), instance("pd-1", busy=1)], [PRFAAS],
         ("local", "below_threshold", "pd-1", "")),
        (RequestFacts(50, None), POLICY, [instance("pd-0"), instance("pd-1", prefix=20)], [PRFAAS],
         ("local", "below_threshold", "pd-1", "")),
    ],
)  # fmt: skip
def test_route(
    facts: RequestFacts,
    policy: RoutePolicy,
    decoders: list[Candidate],
    prefillers: list[Candidate],
    expected: tuple[str, str, str, str],
) -> None:
    """Kind, reason and instances."""
    route = decide(facts, policy, decoders, reached_from(prefillers))
    assert (route.kind, route.reason, route.decode, route.prefill) == expected


NAMES = [f"i{number}" for number in range(10)]


def drawn(names: list[str]) -> st.SearchStrategy[list[Candidate]]:
    """Up to five candidates with some of these names."""
    one = st.builds(
        Candidate,
        name=st.sampled_from(names),
        cluster=st.sampled_from(["pd", "west"]),
        engine_healthy=st.booleans(),
        node_ready=st.booleans(),
        num_inflight=st.integers(0, 9),
        prefix=st.integers(0, 300).map(lambda known: PrefixMatch(known, known, known)),
        cut_off_from=st.frozensets(st.sampled_from(NAMES[:5]), max_size=5),
    )
    return st.lists(one, max_size=5, unique_by=lambda candidate: candidate.name)


@given(
    facts=st.builds(RequestFacts, st.none() | st.integers(0, 300), st.none() | st.just("echo")),
    policy=st.builds(RoutePolicy, offload=st.booleans(), threshold_tokens=st.integers(0, 200)),
    decoders=drawn(NAMES[:5]),
    prefillers=drawn(NAMES[5:]),
)
def test_laws(facts: RequestFacts, policy: RoutePolicy, decoders: list[Candidate], prefillers: list[Candidate]) -> None:
    """A healthy decode engine is found iff there is one; remote means that all parts work and nothing forbids it."""
    route = decide(facts, policy, decoders, reached_from(prefillers))
    by_name = {candidate.name: candidate for candidate in (*decoders, *prefillers)}
    assert (route.kind is RouteKind.NONE) == (not any(c.engine_healthy for c in decoders))
    if route.kind is not RouteKind.NONE:
        assert by_name[route.decode].engine_healthy
    assert (route.kind is RouteKind.REMOTE) == bool(route.prefill)
    if route.kind is RouteKind.REMOTE:
        assert policy.offload
        assert facts.obstacle is None
        assert facts.num_prompt_tokens is not None
        assert route.num_uncached_tokens is not None
        assert route.num_uncached_tokens > max(1, policy.threshold_tokens)
        assert by_name[route.decode].node_ready
        assert by_name[route.prefill].engine_healthy
        assert by_name[route.prefill].node_ready
        assert route.decode not in by_name[route.prefill].cut_off_from


def decoder(name: str, *, busy: int = 0, prefix: int = 0, load: int | None = None, up: bool = True) -> Candidate:
    """One with the duty to decode only."""
    match = PrefixMatch(prefix, prefix, prefix)
    return Candidate(name, "pd", up, True, busy, match, (), Duty.DECODE, load)


def test_a_short_prompt_goes_to_a_prefill_instance_of_the_decode_instances_cluster() -> None:
    """The reason is the one for which it did not leave."""
    at_home = [instance("pd-p")]
    route = decide(RequestFacts(50, None), POLICY, [decoder("pd-0")], lambda kind, decode: at_home)
    assert (route.kind, route.reason, route.decode, route.prefill) == ("pd_prefill", "below_threshold", "pd-0", "pd-p")


def test_without_a_working_prefill_instance_the_decode_instance_computes_the_prompt() -> None:
    """Another reason says so."""
    route = decide(RequestFacts(50, None), POLICY, [decoder("pd-0")], lambda kind, decode: [])
    assert (route.kind, route.reason, route.decode) == ("local", "no_pd_prefill", "pd-0")


def test_a_prompt_that_is_cached_or_cannot_be_counted_stays_on_the_decode_instance() -> None:
    """There is nothing to prefill elsewhere, or nobody knows what."""
    at_home = [instance("pd-p")]
    cached = decide(RequestFacts(50, None), POLICY, [decoder("pd-0", prefix=49)], lambda kind, decode: at_home)
    assert (cached.kind, cached.reason) == ("local", "below_threshold")
    uncounted = decide(RequestFacts(None, "echo"), POLICY, [decoder("pd-0")], lambda kind, decode: at_home)
    assert (uncounted.kind, uncounted.reason) == ("local", "echo")


def test_an_unknown_load_is_not_a_zero_load() -> None:
    """An engine that does not say counts as loaded as the most loaded one that does."""
    chosen = least_busy([decoder("silent"), decoder("told", load=7), decoder("least", load=2)])
    assert chosen is not None
    assert chosen.name == "least"
    alone = least_busy([decoder("silent", busy=3), decoder("other", busy=1)])
    assert alone is not None
    assert alone.name == "other"


def test_a_decode_instance_that_nobody_reaches_is_listed_as_unreached() -> None:
    """It is the least busy one, and another is taken."""
    decoders = [decoder("pd-0"), decoder("pd-1", load=4)]
    route = decide(RequestFacts(500, None), POLICY, decoders, reached_from([instance("west-0", cut_off_from="pd-0")]))
    assert [(one.instance, one.ruled_out) for one in route.considered[:2]] == [("pd-0", "unreached"), ("pd-1", None)]


def test_a_route_carries_what_it_was_decided_between() -> None:
    """Each instance with its load, the uncached tokens there, and what ruled it out."""
    decoders = [decoder("pd-0", up=False), decoder("pd-1", load=4, prefix=100), decoder("pd-2", load=5)]
    route = decide(RequestFacts(500, None), POLICY, decoders, reached_from([instance("west-0", ready=False), PRFAAS]))
    told = [(one.instance, one.leg, one.load, one.uncached_tokens, one.ruled_out) for one in route.considered]
    assert told == [
        ("pd-0", "decode", 5, 500, "engine_down"),
        ("pd-1", "decode", 4, 400, None),
        ("pd-2", "decode", 5, 500, "busier"),
        ("west-0", "prefill", 0, None, "node_not_ready"),
        ("west-0", "prefill", 0, None, None),
    ]
