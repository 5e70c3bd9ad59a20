"""`python -m benchmarks.case_study.adaptive`: what moves in the scheduler, on processes beside the simulator.

Three runs of the paper's case study, whose engines and link are emulated on this machine: duties from a wrong split, a
threshold from a wrong start, a link that falls to a tenth and comes back. Each is simulated too, with the same requests, in
the seconds of the served deployment. Prints the tables of docs/benchmarks/adaptive.md, with `--write` into that page, and
then draws docs/images/adaptive-*.svg. `--json` keeps every sample.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from benchmarks.case_study.adaptive_samples import Sample, Seen, between, crossing_bytes_per_s, windows
from benchmarks.case_study.adaptive_served import serve
from benchmarks.case_study.adaptive_simulated import simulate
from prfaas.bench.e2e.options import E2eOptions
from prfaas.bench.e2e.plan import Plan, plan_of
from prfaas.core.planning.solution import Solution
from prfaas.core.planning.solve import solve
from prfaas.demo.case_study import NUM_PREFILL, PD, PRFAAS, case_study_document
from prfaas.scenario.build import build_scenario
from prfaas.sim.conditions import LinkBecomes

DOCS: Final = Path(__file__).parents[2] / "docs"
PAGE: Final = DOCS / "benchmarks" / "adaptive.md"
IMAGES: Final = DOCS / "images"
TIME_SCALE: Final = 0.5
SAMPLE_EVERY_S: Final = 1.0
#: After the last request was sent, of the real deployment: an answer takes 26 s there.
DRAIN_S: Final = 60.0
GBPS: Final = 1e9 / 8
#: The solved threshold of 64 prompts, the fewest of which one is solved, lies so near to the planned one in 95 of 100.
BAND: Final = 0.25
#: What a wrong file says of the logarithm of its prompts' lengths, for a planned threshold of about so many tokens.
WRONG_MU: Final = {4_000: 8.37, 61_000: 12.0}


@dataclass(frozen=True)
class Story:
    """One run. Times are of the real deployment. `load`: a share of what the case study is planned to serve. `mu`: of the
    lengths in the file that is served; the load has the case study's. `conditions`: rates of the link, in Gbps."""

    name: str
    about: str
    load: float
    until_s: float
    num_prefill: int = NUM_PREFILL
    is_convertible: bool = False
    mu: float | None = None
    conditions: tuple[tuple[float, float], ...] = ()
    window_s: float = 30.0


