"""`prfaas simulate` as a command: a table, one JSON object, a line for each request, and what it says of bad input."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from prfaas.sim.policies import POLICIES
from prfaas.simulator.command import NAMES, SimulateOptions, run
from prfaas.simulator.loads import LoadOptions

CASE = Path(__file__).parents[3] / "examples" / "case-study" / "prfaas.yaml"
SHORT = SimulateOptions(CASE, load=LoadOptions(num_requests=300))

KEYS = [
    "policy", "seed", "planned_rps", "offered_rps", "num_requests", "num_completed", "num_refused", "num_failed", "num_fallbacks",
    "system_rps", "goodput_rps", "ttft_s_mean", "ttft_s_p50", "ttft_s_p90", "ttft_s_p95", "ttft_s_p99", "e2e_s_mean",
    "e2e_s_p50", "e2e_s_p95", "e2e_s_p99", "tpot_s_mean", "itl_s_p99", "cached_fraction", "offload_fraction", "egress_bytes_per_s_mean",
    "egress_bytes_per_s_max", "routing_threshold_tokens_final", "num_pd_prefill_final", "num_pd_decode_final",
    "num_conversions", "regret_s_mean", "best_chosen_fraction",
    "stability", "num_requests_enough", "simulated_s", "wall_s",
]  # fmt: skip


def simulated(capsys: pytest.CaptureFixture[str], options: SimulateOptions) -> list[dict[str, object]]:
    """The runs of its JSON."""
    assert run(replace(options, as_json=True)) == 0
    told = capsys.readouterr()
    assert told.err == ""
    found: list[dict[str, object]] = json.loads(told.out)["runs"]
    return found


def refused(capsys: pytest.CaptureFixture[str], options: SimulateOptions) -> str:
    """What it says on standard error."""
    assert run(options) == 2
    told = capsys.readouterr()
    assert told.out == ""
    return told.err


def test_json_has_the_promised_keys_for_each_policy_and_seed(capsys: pytest.CaptureFixture[str]) -> None:
    """In the order that was asked for."""
    runs = simulated(
        capsys,
        replace(
            SHORT, policies=("prfaas", "homogeneous"), num_seeds=2, load=LoadOptions(num_requests=300, rate_rps=1.0)
        ),
    )
    assert [list(one) for one in runs] == [KEYS] * 4
    assert [(one["policy"], one["seed"]) for one in runs] == [
        ("prfaas", 0), ("prfaas", 1), ("homogeneous", 0), ("homogeneous", 1),
    ]  # fmt: skip
    thresholds = [one["routing_threshold_tokens_final"] for one in runs]
    assert thresholds[2:] == [None, None]
    assert all(isinstance(tokens, int) and 15_000 < tokens < 25_000 for tokens in thresholds[:2]), thresholds


def test_a_run_whose_queues_do_not_grow_is_stable(capsys: pytest.CaptureFixture[str]) -> None:
    """Long enough to tell."""
    (one,) = simulated(capsys, replace(SHORT, load=LoadOptions(num_requests=3_000, load=0.6)))
    assert one["stability"] == "stable"


def test_a_short_run_says_that_it_is_too_short(capsys: pytest.CaptureFixture[str]) -> None:
    """A deployment that fills up looks like one whose queues grow."""
    (one,) = simulated(capsys, replace(SHORT, load=LoadOptions(num_requests=100)))
    assert one["stability"] == "too_short"


def test_a_seed_gives_the_same_figures_again(capsys: pytest.CaptureFixture[str]) -> None:
    """All but the time that it took; policies meet the same requests."""
    first, again = (
        simulated(capsys, replace(SHORT, policies=("prfaas", "naive"), load=LoadOptions(num_requests=300, load=0.5)))
        for _ in range(2)
    )
    assert [{**one, "wall_s": 0} for one in first] == [{**one, "wall_s": 0} for one in again]
    assert first[0]["offered_rps"] == first[1]["offered_rps"]


def test_the_load_is_the_files_or_a_share_of_the_plan(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Unless the command line says a rate."""
    text = CASE.read_text(encoding="utf-8")
    with_rate = tmp_path / "rate.yaml"
    with_rate.write_text(
        text.replace("workload:\n", "workload:\n  arrivals: {poisson: {rate: 1.5}}\n"), encoding="utf-8"
    )
    for options, words in (
        (SHORT, "2.599 a second (0.8 of what prfaas is planned to serve)"),
        (
            replace(SHORT, load=LoadOptions(num_requests=300, load=0.5)),
            "1.624 a second (0.5 of what prfaas is planned to serve)",
        ),
        (replace(SHORT, file=with_rate), "1.5 a second (workload.arrivals)"),
        (replace(SHORT, file=with_rate, load=LoadOptions(num_requests=300, rate_rps=0.7)), "0.7 a second (--rate)"),
    ):
        assert run(options) == 0
        assert f"300 requests, Poisson, {words}" in capsys.readouterr().out


