"""Where a request goes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas.core.cache.engine_cache import PrefixMatch
from prfaas.core.control.router import Candidate, RequestFacts, RouteKind, RoutePolicy, decide

POLICY = RoutePolicy(offload=True, threshold_tokens=100)


def instance(
    name: str, *, up: bool = True, ready: bool = True, busy: int = 0, prefix: int = 0, cut_off_from: str = ""
) -> Candidate:
    """A candidate of the cluster that its name begins with."""
    match = PrefixMatch(prefix, prefix, prefix)
    return Candidate(name, name.split("-", maxsplit=1)[0], up, ready, busy, match, cut_off_from.split())


PD, PRFAAS = instance("pd-0"), instance("west-0")


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
        (RequestFacts(500, None), RoutePolicy(offload=True, threshold_tokens=100, links={("east", "pd")}), [PD],
         [instance("west-0"), instance("east-0", busy=5)], ("remote", "above_threshold", "pd-0", "east-0")),
        (RequestFacts(500, None), RoutePolicy(offload=True, threshold_tokens=100, links={("west", "other")}), [PD],
         [PRFAAS], ("local", "prfaas_unhealthy", "pd-0", "")),
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
    route = decide(facts, policy, decoders, prefillers)
    assert (route.kind, route.reason, route.decode, route.prefill) == expected


candidates = st.lists(
    st.builds(
        Candidate,
        name=st.uuids().map(str),
        cluster=st.sampled_from(["pd", "west"]),
        engine_healthy=st.booleans(),
        node_ready=st.booleans(),
        num_inflight=st.integers(0, 9),
    ),
    max_size=5,
)


@given(
    facts=st.builds(RequestFacts, st.none() | st.integers(0, 300), st.none() | st.just("echo")),
    policy=st.builds(RoutePolicy, offload=st.booleans(), threshold_tokens=st.integers(0, 200)),
    decoders=candidates,
    prefillers=candidates,
)
def test_laws(facts: RequestFacts, policy: RoutePolicy, decoders: list[Candidate], prefillers: list[Candidate]) -> None:
    """A healthy decode engine is found iff there is one; remote means that all parts work and nothing forbids it."""
    route = decide(facts, policy, decoders, prefillers)
    by_name = {candidate.name: candidate for candidate in (*decoders, *prefillers)}
    assert (route.kind is RouteKind.NONE) == (not any(c.engine_healthy for c in decoders))
    if route.kind is not RouteKind.NONE:
        assert by_name[route.decode].engine_healthy
    assert (route.kind is RouteKind.REMOTE) == bool(route.prefill)
    if route.kind is RouteKind.REMOTE:
        assert policy.offload
        assert facts.obstacle is None
        assert facts.num_prompt_tokens is not None
        assert facts.num_prompt_tokens > max(1, policy.threshold_tokens)
        assert by_name[route.decode].node_ready
        assert by_name[route.prefill].engine_healthy
        assert by_name[route.prefill].node_ready
        assert route.decode not in by_name[route.prefill].cut_off_from
