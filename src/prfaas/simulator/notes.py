"""What whoever reads the figures of simulated runs should know, and did not ask: on standard error, and in `--json`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prfaas.core.planning.scenario import Scenario
from prfaas.deployment.units import parse_seconds
from prfaas.simulator.loads import Load
from prfaas.simulator.results import Results


def notes_of(
    scenarios: Sequence[Scenario], load: Load, happenings: Sequence[str], num_judged: int, results: Sequence[Results]
) -> list[str]:
    """One sentence each, each once."""
    return list(
        dict.fromkeys(
            [
                *(caution for scenario in scenarios for caution in scenario.cautions),
                *_of_happenings(happenings, results),
                *_of_days(load, results),
                *_of_hindsight(num_judged, results),
            ]
        )
    )


def _of_happenings(happenings: Sequence[str], results: Sequence[Results]) -> Iterator[str]:
    for text in happenings:
        at_s = parse_seconds(text.split(maxsplit=1)[0])
        over = {run.policy: run.simulated_s for run in results if run.simulated_s < at_s}
        if not over:
            continue
        whose = "every run" if all(run.simulated_s < at_s for run in results) else f"a run of {', '.join(over)}"
        last = f"the last answer ended at {max(over.values()):.0f} s"
        yield f"--at {text!r}: never happened in {whose}: {last}; more --num-requests make runs longer"


def _of_days(load: Load, results: Sequence[Results]) -> Iterator[str]:
    longest_s = max(run.simulated_s for run in results)
    if load.day_s is not None and longest_s < load.day_s:
        yield (
            f"--arrivals daily: runs cover {longest_s:.0f} s of a day of {load.day_s:.0f} s, from the mean upwards, so"
            f" their rate is not the day's; about {load.day_s * load.rate_rps:,.0f} requests come in a day"
        )


def _of_hindsight(num_judged: int, results: Sequence[Results]) -> Iterator[str]:
    untried = dict.fromkeys(run.policy for run in results if num_judged and run.best_chosen_fraction is None)
    if untried:
        yield f"--hindsight: nothing was tried with {', '.join(untried)}: no request had two ways that were compared"
