"""How others choose, given ways whose figures are known."""

from __future__ import annotations

from collections import Counter

import pytest

from prfaas.core.control.route import Option, Prompt, RouteKind
from prfaas.sim.policies import POLICIES

FAR, HOME, SELF = RouteKind.REMOTE, RouteKind.PD_PREFILL, RouteKind.LOCAL


def way(kind: RouteKind, *, wait: float = 0.0, prefill: float = 1.0, transfer: float = 0.0, held: int = 0,
        num: int = 10_000, rtt: float = 0.0) -> Option:  # fmt: skip
    cluster = "west" if kind is FAR else "pd"
    return Option(kind, cluster, "pd", "", num - held, num - held, wait, prefill, transfer, 0.0, rtt)


def chosen(policy: str, *ways: Option, num_tokens: int = 10_000, tenant: str = "", seed: int = 0) -> RouteKind:
    return POLICIES[policy](seed)(list(ways), Prompt(num_tokens, {}, tenant=tenant)).kind


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kinds", [(FAR, HOME), (SELF, FAR), (SELF, FAR, HOME), (SELF,), (FAR, FAR, HOME)])
def test_each_takes_one_of_the_ways_that_there_are(policy: str, kinds: tuple[RouteKind, ...]) -> None:
    """Whichever there are."""
    choose = POLICIES[policy](1)
    ways = [way(kind, wait=float(index)) for index, kind in enumerate(kinds)]
    assert all(choose(ways, Prompt(5_000, {})) in ways for _ in range(20))


def test_a_threshold_parts_long_from_short() -> None:
    """By the whole prompt, or by what is uncached of it."""
    assert chosen("uncached_16", way(FAR, wait=99.0), way(HOME)) is FAR
    assert chosen("uncached_16", way(FAR), way(HOME, held=9_990), num_tokens=10_000) is HOME
    assert chosen("raw_length_2048", way(FAR), way(HOME), num_tokens=2_048) is HOME
    assert chosen("raw_length_2048", way(FAR), way(HOME, held=9_990)) is FAR, "whatever is cached"
    assert chosen("uncached_2048", way(FAR), way(HOME, held=6_000)) is HOME, "less than 0.7 of it is uncached"
    assert chosen("uncached_2048", way(FAR), way(HOME, held=2_000)) is FAR


def test_load_and_place() -> None:
    """Each by its own measure."""
    assert chosen("least_load", way(FAR, wait=2.0), way(HOME, wait=1.0)) is HOME
    assert chosen("prefix_affinity", way(FAR), way(HOME, wait=5.0, held=10)) is HOME
    assert chosen("append_prefill", way(SELF, held=6_000, wait=9.0), way(FAR)) is SELF
    assert chosen("append_prefill", way(SELF, held=4_000), way(FAR), way(HOME, wait=1.0)) is FAR
    assert chosen("soonest", way(FAR, wait=1.0, transfer=2.0), way(HOME, wait=3.0)) is FAR
    assert chosen("gorgo", way(FAR, transfer=3.0), way(HOME, prefill=2.0)) is FAR
    assert chosen("gorgo", way(FAR, transfer=4.0), way(HOME, prefill=2.0)) is HOME
    assert chosen("gorgo", way(FAR, transfer=3.0, rtt=1.0), way(HOME, prefill=2.0)) is HOME
    assert chosen("soonest", way(FAR, rtt=1.5), way(HOME, prefill=2.0)) is HOME


def test_a_session_stays_where_it_was() -> None:
    """And sessions are spread."""
    ways = (way(FAR), way(HOME))
    kinds = Counter(chosen("session_affinity", *ways, tenant=f"t{index}") for index in range(200))
    assert all(chosen("session_affinity", *ways, tenant="t7", seed=s) == chosen("session_affinity", *ways, tenant="t7")
               for s in range(5))  # fmt: skip
    assert min(kinds.values()) > 60


def test_chance_is_the_seeds() -> None:
    """The same seed draws the same."""
    ways = [way(FAR), way(HOME)]
    for policy in ("random", "two_choices", "round_robin"):
        first, again, other = (
            [POLICIES[policy](seed)(ways, Prompt(1, {})).kind for _ in range(1)]
            + [choose(ways, Prompt(1, {})).kind for choose in [POLICIES[policy](seed)] for _ in range(30)]
            for seed in (3, 3, 4)
        )
        assert first == again
        assert set(first) == {FAR, HOME} or policy == "two_choices", other
