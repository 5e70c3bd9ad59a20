"""Four faults that operators fear, in the paper's case study under half of its planned load, engines emulated.

    python -m benchmarks.chaos.named [--time-scale 0.5] [--only gateway] [--load 0.5] [--json FILE]

The link between the clusters is cut for 20 s; the PrfaaS cluster's engines are killed and started again; one KV node is
killed; the gateway is killed. Each with the ledger of `prfaas chaos`, and with what clients felt. Seconds are real ones
of this machine: engines run 1 / time scale as fast as the hardware that they stand for, all else at its own pace.
Status 1 if a ledger does not hold, or something is not as before within 10 s.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import uvloop

from prfaas.bench.e2e.sent import REMOTE
from prfaas.chaos.answers import answers_of
from prfaas.chaos.command import planned_rps
from prfaas.chaos.faults import read_faults
from prfaas.chaos.records import Outcome, Record
from prfaas.chaos.report import report_lines, to_json
from prfaas.chaos.run import Phases, Result, RunOptions, run_once
from prfaas.chaos.site import Site, site_of
from prfaas.demo.case_study import PD, PRFAAS, case_study_document
from prfaas.testing.up_site import running_up

BEFORE_S, AFTER_S = 30.0, 30.0
#: Rates and shares are of so long a time.
WINDOW_S = 10.0
ASKED_S = 10.0
SCENARIOS = {
    "link": ("the link is cut for 20 s", f"cut {PRFAAS} {PD} silent 20s", 20.0),
    "prfaas": ("the PrfaaS cluster's engines are killed", f"kill {PRFAAS}", 10.0),
    "node": ("one KV node is killed", f"kill kvnode-{PD}-3", 10.0),
    "gateway": ("the gateway is killed", "kill gateway", 10.0),
}


@dataclass(frozen=True, slots=True)
class Window:
    """Of requests that were due in WINDOW_S: how many there were, which share went away; and completions in it."""

    num_sent: int
    offload_share: float
    num_completed: int


def window(records: Sequence[Record], from_s: float, to_s: float) -> Window:
    due = [record for record in records if from_s <= record.sent.arrival_s < to_s]
    routed = [record for record in due if record.outcome is Outcome.COMPLETED]
    away = sum(record.sent.route == REMOTE for record in routed)
    ended = sum(record.outcome is Outcome.COMPLETED and from_s <= record.sent.over_s < to_s for record in records)
    return Window(len(due), away / len(routed) if routed else 0.0, ended)


def back_s(
    records: Sequence[Record], before_to_s: float, end_s: float, last_s: float
) -> tuple[float | None, float | None]:
    """From the fault's end until offload share, and completion rate, of the next WINDOW_S are what they were before,
    but for what chance explains (two standard deviations); None: not seen."""
    before = window(records, 0.0, before_to_s)
    wanted = before.num_completed / before_to_s * WINDOW_S
    share_s: float | None = None
    rate_s: float | None = None
    at_s = end_s
    while at_s + WINDOW_S <= last_s:
        now = window(records, at_s, at_s + WINDOW_S)
        chance = 2 * math.sqrt(before.offload_share * (1 - before.offload_share) / max(1, now.num_sent))
        if share_s is None and now.offload_share >= before.offload_share - chance:
            share_s = at_s - end_s
        if rate_s is None and now.num_completed >= wanted - 2 * math.sqrt(wanted):
            rate_s = at_s - end_s
        at_s += 0.5
    return share_s, rate_s


def run_named(site: Site, fault: str, lasts_s: float, load: float, seed: int) -> Result:
    phases = Phases(BEFORE_S, lasts_s, AFTER_S, 60.0)
    options = RunOptions(seed, read_faults([fault], site.menu, BEFORE_S), phases, load * planned_rps(site), 0.02)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run_once(site, options, answers_of(site), lambda line: print(f"  {line}", flush=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time-scale", type=float, default=0.5)
    parser.add_argument("--load", type=float, default=0.5, help="share of the plan")
    parser.add_argument("--only", choices=list(SCENARIOS), action="append")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="what each run came to")
    asked = parser.parse_args()
    rows, told, is_fine = [], [], True
    with running_up(case_study_document(time_scale=asked.time_scale)) as (file, logs):
        for name in asked.only or SCENARIOS:
            what, fault, lasts_s = SCENARIOS[name]
            print(what, flush=True)
            result = run_named(site_of(file, logs), fault, lasts_s, asked.load, asked.seed)
            print("\n".join(f"  {line}" for line in report_lines(result)), flush=True)
            cells, fine = row(what, result)
            rows.append(cells)
            told.append({"scenario": name, **to_json(result)})
            is_fine &= fine
    print(f"\nseconds are real; engines run {1 / asked.time_scale:g} times as fast as the hardware they stand for\n")
    print("| | requests | completed | cancelled | failed, excused | unreached | away | TTFT at most: before | during"
          " | after | all as before after | offload share | completion rate | ledger |")  # fmt: skip
    print("|---|" + "---:|" * 12 + "---|")
    for cells in rows:
        print(f"| {' | '.join(cells)} |")
    if asked.json is not None:
        asked.json.write_text(json.dumps(told, indent=2))
    sys.exit(0 if is_fine else 1)


def row(what: str, result: Result) -> tuple[list[str], bool]:
    """Of the table, and whether it is as asked."""
    verdict, (happened, *_) = result.verdict, result.happened
    end_s = result.end_of_faults_s if happened.ended_s is None else happened.ended_s
    last_s = max(record.sent.arrival_s for record in result.records)
    share_s, rate_s = back_s(result.records, happened.began_s, end_s, last_s)
    ttfts = [
        result.ttft_s_max(*pair) for pair in ((0.0, happened.began_s), (happened.began_s, end_s), (end_s, math.inf))
    ]
    count = verdict.outcomes
    cells = [what, verdict.sent, count[Outcome.COMPLETED], count[Outcome.CANCELLED]]
    cells += [f"{count[Outcome.FAILED]}, {sum(verdict.excused.values()) - count[Outcome.UNREACHED]}"]
    cells += [count[Outcome.UNREACHED], f"{end_s - happened.began_s:.1f} s"]
    cells += [*(_seconds(value) for value in (*ttfts, result.recovery_s, share_s, rate_s))]
    cells += ["holds" if result.is_fine else "DOES NOT HOLD"]
    in_time = all(value is not None and value <= ASKED_S for value in (result.recovery_s, share_s, rate_s))
    return [str(cell) for cell in cells], result.is_fine and in_time


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} s"


if __name__ == "__main__":
    main()
