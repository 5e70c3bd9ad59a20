"""Three times what can be served: everybody is answered or told at once when to come again, and nothing is left.

Short form of `python -m benchmarks.case_study.overload`, which also measures how much is answered in time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from prfaas.bench.e2e.plan import Planned
from prfaas.bench.e2e.sent import OK, UNAVAILABLE
from prfaas.core.planning.solve import solve
from prfaas.scenario.build import build_scenario
from prfaas.testing.emulated_site import EmulatedSite, emulated_document
from prfaas.testing.node_pair import wait_until
from prfaas.testing.sending import Phase, planned_in
from tests.integration.emulated.loads import WORKLOAD, entries, sent_to, waiting

OVERLOADED_S = 6.0


@pytest.fixture(scope="module")
def site() -> Iterator[EmulatedSite]:
    """Answers that would begin later than in 10 s of the profiles, 2 s here, are refused."""
    policy = {"kind": "prfaas", "max_ttft": "10s"}
    document = emulated_document(num_decode=2, policy=policy, emulation={"time_scale": 0.2}, workload=WORKLOAD)
    with EmulatedSite(document) as site:
        yield site


def test_each_is_answered_or_refused_and_nothing_is_left(site: EmulatedSite) -> None:
    """Every refusal is a 429 that says when to come again. Afterwards the whole capacity is there."""
    planned_rps = solve(build_scenario(site.file)).system_rps
    sent = sent_to(site, planned_in(site.file, [Phase(3 * planned_rps, OVERLOADED_S)], seed=5), prompt_seed=1)
    outcomes = Counter(one.outcome for one in sent)
    print(f"{3 * planned_rps:.1f} requests/s of the plan's time: {dict(outcomes)}")
    assert set(outcomes) == {OK, UNAVAILABLE}, [one.line() for one in sent if one.outcome not in (OK, UNAVAILABLE)]
    refused = [one for one in sent if one.outcome == UNAVAILABLE]
    assert {(one.status, (one.retry_after_s or 0) >= 1) for one in refused} == {(429, True)}
    stories = [site.story_of(one.request_id) for one in refused[:5]]
    assert [(story["outcome"], story["decode_instance"]) for story in stories] == [("unavailable", None)] * len(stories)

    site.wait_nothing_held()
    wait_until(lambda: not entries(site), 60.0)
    assert waiting(site) == {}
    again = sent_to(site, [Planned(number, 0.3 * number, 500, 8) for number in range(1, 6)], prompt_seed=2)
    assert [one.outcome for one in again] == [OK] * 5, [one.line() for one in again]


def test_without_a_bound_all_wait(site: EmulatedSite) -> None:
    """Nothing is refused that the file does not ask to refuse: a burst is answered, however late."""
    del site.document["policy"]["max_ttft"]
    site.rewrite()
    wait_until(lambda: site.scheduler()["max_ttft_s"] is None, 60.0)
    sent = sent_to(site, [Planned(number, 0.0, 4_000, 4) for number in range(1, 41)], prompt_seed=3)
    assert Counter(one.outcome for one in sent) == {OK: 40}
    site.wait_nothing_held()
