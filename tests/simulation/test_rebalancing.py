"""The slow timescale in simulation: what binds is found, instances are converted, what no conversion mends is said."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from prfaas.core.control import events as e
from prfaas.core.control.capacity import capacity, counts_now
from prfaas.core.control.conversion import Phase
from prfaas.core.control.rebalance import Rebalancer
from prfaas.core.control.view import view
from prfaas.core.planning.solution import Solution
from prfaas.core.planning.solve import solve
from prfaas.core.planning.workload import TruncatedLogNormal
from prfaas.core.topology import Duty
from prfaas.sim.arrivals import Arrival, lengths_of, poisson
from prfaas.sim.deployment import SimulatedDeployment, planned_deployment
from prfaas.sim.runs import Run, open_loop
from prfaas.sim.simulation import Simulation
from prfaas.testing.scheduling import TPOT_S, outcome_of, planned

#: The case study's lengths, and with a mean of less than half of it.
USUAL, SHORTER = 9.9, 9.0
COOL_DOWN_S = 120.0


def deployment(*, is_convertible: bool = True) -> SimulatedDeployment:
    convertible = ("pd-east",) if is_convertible else ()
    return planned_deployment(*planned(), tpot_slo_s=TPOT_S, convertible=convertible, cool_down_s=COOL_DOWN_S)


def coming(rate_rps: float, *, mu: float = USUAL, output_tokens: int = 1024) -> Iterator[Arrival]:
    """Without end."""
    lengths = lengths_of(TruncatedLogNormal(mu, 1.0, 128, 131_072))
    return poisson(random.Random(1), rate_rps, lengths, output_tokens)


def run(
    made: SimulatedDeployment, rate_rps: float, until_s: float, *, mu: float = USUAL, output_tokens: int = 1024
) -> Run:
    """All who come until then, to the end of the last answer."""
    arrivals = coming(rate_rps, mu=mu, output_tokens=output_tokens)
    return open_loop(made, itertools.takewhile(lambda arrival: arrival.at_s < until_s, arrivals))


def run_until(made: SimulatedDeployment, rate_rps: float, until_s: float, *, output_tokens: int = 1024) -> Run:
    """Then everything stands still, with requests inside."""
    found = Run(made)
    found.simulation.follow(coming(rate_rps, output_tokens=output_tokens))
    found.simulation.run(until_s)
    return found


def planned_for(mu: float, output_tokens: int) -> Solution:
    """What the planner would do for such requests."""
    scenario, _ = planned()
    (pd,) = scenario.pd
    assert pd.decode is not None
    decode_rps = pd.decode.batch / (pd.decode.step_s * output_tokens)
    workload = TruncatedLogNormal(mu, 1.0, 128, 131_072)
    changed = replace(scenario, pd=(replace(pd, decode_rps=decode_rps),), workload=workload)
    return solve(replace(changed, mean_output_tokens=float(output_tokens)))


def duties(found: Run) -> tuple[int, int]:
    """Instances of the PD cluster that prefill, and that decode."""
    fleet = found.simulation.scheduler.fleet
    return len(fleet.working_prefillers("pd-east")), len(fleet.working_decoders("pd-east"))


def rebalancer_of(found: Run) -> Rebalancer:
    rebalancer = found.simulation.scheduler.rebalancer
    assert rebalancer is not None
    return rebalancer


def test_what_is_reckoned_is_what_was_planned() -> None:
    """With the plan's lengths and speeds, Λ_max of the deployment as it stands is the plan's, and so is its split: any
    other serves less."""
    found = run(deployment(), 1.5, 1_000.0)
    scheduler, now_s = found.simulation.scheduler, found.simulation.kernel.now_s
    assert scheduler.dispatch is not None
    counts, estimates = counts_now(scheduler.fleet), scheduler.dispatch.estimates
    now = capacity(scheduler.fleet, estimates, counts, now_s)
    assert now.max_rps == pytest.approx(planned()[1].system_rps, rel=0.05), "a sample of 1,500 lengths"
    for more, less in itertools.permutations((Duty.PREFILL, Duty.DECODE)):
        other = counts.plus("pd-east", less, -1).plus("pd-east", more)
        assert capacity(scheduler.fleet, estimates, other, now_s).max_rps < now.max_rps


def test_nothing_is_converted_while_the_plan_fits() -> None:
    """At nine tenths of what can be served, for 25 minutes."""
    found = run(deployment(), 0.9 * planned()[1].system_rps, 1_500.0)
    assert found.simulation.conversions == []
    assert duties(found) == (3, 5)


@pytest.mark.parametrize(
    ("mu", "output_tokens"),
    [(USUAL, 2_048), (SHORTER, 1_024), (USUAL, 300)],
    ids=["longer answers", "shorter prompts", "shorter answers"],
)
def test_the_stage_that_binds_gets_instances(mu: float, output_tokens: int) -> None:
    """When other requests come than were planned for, until the split is the one that would be planned for these; one
    at a time, the cool-down kept; and answers begin earlier than with the split that was planned."""
    plan = planned_for(mu, output_tokens)
    rate_rps = 0.92 * plan.system_rps
    stands = outcome_of(run(deployment(is_convertible=False), rate_rps, 1_500.0, mu=mu, output_tokens=output_tokens))
    found = run(deployment(), rate_rps, 1_500.0, mu=mu, output_tokens=output_tokens)
    outcome = outcome_of(found)
    conversions = found.simulation.conversions
    num_prefill = plan.num_pd_prefill["pd-east"]
    assert duties(found) == (num_prefill, 8 - num_prefill)
    assert {conversion.phase for conversion in conversions} == {Phase.DONE}
    for before, after in itertools.pairwise(conversions):
        assert before.ended_s is not None
        assert after.began_s - before.ended_s >= COOL_DOWN_S
    assert outcome.num_failed == 0
    assert outcome.ttft_s_mean < 0.9 * stands.ttft_s_mean
    assert outcome.e2e_s_mean < stands.e2e_s_mean


def test_what_no_conversion_mends_is_suggested() -> None:
    """One more instance of what binds, with what it would bring; and what it would bring, it brings."""
    found = run_until(deployment(), 3.3, 600.0)
    suggestions = rebalancer_of(found).suggestions
    assert found.simulation.conversions == []
    best = suggestions[0]
    assert best.from_duty is None
    assert str(best) == f"one more {best.cluster} instance with duty {best.duty}: +{best.gain_rps:.2f} requests/s"
    scheduler, now_s = found.simulation.scheduler, found.simulation.kernel.now_s
    assert scheduler.dispatch is not None
    estimates, counts = scheduler.dispatch.estimates, counts_now(scheduler.fleet)
    without, with_it = (
        capacity(scheduler.fleet, estimates, some, now_s).max_rps
        for some in (counts, counts.plus(best.cluster, best.duty))
    )
    assert with_it - without == pytest.approx(best.gain_rps, rel=0.1)
    shown = view(scheduler, now_s)
    assert shown.suggestions[0].text == str(best)
    assert {stage.cluster for stage in shown.stages} == {"prfaas-west", "pd-east"}


def test_suggestions_end_with_the_load() -> None:
    """Whoever scales by them must see that nothing binds any more; and loads go down to nothing."""
    found = run(deployment(), 3.3, 400.0)
    rebalancer = rebalancer_of(found)
    assert rebalancer.suggestions == ()
    assert max(stage.load or 0.0 for stage in rebalancer.loads.all()) < 0.01
    assert found.simulation.scheduler.next_due_s is None


def test_a_cluster_that_must_not_be_converted_gets_a_suggestion() -> None:
    """With what the conversion would bring."""
    found = run_until(deployment(is_convertible=False), 2.2, 400.0, output_tokens=2_048)
    first = rebalancer_of(found).suggestions[0]
    assert (first.cluster, first.duty, first.from_duty) == ("pd-east", Duty.DECODE, Duty.PREFILL)
    assert "one pd-east instance with duty decode instead of prefill" in str(first)
    assert duties(found) == (3, 5)


def test_a_driver_may_refuse() -> None:
    """Then duties stay, and it is asked again after longer and longer times."""

    class Refuses(Simulation):
        def _switched(self, action: object) -> None:
            self._handle(e.ConversionRefused(action.instance, "we never do that"))  # type: ignore[attr-defined]

    found = Run(deployment())
    found.simulation = Refuses(deployment(), found._end)
    arrivals = coming(2.0, output_tokens=2_048)
    found.simulation.follow(itertools.takewhile(lambda arrival: arrival.at_s < 1_500.0, arrivals))
    while found.simulation.kernel.step():
        pass
    conversions = found.simulation.conversions
    assert {(c.phase, c.detail) for c in conversions} == {(Phase.REFUSED, "we never do that")}
    gaps_s = [after.began_s - (before.ended_s or 0.0) for before, after in itertools.pairwise(conversions)]
    assert gaps_s
    assert all(gap_s >= 2**number * 2 * COOL_DOWN_S for number, gap_s in enumerate(gaps_s))
    assert duties(found) == (3, 5)
    assert all(life.outcome == "ok" for life in found.ended)


def test_it_does_not_go_back_and_forth() -> None:
    """A load that swings between two mixtures faster than conversions pay: at most one conversion in each cool-down,
    and the last third of the time is no busier than the first."""
    rng = random.Random(3)
    longer, shorter = (lengths_of(TruncatedLogNormal(mu, 1.0, 128, 131_072)) for mu in (10.2, 9.2))

    def arrivals() -> Iterator[Arrival]:
        at_s = 0.0
        while at_s < 3_000.0:
            at_s += rng.expovariate(2.7)
            draw = longer if at_s % 240.0 < 120.0 else shorter
            yield replace(next(poisson(rng, 1.0, draw, 1_024)), at_s=at_s)

    found = open_loop(deployment(), arrivals())
    conversions = found.simulation.conversions
    first, last = (sum(1 for c in conversions if part(c.began_s)) for part in (_early, _late))
    assert last <= first + 1, conversions
    assert len(conversions) <= 4, conversions


def _early(at_s: float) -> bool:
    return at_s < 1_000.0


def _late(at_s: float) -> bool:
    return at_s >= 2_000.0


def test_a_split_far_off_becomes_the_plans() -> None:
    """From seven that prefill, at nearly all that the plan can serve: through four and four, which serve 2 to 4% less, and
    no further. One that decodes has long queues before it when the first is converted."""
    made = deployment()
    first = {member.name for member in made.topology.instances_of("pd-east")[:7]}
    instances = tuple(
        replace(member, duty=Duty.PREFILL if member.name in first else Duty.DECODE)
        if member.cluster == "pd-east"
        else member
        for member in made.topology.instances
    )
    found = run_until(
        replace(made, topology=replace(made.topology, instances=instances)), 0.95 * planned()[1].system_rps, 1_500.0
    )
    assert duties(found) == (3, 5)
    assert [conversion.phase for conversion in found.simulation.conversions] == [Phase.DONE] * 4
