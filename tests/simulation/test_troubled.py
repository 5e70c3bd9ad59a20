"""A thousand seeds of trouble: every request ends once, nothing is left, and the scheduler's laws hold after each event."""

from __future__ import annotations

from collections import Counter

import pytest

from prfaas.core.control import scheduler
from prfaas.core.control.dispatch import Dispatch
from prfaas.testing.troubled import Violation, troubled
from tests.simulation.test_control_mutants import DISPATCH_MUTANTS, BindsTheUnreachable, GivesNoTurn, ReleasesNobody

NUM_SEEDS = 1_000


@pytest.mark.parametrize("hundred", range(NUM_SEEDS // 100))
def test_no_seed_breaks_a_law(hundred: int) -> None:
    """Engines that die and come back, links that change and break, at random times."""
    outcomes: Counter[str] = Counter()
    for seed in range(100 * hundred, 100 * hundred + 100):
        for life in troubled(seed).ended:
            outcomes[f"{life.outcome} {life.route} {life.fallback}".strip()] += 1
    print(f"seeds {100 * hundred} to {100 * hundred + 99}: {dict(outcomes)}")
    assert outcomes["ok remote"] > 300
    assert any(name.startswith("ok local ") for name in outcomes), "nobody fell back"
    assert any(name.startswith("unavailable") for name in outcomes), "nobody was refused"


#: Here no lane is down without its whole link, and one who gives no turn stops the clock. The world of the control core
#: catches both.
CAUGHT = [mutant for mutant in DISPATCH_MUTANTS if mutant not in (BindsTheUnreachable, GivesNoTurn, ReleasesNobody)]


@pytest.mark.parametrize("mutant", CAUGHT, ids=lambda mutant: mutant.__name__)
def test_a_mutant_breaks_one(mutant: type[Dispatch], monkeypatch: pytest.MonkeyPatch) -> None:
    """And the failure says its seed, what was drawn, and is the same again."""
    monkeypatch.setattr(scheduler, "Dispatch", mutant)
    for seed in range(100):
        try:
            troubled(seed)
        except Violation as violation:
            assert f"seed {seed}: " in str(violation)
            with pytest.raises(Violation) as again:
                troubled(seed)
            assert str(again.value).splitlines()[0] == str(violation).splitlines()[0]
            return
    pytest.fail(f"{mutant.__name__} lives through all seeds")


def test_a_seed_is_a_run() -> None:
    """To the last digit."""
    told = [[(life.number, life.began_s, life.ended_s, life.route) for life in troubled(s).ended] for s in (5, 5, 6)]
    assert told[0] == told[1] != told[2]