STORIES: Final[dict[str, tuple[Story, ...]]] = {
    "duties": (
        Story("duties 7/1", "7 prefill and 1 decodes, to begin with", 0.85, 560.0, 7, is_convertible=True),
        Story("duties 1/7", "1 prefills and 7 decode, to begin with", 0.85, 480.0, 1, is_convertible=True),
    ),
    "threshold": tuple(
        Story(f"threshold {tokens}", f"the file's prompts have a planned threshold of about {tokens:,} tokens", 0.8, 120.0,
              mu=mu, window_s=20.0)
        for tokens, mu in WRONG_MU.items()
    ),
    "link": (
        Story("link", "100 Gbps, a tenth of it, and 100 Gbps again", 0.6, 360.0,
              conditions=((120.0, 10.0), (240.0, 100.0)), window_s=20.0),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Done:
    """Both ends of one story; all times in the seconds of the served deployment."""

    story: Story
    time_scale: float
    planned: Solution
    system: Seen
    simulated: Seen
    wall_s: float
    parts: dict[str, Any] = field(default_factory=dict)

    @property
    def until_s(self) -> float:
        return self.story.until_s * self.time_scale

    @property
    def ends(self) -> tuple[tuple[str, Seen], tuple[str, Seen]]:
        return ("processes", self.system), ("simulated", self.simulated)

    @property
    def change_s(self) -> list[float]:
        return [at_s * self.time_scale for at_s, _ in self.story.conditions]

    def to_json(self) -> dict[str, Any]:
        return {
            "story": self.story.name, "time_scale": self.time_scale, "load": self.story.load,
            "planned_threshold_tokens": self.planned.threshold_tokens, "planned_rps": self.planned.system_rps,
            "processes": self.system.to_json(), "simulated": self.simulated.to_json(), "wall_s": self.wall_s,
        }  # fmt: skip


def document_of(story: Story, time_scale: float) -> dict[str, Any]:
    """What is served."""
    document = case_study_document(num_prefill=story.num_prefill, time_scale=time_scale)
    document["clusters"][PD]["convertible"] = story.is_convertible
    # A split that is too wrong leaves more requests inside than a gateway lets in by default.
    document["gateway"]["max_inflight_requests"] = 4096
    if story.mu is not None:
        document["workload"]["input_tokens"]["lognormal"]["mu"] = story.mu
    return document


def run(story: Story, time_scale: float, seed: int) -> Done:
    """The simulation first, which takes seconds."""
    began_s = time.perf_counter()
    document = document_of(story, time_scale)
    with tempfile.TemporaryDirectory(prefix="prfaas-") as folder:
        file, right = Path(folder) / "served.yaml", Path(folder) / "case-study.yaml"
        file.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
        right.write_text(yaml.safe_dump(case_study_document(time_scale=time_scale)), encoding="utf-8")
        planned = solve(build_scenario(right))
        plan = _plan(right, story, planned, time_scale, seed)
        until_s = story.until_s * time_scale
        timed: dict[str, Any] = {
            "pd": PD, "conditions": _conditions(story, document), "until_s": until_s,
            "end_s": until_s + DRAIN_S * time_scale, "every_s": SAMPLE_EVERY_S,
        }  # fmt: skip
        simulated = simulate(file, plan, **timed)
    system = serve(document, plan, **timed)
    return Done(story, time_scale, planned, system, simulated, time.perf_counter() - began_s)


def _plan(file: Path, story: Story, planned: Solution, time_scale: float, seed: int) -> Plan:
    return plan_of(
        E2eOptions(
            "http://127.0.0.1", deployment=file, rate_rps=story.load * planned.system_rps,
            duration_s=story.until_s * time_scale, seed=seed,
        )
    )  # fmt: skip


def _conditions(story: Story, document: dict[str, Any]) -> list[tuple[float, LinkBecomes]]:
    scale = document["emulation"]
    slower = scale["bytes_scale"] / scale["time_scale"]
    return [
        (at_s * scale["time_scale"], LinkBecomes(PRFAAS, PD, gbps * GBPS * slower)) for at_s, gbps in story.conditions
    ]


# Figures


def steps_of(seen: Seen) -> list[tuple[float, int, int]]:
    """When there was another split, and how many then prefill and decode."""
    found: list[tuple[float, int, int]] = []
    for sample in seen.samples:
        if not found or found[-1][1:] != (sample.num_prefill, sample.num_decode):
            found.append((sample.at_s, sample.num_prefill, sample.num_decode))
    return found


def duties_table(stories: Sequence[Done]) -> list[str]:
    """Steps of the split, and what clients waited for in the last quarter."""
    lines = [
        "| began with | | split, and seconds at which it was reached | TTFT mean in the last quarter, s | answered a second"
        " there, of the real deployment | failed |",
        "|---|---|---|---|---|---|",
    ]
    for done in stories:
        for label, seen in done.ends:
            first, *steps = steps_of(seen)
            told = ", ".join(f"{p}/{d} at {at_s:.0f}" for at_s, p, d in steps) or "none"
            from_s = 0.75 * done.until_s
            last = windows(seen.asked, [from_s, done.until_s])[0]
            rate_rps = last.num / (done.until_s - from_s) * done.time_scale
            lines.append(
                f"| {first[1]}/{first[2]} | {label} | {told} | {last.ttft_s_mean:.1f} | {rate_rps:.2f} |"
                f" {seen.num_failed} |"
            )
    return lines


def reached_s(samples: Sequence[Sample], tokens: float, band: float) -> float | None:
    """When the threshold came within so much of it, and stayed there."""
    last: float | None = None
    for sample in samples:
        threshold = sample.threshold_tokens
        is_near = threshold is not None and abs(threshold - tokens) <= band * tokens
        last = (sample.at_s if last is None else last) if is_near else None
    return last


def threshold_table(stories: Sequence[Done]) -> list[str]:
    lines = [
        f"| began with | | within {BAND:.0%} of the plan after, s | the same of the real deployment, s | after so many"
        " prompts | at the end | TTFT mean, s | offloaded | failed |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for done in stories:
        for label, seen in done.ends:
            at_s = reached_s(seen.samples, done.planned.threshold_tokens, BAND)
            num = next((s.num_lengths_seen for s in seen.samples if s.at_s == at_s), 0)
            whole = windows(seen.asked, [0.0, math.inf])[0]
            times = "never | never" if at_s is None else f"{at_s:.0f} | {at_s / done.time_scale:.0f}"
            lines.append(
                f"| {_tokens(seen.samples[0])} | {label} | {times} | {num} | {_tokens(seen.samples[-1])} |"
                f" {whole.ttft_s_mean:.2f} | {whole.offload_fraction:.0%} | {seen.num_failed} |"
            )
    return lines


def link_table(stories: Sequence[Done]) -> list[str]:
    lines = [
        "| link | | expected, Gbps | crossed, Gbps | solved threshold | offloaded | TTFT mean, s | waits, prompts | given up"
        " | failed |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for done in stories:
        edges_s = [0.0, *done.change_s, done.until_s]
        rates = ["100 Gbps", *(f"{gbps:g} Gbps" for _, gbps in done.story.conditions)]
        for number, rate in enumerate(rates):
            for label, seen in done.ends:
                cells = _phase(done, seen, edges_s[number], edges_s[number + 1])
                lines.append(f"| {rate if label == 'processes' else ''} | {label} | {' | '.join(cells)} |")
    return lines


def _phase(done: Done, seen: Seen, from_s: float, to_s: float) -> list[str]:
    """The figures of its second half, when what was before has gone; those given up and failed, of all of it."""
    middle_s = (from_s + to_s) / 2
    late = between(seen.samples, middle_s, to_s)
    window = windows(seen.asked, [middle_s, to_s])[0]
    came = [one for one in seen.asked if from_s <= one.arrival_s < to_s]
    slower = case_study_document(time_scale=done.time_scale)["emulation"]["bytes_scale"] / done.time_scale
    crossed = (late[-1].sent_bytes - late[0].sent_bytes) / (late[-1].at_s - late[0].at_s)
    thresholds = [sample.threshold_tokens for sample in late if sample.threshold_tokens is not None]
    return [
        f"{_mean([sample.link_bytes_per_s for sample in late]) / slower / GBPS:.0f}",
        f"{crossed / slower / GBPS:.1f}",
        f"{_mean(thresholds):,.0f}",
        f"{window.offload_fraction:.0%}",
        f"{window.ttft_s_mean:.2f}",
        f"{_mean([sum(sample.num_waiting.values()) for sample in late]):.1f}",
        str(sum(one.is_fallback for one in came)),
        str(sum(one.outcome == "error" for one in came)),
    ]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _tokens(sample: Sample) -> str:
    return "none" if sample.threshold_tokens is None else f"{sample.threshold_tokens:,}"


TABLES: Final[dict[str, Callable[[Sequence[Done]], list[str]]]] = {
    "duties": duties_table,
    "threshold": threshold_table,
    "link": link_table,
}


def written(page: str, name: str, lines: Sequence[str]) -> str:
    """The page with these lines between the marks of that name. Raises ValueError if it has none."""
    begin, end = f"<!-- {name}: generated -->", f"<!-- /{name} -->"
    before, found, rest = page.partition(begin)
    _, also, after = rest.partition(end)
    if not found or not also:
        raise ValueError(f"docs/benchmarks/adaptive.md has no lines `{begin}` and `{end}`; put them where the table stands")
    return "\n".join([f"{before}{begin}", *lines, f"{end}{after}"])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=list(STORIES), action="append")
    parser.add_argument("--time-scale", type=float, default=TIME_SCALE, help="seconds here for a real one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="a file for all samples and requests")
    parser.add_argument("--write", action="store_true", help="put tables and pictures into docs/")
    options = parser.parse_args()
    began_s, kept = time.perf_counter(), []
    for name in options.only or list(STORIES):
        stories = []
        for story in STORIES[name]:
            sys.stderr.write(f"{story.name}: {story.until_s * options.time_scale:.0f} s\n")
            stories.append(run(story, options.time_scale, options.seed))
            num_wrong = stories[-1].system.num_wrong
            if num_wrong:
                raise SystemExit(f"{story.name}: {num_wrong} parts of KVCache were not what they must be")
        kept += [done.to_json() for done in stories]
        lines = [*TABLES[name](stories), "", f"Took {sum(done.wall_s for done in stories):.0f} s."]
        print(f"\n## {name}\n\n" + "\n".join(lines), flush=True)
        if options.write:
            PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), name, lines), encoding="utf-8")
            _draw(name, stories)
    if options.json is not None:
        options.json.write_text(json.dumps(kept), encoding="utf-8")
    print(f"\nAll of it took {time.perf_counter() - began_s:.0f} s.")


def _draw(name: str, stories: Sequence[Done]) -> None:
    from benchmarks.case_study.adaptive_pictures import picture

    (IMAGES / f"adaptive-{name}.svg").write_text(picture(name, stories), encoding="utf-8")


if __name__ == "__main__":
    main()