def test_too_much_load_is_called_so(capsys: pytest.CaptureFixture[str]) -> None:
    """In a word, and in plain ones in the table."""
    (one,) = simulated(capsys, replace(SHORT, load=LoadOptions(num_requests=2_000, load=1.5)))
    assert one["stability"] == "overloaded"


def test_a_trace_is_replayed_at_its_own_times(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """With its lengths; what its cache would hold is not computed again. Its times may be those of a calendar."""
    trace = tmp_path / "trace.jsonl"
    lines = [
        {"timestamp": 1_796_000_002_000, "input_length": 1_024, "output_length": 3, "hash_ids": [1, 3]},
        {"timestamp": 1_796_000_000_000, "input_length": 1_024, "output_length": 2, "hash_ids": [1, 2]},
    ]
    trace.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    out = tmp_path / "requests.jsonl"
    (one,) = simulated(capsys, replace(SHORT, requests=out, load=LoadOptions(trace=trace)))
    assert one["num_requests"] == 2
    written = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [(r["arrival_s"], r["computed_tokens"], r["output_tokens"]) for r in written] == [
        (0.0, 1_024, 2),
        (2.0, 512, 3),
    ]


def test_a_line_for_each_request_says_what_was_decided(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Route, reason, instances and times."""
    out = tmp_path / "requests.jsonl"
    simulated(capsys, replace(SHORT, requests=out))
    written = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [r["request"] for r in written] == list(range(1, 301))
    for one in written:
        is_remote = one["route"] == "remote"
        assert one["reason"] == ("above_threshold" if is_remote else "below_threshold")
        assert one["prefill_instance"].startswith("prfaas-west" if is_remote else "pd-east")
        assert one["arrival_s"] < one["first_token_s"] < one["end_s"]
        assert one["policy"] == "prfaas"


def test_bad_input_is_told_with_the_remedy(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Nothing is written."""
    assert "--policy best: there is prfaas, fixed, homogeneous, naive" in refused(
        capsys, replace(SHORT, policies=("best",))
    )
    assert "give one" in refused(capsys, replace(SHORT, load=LoadOptions(num_requests=300, rate_rps=1.0, load=0.5)))
    for rate_rps in (float("inf"), float("nan"), 1e300, 0.0):
        told = refused(capsys, replace(SHORT, load=LoadOptions(num_requests=300, rate_rps=rate_rps)))
        assert told == f"--rate {rate_rps:g}: it is more than 0 and at most 1,000,000\n"
    missing = tmp_path / "missing.jsonl"
    assert f"--trace {missing}: No such file" in refused(
        capsys, replace(SHORT, load=LoadOptions(num_requests=300, trace=missing))
    )
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"timestamp": 0}\n', encoding="utf-8")
    assert f"--trace {broken}: line 1: input_length is missing" in refused(
        capsys, replace(SHORT, load=LoadOptions(num_requests=300, trace=broken))
    )
    at_once = tmp_path / "at_once.jsonl"
    at_once.write_text('{"timestamp": 0, "input_length": 9, "output_length": 9}\n' * 2, encoding="utf-8")
    assert "all 2 requests come at one time" in refused(
        capsys, replace(SHORT, load=LoadOptions(num_requests=300, trace=at_once))
    )
    assert "leave --seeds" in refused(
        capsys, replace(SHORT, num_seeds=2, load=LoadOptions(num_requests=300, trace=at_once))
    )
    assert "that file is read" in refused(
        capsys, replace(SHORT, requests=at_once, load=LoadOptions(num_requests=300, trace=at_once))
    )
    nowhere = tmp_path / "no" / "requests.jsonl"
    assert "there is no folder" in refused(capsys, replace(SHORT, requests=nowhere))
    assert not nowhere.parent.exists()


def test_an_interrupt_leaves_the_requests_of_an_earlier_run(tmp_path: Path) -> None:
    """And no half of the new ones."""
    out = tmp_path / "requests.jsonl"
    out.write_text("earlier", encoding="utf-8")
    argv = [sys.executable, "-m", "prfaas", "simulate", str(CASE), "--num-requests", "500000", "--requests", str(out)]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as process:
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    assert [(path.name, path.read_text(encoding="utf-8")) for path in tmp_path.iterdir()] == [(out.name, "earlier")]


def test_what_is_read_is_not_written_by_another_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A hard link, a symbolic one, a way round; nor one file by two options."""
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"timestamp": 0, "input_length": 9, "output_length": 9}\n' * 2, encoding="utf-8")
    (tmp_path / "hard.jsonl").hardlink_to(trace)
    (tmp_path / "soft.jsonl").symlink_to(trace)
    for name in ("hard.jsonl", "soft.jsonl", f"../{tmp_path.name}/trace.jsonl"):
        asked = replace(SHORT, requests=tmp_path / name, load=LoadOptions(trace=trace))
        assert "that file is read; name another one to write" in refused(capsys, asked)
    file = tmp_path / "with_profile.yaml"
    (tmp_path / "mine.yaml").write_text("mine", encoding="utf-8")
    file.write_text(CASE.read_text().replace("internal-1t-hybrid", "mine.yaml"), encoding="utf-8")
    assert "that file is read" in refused(capsys, replace(SHORT, file=file, requests=tmp_path / "mine.yaml"))
    (tmp_path / "hard.json").hardlink_to(trace)
    asked = replace(SHORT, requests=trace, chrome_trace=tmp_path / "hard.json")
    assert "--requests writes that file too" in refused(capsys, asked)


def test_the_command_prints_a_table_for_people() -> None:
    """As a process of its own."""
    argv = [
        sys.executable,
        "-m",
        "prfaas",
        "simulate",
        str(CASE),
        "--num-requests",
        "3000",
        "--load",
        "0.6",
        "--seeds",
        "2",
    ]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    setup = (
        r"prfaas: 3 prefill and 5 decode instances, threshold [12]\d,\d{3} tokens at the end; stable \(queues do not"
    )
    assert re.search(setup, done.stdout), done.stdout
    assert "Medians over 2 seeds, lowest and highest in brackets." in done.stdout


def test_policies_that_a_file_contradicts_are_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """With the policy and the line: the file was checked for its own policy only."""
    text = CASE.read_text(encoding="utf-8").replace("instances: 8,", "instances: 8, prefill_instances: 8,")
    file = tmp_path / "no_decode.yaml"
    file.write_text(text, encoding="utf-8")
    told = refused(capsys, replace(SHORT, file=file))
    assert str(file) in told


def test_policies_of_others_are_compared_under_the_same_requests(capsys: pytest.CaptureFixture[str]) -> None:
    """All of them: each answers everybody, none has a threshold of ours, and one seed is one run."""
    runs, again = (
        simulated(capsys, replace(SHORT, policies=("all",), load=LoadOptions(num_requests=300, load=0.3)))
        for _ in range(2)
    )
    assert [one["policy"] for one in runs] == list(NAMES)
    assert {one["num_failed"] for one in runs} == {0}
    assert {one["offered_rps"] for one in runs} == {runs[0]["offered_rps"]}
    assert all(one["routing_threshold_tokens_final"] is None for one in runs if one["policy"] in POLICIES)
    assert [{**one, "wall_s": 0} for one in runs] == [{**one, "wall_s": 0} for one in again]
    shares = {one["policy"]: one["offload_fraction"] for one in runs}
    assert shares["uncached_16"] == 1.0 and shares["homogeneous"] == 0.0
    assert 0.4 < float(str(shares["round_robin"])) < 0.6


def test_many_policies_are_rows(capsys: pytest.CaptureFixture[str]) -> None:
    """And few are columns."""
    assert run(replace(SHORT, policies=("all",))) == 0
    told = capsys.readouterr().out
    assert re.search(r"^two_choices +\d", told, re.MULTILINE)
    assert re.search(r"^session_affinity +\d", told, re.MULTILINE), "names are whole"
    assert "random, round_robin, least_load" in told, "who is said the same of shares a line"


def test_some_requests_are_judged_in_hindsight(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """As many as were asked for, none of the warm-up; their lines have every way with what came of it."""
    out = tmp_path / "requests.jsonl"
    options = replace(SHORT, load=LoadOptions(num_requests=200, load=0.8), requests=out, num_judged=9)
    (one,) = simulated(capsys, options)
    written = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [r["request"] for r in written] == list(range(1, 201))
    found = [r for r in written if "hindsight" in r]
    assert [r["request"] for r in found] == list(range(21, 201, 20))
    for r in found:
        assert {tried["way"] for tried in r["hindsight"]} == {option["way"] for option in r["options"]}
    regrets = [r["regret_s"] for r in found]
    assert one["regret_s_mean"] == pytest.approx(sum(regrets) / len(regrets))
    assert one["best_chosen_fraction"] == sum(s == 0 for s in regrets) / len(regrets)
    (without,) = simulated(capsys, replace(options, num_judged=0, requests=None))
    assert without["ttft_s_mean"] == one["ttft_s_mean"]
    assert without["regret_s_mean"] is None


def noted(capsys: pytest.CaptureFixture[str], options: SimulateOptions) -> list[str]:
    """The notes of its JSON, which are on standard error too."""
    assert run(replace(options, as_json=True)) == 0
    told = capsys.readouterr()
    found: list[str] = json.loads(told.out)["notes"]
    assert told.err == "".join(f"note: {note}\n" for note in found)
    return found


def test_what_figures_do_not_show_is_noted(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """What never happened, a profile of another model, a day that was not over, and nothing that was tried."""
    few = replace(SHORT, load=LoadOptions(num_requests=50))
    assert noted(capsys, replace(few, happenings=("2s cut prfaas-west pd-east",))) == []
    (note,) = noted(capsys, replace(few, happenings=("1h cut prfaas-west pd-east", "2s die prfaas-west-0")))
    assert note.startswith("--at '1h cut prfaas-west pd-east': never happened in every run: the last answer ended at")
    file = tmp_path / "other_model.yaml"
    profiles = CASE.parents[2] / "src/prfaas/profiles/hardware"
    text = CASE.read_text().replace("prfaas, accelerator: h200", f"prfaas, profile: {profiles}/qwen3-235b/h200.yaml")
    file.write_text(text, encoding="utf-8")
    assert "prfaas-west: its profile was measured with qwen3-235b, not internal-1t-hybrid" in noted(
        capsys, replace(few, file=file)
    )
    (note,) = noted(capsys, replace(SHORT, load=LoadOptions(num_requests=50, rate_rps=1.0, arrivals="daily 0.2 24h")))
    assert re.match(
        r"--arrivals daily: runs cover \d+ s of a day of 86400 s.* about 86,400 requests come in a day", note
    )
    assert noted(capsys, replace(few, policies=("fixed",), num_judged=5)) == [
        "--hindsight: nothing was tried with fixed: no request had two ways that were compared"
    ]


def test_policies_with_other_plans_say_what_share_of_theirs_the_load_is(capsys: pytest.CaptureFixture[str]) -> None:
    """It is the same load, and less can be served without the PrfaaS cluster."""
    assert run(replace(SHORT, policies=("prfaas", "homogeneous"))) == 0
    told = re.findall(r"(\d\.\d\d) of the (\d\.\d\d) requests/s", " ".join(capsys.readouterr().out.split()))
    (ours, planned), (theirs, less) = told
    assert (planned, less) == ("3.25", "1.41")
    assert float(ours) * 3.25 == pytest.approx(float(theirs) * 1.41, rel=0.02)


def test_cells_are_whole(capsys: pytest.CaptureFixture[str]) -> None:
    """Ranges of four policies do not fit beside their medians: they stand below."""
    policies = ("prfaas", "homogeneous", "prefix_affinity", "session_affinity")
    assert run(replace(SHORT, policies=policies, num_seeds=2, load=LoadOptions(num_requests=50))) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.count("[") != line.count("]")] == []
    assert any(line.count("[") == 4 for line in lines)


@pytest.mark.parametrize(
    ("load", "told"),
    [
        (LoadOptions(arrivals="clients 5 shared 200000"), "the workload's longest prompt has 131,072 tokens"),
        (LoadOptions(caches=("2M",)), "'2M' is no whole number from 0 to 1000000000; write for example 2000000"),
        (LoadOptions(caches=("1e6",)), "write for example 2000000"),
    ],
)
def test_a_slip_in_a_load_is_told(capsys: pytest.CaptureFixture[str], load: LoadOptions, told: str) -> None:
    """With what to write instead."""
    assert told in refused(capsys, replace(SHORT, load=load))


def test_a_broken_trace_has_one_line_number(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """That of the file."""
    trace = tmp_path / "trace.jsonl"
    good = '{"timestamp": 0, "input_length": 9, "output_length": 9}\n'
    trace.write_text(good * 2 + good[:30], encoding="utf-8")
    told = refused(capsys, replace(SHORT, load=LoadOptions(trace=trace)))
    assert re.findall(r"line \d+", told) == ["line 3"]
    trace.write_text(good * 3, encoding="utf-8")
    told = refused(capsys, replace(SHORT, load=LoadOptions(trace=trace, num_requests=2)))
    assert "the first 2 requests come at one time, so that they have no rate; give more --num-requests" in told


def test_all_says_which_policies_a_file_can_run(capsys: pytest.CaptureFixture[str]) -> None:
    """Where it has no PrfaaS cluster."""
    file = CASE.with_name("homogeneous.yaml")
    told = refused(capsys, replace(SHORT, file=file, policies=("all",)))
    assert told.endswith("--policy all: this file can run homogeneous\n")
