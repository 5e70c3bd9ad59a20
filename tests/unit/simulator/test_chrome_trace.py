"""`prfaas simulate --chrome-trace`: what the file holds agrees with the run."""

from __future__ import annotations

import io
import json
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from prfaas.core.control.lifecycle import TransferTerms
from prfaas.core.control.route import RouteKind
from prfaas.sim.conditions import Condition, EnginesDie, EnginesReturn, LinkBecomes
from prfaas.sim.deployment import planned_deployment
from prfaas.sim.observed import Doing, Observer
from prfaas.sim.runs import Run, open_loop
from prfaas.simulator.chrome_trace import ChromeTrace
from prfaas.simulator.command import SimulateOptions, run
from prfaas.simulator.loads import LoadOptions
from prfaas.testing.scheduling import PAIR, WEST, Choice, deployment, planned, steady

CASE = Path(__file__).parents[3] / "examples" / "case-study" / "prfaas.yaml"
Events = list[dict[str, Any]]

#: The link is cut and comes back, and a cluster's engines die and come back: all that can stop what has begun.
TROUBLE: tuple[tuple[float, Condition], ...] = (
    (30.0, LinkBecomes(*PAIR, 0.0)),
    (60.0, LinkBecomes(*PAIR, 1.25e10)),
    (80.0, EnginesDie((*WEST[:2], "pd-east-0", "pd-east-7"))),
    (100.0, EnginesReturn((*WEST[:2], "pd-east-0", "pd-east-7"))),
)


def observed(choice: Choice = "prfaas", conditions: Sequence[tuple[float, Condition]] = ()) -> tuple[Run, Observer]:
    """The case study for two minutes at 0.9 of what it can serve."""
    observer = Observer(keeps_spans=True)
    story = steady(0.9, 120.0)
    done = open_loop(deployment(choice), story.arrivals(3), conditions=conditions, observer=observer)
    return done, observer


def events_of(done: Run, observer: Observer) -> Events:
    """Of the trace, as a reader gets them."""
    file = io.BytesIO()
    trace = ChromeTrace(file)
    trace.add("", observer, done.simulation.deployment.topology, [(30.0, "cut prfaas-west pd-east")])
    trace.close()
    found: Events = json.loads(file.getvalue())["traceEvents"]
    return found


def problems(events: Events) -> list[str]:
    """What a viewer would stumble over."""
    found = []
    open_at: dict[int, int] = {}
    busy_until: dict[tuple[int, int], int] = {}
    for event in events:
        if event["ph"] != "M" and not (isinstance(event["ts"], int) and event["ts"] >= 0):
            found.append(f"no time: {event}")
        if event["ph"] == "b":
            open_at[event["id"]] = event["ts"]
        if event["ph"] == "e" and event["ts"] < open_at.pop(event["id"], math.inf):
            found.append(f"ends before it begins, or never began: {event}")
    found += [f"no end: {number}" for number in open_at]
    for event in sorted((e for e in events if e["ph"] == "X"), key=lambda e: (e["ts"], e["dur"])):
        place = event["pid"], event["tid"]
        if event["dur"] < 0 or event["ts"] < busy_until.get(place, 0):
            found.append(f"overlaps: {event}")
        busy_until[place] = event["ts"] + event["dur"]
    return found


@pytest.fixture(scope="module")
def steady_run() -> tuple[Run, Observer]:
    return observed()


@pytest.fixture(scope="module")
def troubled_run() -> tuple[Run, Observer]:
    return observed(conditions=TROUBLE)


@pytest.mark.parametrize("choice", ["prfaas", 19_400, "naive", "homogeneous", "two_choices"])
def test_a_trace_is_valid_whatever_the_policy(choice: Choice) -> None:
    """Every begin has its end, and an instance prefills one prompt at a time."""
    assert problems(events_of(*observed(choice))) == []


def test_a_trace_is_valid_whatever_happens(troubled_run: tuple[Run, Observer]) -> None:
    """What is stopped ends then; what was stopped says so."""
    assert problems(events_of(*troubled_run)) == []
    stopped = Counter(span.doing for span in troubled_run[1].spans if not span.is_whole)
    assert stopped[Doing.PREFILL] > 0 and stopped[Doing.TRANSFER] > 0 and stopped[Doing.DECODE] > 0


