"""Where prompts repeat: the short form of `python -m benchmarks.scheduler.caches`."""

from __future__ import annotations

from functools import cache

from benchmarks.scheduler import caches
from prfaas.simulator.results import Results


@cache
def held(choice: str) -> Results:
    """Conversations over a link that is full."""
    return caches.simulated(("conversations over a link of 4 Gbps", 1, choice, ""), num_requests=900)


def test_over_a_full_link_the_rule_beats_who_looks_at_queues_or_prefixes_alone() -> None:
    """By more than a fifth of the mean time to the first token, and with the most answers a second."""
    ours = held("prfaas")
    assert ours.ttft_s_mean is not None
    for choice in ("least_load", "prefix_affinity"):
        other = held(choice)
        assert other.ttft_s_mean is not None
        assert ours.ttft_s_mean < 0.8 * other.ttft_s_mean
        assert ours.system_rps >= other.system_rps


def test_prefixes_that_move_help_over_a_full_link() -> None:
    """They are moved where nothing waits for it: more of the prompts is cached, and first tokens come sooner."""
    ours, moving = held("prfaas"), held("prfaas, prefixes move")
    assert ours.ttft_s_mean is not None
    assert moving.ttft_s_mean is not None
    assert moving.ttft_s_mean < ours.ttft_s_mean
    assert moving.cached_fraction > ours.cached_fraction
