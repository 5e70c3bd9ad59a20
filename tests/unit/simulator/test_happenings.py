"""What `--at` can say, and what is said about what it cannot."""

from __future__ import annotations

import pytest

from prfaas.core.topology import Topology
from prfaas.sim.conditions import (
    Condition,
    EnginesDie,
    EnginesFail,
    EnginesMend,
    EnginesReturn,
    EnginesSlow,
    LinkBecomes,
    LinkDrifts,
    LinkVaries,
)
from prfaas.simulator.happenings import BadHappening, happenings
from prfaas.testing.scheduling import WEST, deployment


@pytest.fixture(scope="module")
def topology() -> Topology:
    return deployment().topology


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("300s link prfaas-west pd-east 2Gbps", LinkBecomes("prfaas-west", "pd-east", 2.5e8)),
        ("300s drift prfaas-west pd-east 2Gbps 2min", LinkDrifts("prfaas-west", "pd-east", 2.5e8, 120.0)),
        ("300s vary prfaas-west pd-east 30%", LinkVaries("prfaas-west", "pd-east", 0.3)),
        ("300 cut prfaas-west pd-east", LinkBecomes("prfaas-west", "pd-east", 0.0)),
        ("5min die prfaas-west-0 pd-east-7", EnginesDie(("prfaas-west-0", "pd-east-7"))),
        ("300s return prfaas-west", EnginesReturn(WEST)),
        ("300s fail prfaas-west-1", EnginesFail(("prfaas-west-1",))),
        ("300s slow 5 prfaas-west-1", EnginesSlow(("prfaas-west-1",), 5.0)),
        ("300s mend prfaas-west-1", EnginesMend(("prfaas-west-1",))),
    ],
)
def test_what_it_says_happens(text: str, expected: Condition, topology: Topology) -> None:
    """At its time; several are in the order of their times."""
    assert happenings([text], topology) == ((300.0, expected),)
    assert [at_s for at_s, _ in happenings(["400s die pd-east-0", text], topology)] == [300.0, 400.0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "write TIME link FROM TO BANDWIDTH"),
        ("soon die prfaas-west-0", "soon"),
        ("300s explode prfaas-west-0", "nothing is known of `explode`"),
        ("300s link prfaas-west 2Gbps", "write TIME link"),
        ("300s link pd-east prfaas-west 2Gbps", "no link with a bandwidth leads from pd-east to prfaas-west"),
        ("300s link prfaas-west pd-east fast", "fast"),
        ("300s die west-0", "there is no instance or cluster west-0; clusters are pd-east, prfaas-west"),
        ("300s slow much prfaas-west-0", "much is no factor"),
        ("300s slow 5", "which instances?"),
    ],
)
def test_what_cannot_be_is_said(text: str, said: str, topology: Topology) -> None:
    """With what was written, and what to write."""
    with pytest.raises(BadHappening) as error:
        happenings([text], topology)
    assert str(error.value).startswith(f"--at {text!r}: ")
    assert said in str(error.value)