def test_what_is_invalid_is_found(steady_run: tuple[Run, Observer]) -> None:
    """Negative control: an end that is missing, one that is early, and two prompts at once."""
    events = events_of(*steady_run)
    last_end = max(index for index, event in enumerate(events) if event["ph"] == "e")
    whole = next(event for event in events if event["ph"] == "X")
    assert len(problems([*events[:last_end], *events[last_end + 1 :]])) == 1
    assert len(problems([*events[:last_end], {**events[last_end], "ts": 0}, *events[last_end + 1 :]])) == 1
    assert problems([*events, {**whole, "ts": whole["ts"] + 1}])


def test_an_instances_prefills_take_as_long_as_its_engine_says(steady_run: tuple[Run, Observer]) -> None:
    """To a microsecond each, also in the trace."""
    done, observer = steady_run
    taken_s: defaultdict[str, float] = defaultdict(float)
    for span in observer.spans:
        if span.doing is Doing.PREFILL:
            taken_s[span.at] += span.to_s - span.from_s
    engines = {name: engine.prefilling_s for name, engine in done.simulation.engines.items() if engine.prefilling_s}
    assert dict(taken_s) == pytest.approx(engines, abs=1e-6)
    total_us = sum(event["dur"] for event in events_of(done, observer) if event["ph"] == "X")
    assert total_us / 1e6 == pytest.approx(sum(engines.values()), abs=1e-6 * len(done.ended))


def test_prefills_that_are_stopped_take_as_long_as_their_engine_says() -> None:
    """Their deadline passes while they are prefilled. No engine dies, which would lose its count."""
    observer = Observer(keeps_spans=True)
    made = replace(deployment(19_400), terms=TransferTerms(deadline_s=3.0, lease_s=30.0))
    done = open_loop(made, steady(0.5, 60.0).arrivals(3), observer=observer)
    assert problems(events_of(done, observer)) == []
    taken_s: defaultdict[str, float] = defaultdict(float)
    for span in observer.spans:
        if span.doing is Doing.PREFILL:
            taken_s[span.at] += span.to_s - span.from_s
    engines = {name: engine.prefilling_s for name, engine in done.simulation.engines.items() if engine.prefilling_s}
    assert dict(taken_s) == pytest.approx(engines, abs=1e-6)
    assert any(span.doing is Doing.PREFILL and not span.is_whole for span in observer.spans)


def test_every_request_has_its_spans(steady_run: tuple[Run, Observer]) -> None:
    """One wait for its prefill, one prefill, one transfer if it was prefilled remotely, and one answer."""
    done, observer = steady_run
    spans: defaultdict[tuple[int, Doing], list[Any]] = defaultdict(list)
    for span in observer.spans:
        spans[span.request, span.doing].append(span)
    assert {life.route for life in done.ended} == {RouteKind.REMOTE, RouteKind.PD_PREFILL}
    for life in done.ended:
        is_remote = life.route == RouteKind.REMOTE
        (prefill,), (decode,) = spans[life.number, Doing.PREFILL], spans[life.number, Doing.DECODE]
        transfers = spans[life.number, Doing.TRANSFER]
        assert [(t.at, t.amount) for t in transfers] == ([(">".join(PAIR), life.kv_bytes)] if is_remote else [])
        assert (prefill.at, decode.at) == (life.prefill, life.decode)
        assert (decode.to_s, decode.is_whole) == (life.ended_s, True)
        waits = spans[life.number, Doing.WAIT]
        assert waits[0].from_s == life.arrival.at_s and waits[-1].to_s == prefill.from_s
        assert all(before.to_s == after.from_s for before, after in pairwise(waits))
        # A transfer that leaves layer by layer lands no sooner than the prefill ends, and then the answer begins.
        assert decode.from_s >= max([prefill.to_s, *(t.to_s for t in transfers)])


