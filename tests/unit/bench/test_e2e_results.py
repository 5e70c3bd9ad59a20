"""`prfaas bench e2e`: figures of requests that were made up."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import xml.etree.ElementTree as ET
from contextlib import redirect_stdout

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas.bench.e2e.plots import picture
from prfaas.bench.e2e.report import doubts, print_results
from prfaas.bench.e2e.results import Cost, E2eResults, Slo, counted, inside, results_of
from prfaas.bench.e2e.sent import CANCELLED, ERROR, OK, UNAVAILABLE, Sent
from prfaas.sim.engine import Gaps
from prfaas.simulator.results import Results

NO_SLO = Slo()


def answered(number: int, at_s: float, ttft_s: float = 0.5, tokens: int = 11, **fields: object) -> Sent:
    """Sent on time; a token every 0.1 s."""
    sent = Sent(number, at_s, 100, tokens, sent_s=at_s, outcome=OK, output_tokens=tokens, num_events=tokens)
    sent.first_token_s, sent.end_s, sent.counted_by = at_s + ttft_s, at_s + ttft_s + 0.1 * (tokens - 1), "usage"
    sent.over_s = sent.end_s
    for name, value in fields.items():
        setattr(sent, name, value)
    return sent


def lost(number: int, at_s: float, outcome: str = ERROR, **fields: object) -> Sent:
    sent = Sent(number, at_s, 100, 11, sent_s=at_s, over_s=at_s + 0.1, outcome=outcome)
    for name, value in fields.items():
        setattr(sent, name, value)
    return sent


def results(sent: list[Sent], slo: Slo = NO_SLO, num_warm_up: int | None = 0, **more: bool) -> E2eResults:
    gaps = Gaps()
    gaps.add(0.1, 10.0)
    return results_of(
        sent, gaps=gaps, slo=slo, num_warm_up=num_warm_up, cost=Cost(2.0, 10.0), seed=3, prompt_seed=4, **more
    )  # fmt: skip


def test_names_are_those_of_a_simulated_run() -> None:
    """All that a real server can be asked for."""
    simulated = {field.name for field in dataclasses.fields(Results)}
    measured = {field.name for field in dataclasses.fields(E2eResults)}
    assert simulated - measured == {
        "policy", "cached_fraction", "egress_bytes_per_s_mean", "egress_bytes_per_s_max",
        "routing_threshold_tokens_final", "num_pd_prefill_final", "num_pd_decode_final", "num_conversions",
        "regret_s_mean", "best_chosen_fraction", "simulated_s", "num_requests_enough", "planned_rps",
    }  # fmt: skip


def test_times_count_from_when_a_request_was_to_be_sent() -> None:
    """One that was sent 2 s late waited for 2 s more, and is told as late."""
    found = results([answered(1, 0.0), answered(2, 1.0, ttft_s=2.5, sent_s=3.0), answered(3, 2.0)])
    assert found.ttft_s_p99 == 2.5
    assert found.e2e_s_p99 == 3.5
    assert (found.num_sent_late, found.send_late_s_max) == (1, 2.0)
    assert found.tpot_s_mean == pytest.approx(0.1)
    assert any("1 requests were sent more than 10 ms late" in line for line in doubts(found))


def test_what_became_of_requests_is_counted() -> None:
    """Refusals apart from failures, and those that were given up apart from both."""
    sent = [answered(1, 0.0), lost(2, 1.0, UNAVAILABLE), lost(3, 2.0, failure="cut"), lost(4, 3.0, failure="cut"),
            lost(5, 4.0, failure="timeout"), lost(6, 5.0, CANCELLED)]  # fmt: skip
    found = results(sent, was_interrupted=True)
    assert (found.num_requests, found.num_completed, found.num_refused, found.num_failed) == (6, 1, 1, 3)
    assert (found.failures, found.num_unfinished) == ({"cut": 2, "timeout": 1}, 1)
    assert found.offered_rps == pytest.approx(6 / 5)


def test_rates_count_what_was_answered_until_the_last_came() -> None:
    """As in a simulated run; good are those within both limits, and an answer of one token has no pace."""
    sent = [answered(n, float(n)) for n in range(1, 9)]
    sent += [answered(9, 9.0, ttft_s=0.9), answered(10, 11.0, ttft_s=9.0), answered(11, 20.0)]
    found = results(sent, Slo(ttft_s=0.5, tpot_s=0.1))
    assert found.system_rps == pytest.approx(9 / 19)
    assert found.goodput_rps == pytest.approx(8 / 19)
    assert found.slo_fraction == pytest.approx(9 / 11)
    assert found.output_tokens_per_s == pytest.approx(99 / 19)
    assert results(sent, Slo(tpot_s=0.09)).goodput_rps == 0.0
    assert results([answered(n, float(n), tokens=1) for n in range(4)], Slo(tpot_s=0.09)).slo_fraction == 1.0


def test_each_route_has_its_figures() -> None:
    """A share of offloaded requests only where answers say their routes."""
    sent = [answered(n, float(n), route="local") for n in range(3)]
    sent += [answered(3, 3.0, ttft_s=4.0, route="remote"), answered(4, 4.0, route="local", reason="fallback:deadline")]
    found = results(sent)
    assert (found.offload_fraction, found.num_fallbacks) == (0.2, 1)
    assert {name: figures.num_requests for name, figures in found.routes.items()} == {"local": 4, "remote": 1}
    assert found.routes["remote"].ttft_s_mean == 4.0
    unknown = results([answered(1, 0.0), answered(2, 1.0)])
    assert (unknown.offload_fraction, unknown.num_fallbacks, set(unknown.routes)) == (None, None, {"unknown"})


def test_the_first_tenth_is_not_counted() -> None:
    """Unless a number is given; by the times at which they were to be sent."""
    sent = [answered(n, 20.0 - n) for n in range(20)]
    assert [one.number for one in counted(sent, None)][:1] == [17]
    assert len(counted(sent, 5)) == 15
    found = results(sent, num_warm_up=None)
    assert (found.num_warm_up, found.num_requests) == (2, 18)


def test_of_nothing_nothing_is_said() -> None:
    """No division by nothing, no figure that means nothing: an interrupted run may be empty."""
    for sent in ([], [answered(1, 0.0)], [lost(1, 0.0), lost(2, 0.0)]):
        found = results(sent)
        assert found.system_rps is None
        assert found.stability == "too_short"
        json.dumps(found.to_json(), allow_nan=False)


def test_a_queue_that_grows_is_told() -> None:
    """By the number of requests inside, as in a simulated run."""
    steady = [answered(n, n * 0.1, ttft_s=0.1, tokens=2) for n in range(3000)]
    assert results(steady).stability == "stable"
    growing = [answered(n, n * 0.1, ttft_s=0.1 + n * 0.05, tokens=2) for n in range(3000)]
    assert results(growing).stability == "overloaded"


@given(st.lists(st.tuples(st.floats(0, 50), st.floats(0, 20) | st.just(math.nan)), max_size=30))
def test_how_many_are_inside(stays: list[tuple[float, float]]) -> None:
    """At any time: those that came by then, less those that ended by then."""
    sent = [lost(n, at_s, over_s=at_s + stay_s) for n, (at_s, stay_s) in enumerate(stays)]
    times_s = [n * 1.7 for n in range(50)]
    assert inside(sent, times_s) == [
        sum(one.arrival_s <= t for one in sent) - sum(one.over_s <= t for one in sent) for t in times_s
    ]


def test_table_and_picture() -> None:
    """Doubts stand above the figures; the picture says in words what it shows."""
    sent = [answered(n, n * 0.1, route="local" if n % 3 else "remote", sent_s=n * 0.1 + 0.02) for n in range(100)]
    sent += [lost(100, 10.0, UNAVAILABLE), lost(101, 10.1, CANCELLED, over_s=math.nan, sent_s=math.nan)]
    found = results(sent, was_interrupted=True)
    out = io.StringIO()
    with redirect_stdout(out):
        print_results("http://x", "a load", found, Slo(1.0, 0.2))
    for text in ("interrupted", "sent more than 10 ms late", "remote", "SLO: TTFT 1 s and TPOT 0.2 s", "µs an event"):
        assert text in out.getvalue()
    svg = ET.fromstring(picture("t", sent, found, ".svg").decode())
    assert "remote: 34 answers" in next(child.text or "" for child in svg if child.tag.endswith("desc"))
    assert picture("t", [], results([]), ".png").startswith(b"\x89PNG")