def test_transfers_that_begin_after_the_prefill_are_drawn_so() -> None:
    """Where nothing leaves layer by layer."""
    observer = Observer(keeps_spans=True)
    made = replace(planned_deployment(*planned(), tpot_slo_s=0.025), is_layer_wise=False)
    open_loop(made, steady(0.5, 40.0).arrivals(1), observer=observer)
    ends_s = {span.request: span.to_s for span in observer.spans if span.doing is Doing.PREFILL}
    transfers = [span for span in observer.spans if span.doing is Doing.TRANSFER]
    assert transfers and all(span.from_s == ends_s[span.request] for span in transfers)


def test_whoever_looks_changes_nothing() -> None:
    """Each request has the times that it has unobserved, with troubles too, and nothing is kept without an observer."""
    times = []
    for observer in (None, Observer(), Observer(keeps_spans=True)):
        done = open_loop(deployment(), steady(0.9, 120.0).arrivals(3), conditions=TROUBLE, observer=observer)
        times.append([(life.number, life.began_s, life.ended_s, life.decode) for life in done.ended])
        if observer is None:
            assert done.simulation.on_prefill is None and done.simulation.scheduler.on_step is None
        elif not observer.spans:
            assert done.simulation.on_prefill is None and observer.moments
    assert times[0] == times[1] == times[2]


def test_a_long_run_is_seen_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evenly, from its first second to its last."""
    monkeypatch.setattr("prfaas.sim.observed.MAX_MOMENTS", 40)
    _, observer = observed()
    times = [moment.at_s for moment in observer.moments]
    steps = {round(after - before, 6) for before, after in pairwise(times)}
    assert 20 <= len(times) < 40 and times[0] == 0.0 and len(steps) == 1 and times[-1] > 115


def test_counters_and_instants_are_there(steady_run: tuple[Run, Observer]) -> None:
    """Thresholds, queues, links and requests inside; what `--at` says, and conversions elsewhere."""
    events = events_of(*steady_run)
    counters = {event["name"] for event in events if event["ph"] == "C"}
    assert counters == {
        "requests inside", "threshold, tokens, solved", "threshold, tokens, now prfaas-west", "prompts that wait",
        "instances", "bytes/s to pd-east", "bytes/s to pd-east, expected",
    }  # fmt: skip
    (instant,) = [event for event in events if event["ph"] == "i"]
    assert (instant["name"], instant["ts"]) == ("cut prfaas-west pd-east", 30_000_000)
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert list(names.values()) == ["scheduler", "pd-east", "prfaas-west"]
    threads = [e["args"]["name"] for e in events if e["name"] == "thread_name"]
    assert threads == [*(f"pd-east-{n}" for n in range(8)), *WEST]


def test_the_command_names_processes_by_policy_and_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """If there are several; all in one file."""
    out = tmp_path / "trace.json"
    options = SimulateOptions(
        CASE, policies=("prfaas", "fixed"), num_seeds=2, load=LoadOptions(num_requests=40), chrome_trace=out
    )
    assert run(options) == 0
    assert capsys.readouterr().err == ""
    events = json.loads(out.read_bytes())["traceEvents"]
    assert problems(events) == []
    names = [event["args"]["name"] for event in events if event["name"] == "process_name"]
    assert len(names) == len(set(names)) == 12
    assert names[:3] == ["prfaas seed 0: scheduler", "prfaas seed 0: pd-east", "prfaas seed 0: prfaas-west"]
    assert names[-1] == "fixed seed 1: prfaas-west"
    assert sum(1 for event in events if event["ph"] == "X") == 160


def test_conversions_are_instants(tmp_path: Path) -> None:
    """Where a cluster is convertible, and the load asks for it: their begin and their end, in the cluster's process."""
    text = CASE.read_text(encoding="utf-8")
    file, out = tmp_path / "convertible.yaml", tmp_path / "trace.json"
    file.write_text(text.replace("instances: 8,", "instances: 8, prefill_instances: 6, convertible: true,"), "utf-8")
    assert run(SimulateOptions(file, load=LoadOptions(num_requests=1_500, load=0.9), chrome_trace=out)) == 0
    events = json.loads(out.read_bytes())["traceEvents"]
    assert problems(events) == []
    instants = [event["name"] for event in events if event["ph"] == "i"]
    assert any(name.endswith("begins") for name in instants) and any("ends: done" in name for name in instants)
