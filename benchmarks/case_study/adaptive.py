"""`python -m benchmarks.case_study.adaptive`: what moves in the scheduler, on processes beside the simulator.

Three runs of the paper's case study, whose engines and link are emulated on this machine: duties from a wrong split, a
threshold from a wrong start, a link that falls to a tenth and comes back. Each is simulated too, with the same requests
and in the seconds of the served deployment. Prints the tables of docs/benchmarks/adaptive.md; `--write` puts them into
that page, and draws docs/images/adaptive-*.svg. `--json` keeps every sample and request, and `--from` tells such a file
again.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

from benchmarks.case_study.adaptive_samples import Done, Story
from benchmarks.case_study.adaptive_served import serve
from benchmarks.case_study.adaptive_simulated import simulate
from benchmarks.case_study.adaptive_tables import GBPS, TABLES, WORDS
from prfaas.bench.e2e.options import E2eOptions
from prfaas.bench.e2e.plan import Plan, plan_of
from prfaas.core.planning.solution import Solution
from prfaas.core.planning.solve import solve
from prfaas.demo.case_study import PD, PRFAAS, case_study_document
from prfaas.scenario.build import build_scenario
from prfaas.sim.conditions import LinkBecomes

DOCS: Final = Path(__file__).parents[2] / "docs"
PAGE: Final = DOCS / "benchmarks" / "adaptive.md"
IMAGES: Final = DOCS / "images"
TIME_SCALE: Final = 0.5
SAMPLE_EVERY_S: Final = 1.0
#: After the last request was sent, of the real deployment: an answer takes 26 s there. What has queued before a wrong
#: split is not waited for.
DRAIN_S: Final = 40.0
#: What a wrong file says of the logarithm of its prompts' lengths, for a planned threshold of about so many tokens.
WRONG_MU: Final = {4_000: 8.37, 61_000: 12.0}


STORIES: Final[dict[str, tuple[Story, ...]]] = {
    "duties": (
        Story("duties 7/1", "begins with 7 that prefill and 1 that decodes", 0.85, 1240.0, 7, is_convertible=True),
        Story("duties 1/7", "begins with 1 that prefills and 7 that decode", 0.85, 420.0, 1, is_convertible=True),
    ),
    "threshold": tuple(
        Story(f"threshold {tokens}", f"begins with about {tokens:,} tokens", 0.8, 100.0, mu=mu, window_s=20.0)
        for tokens, mu in WRONG_MU.items()
    ),
    "link": (
        Story("link", "100 Gbps, a tenth of it, and 100 Gbps again", 0.6, 330.0,
              conditions=((110.0, 10.0), (220.0, 100.0)), window_s=22.0),
    ),
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
    sys.stderr.write(f"{story.name}: {story.until_s * time_scale:.0f} s\n")
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
            "end_s": until_s + (0.0 if story.is_convertible else DRAIN_S * time_scale), "every_s": SAMPLE_EVERY_S,
        }  # fmt: skip
        simulated = simulate(file, plan, **timed)
    # Ports that were free before the simulation may be taken now.
    system = serve(document_of(story, time_scale), plan, **timed)
    wall_s = time.perf_counter() - began_s
    return Done(story, time_scale, planned.threshold_tokens, system, simulated, wall_s)


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


def written(page: str, name: str, lines: Sequence[str]) -> str:
    """The page with these lines between the marks of that name. Raises ValueError if it has none."""
    begin, end = f"<!-- {name}: generated -->", f"<!-- /{name} -->"
    before, found, rest = page.partition(begin)
    _, also, after = rest.partition(end)
    if not found or not also:
        raise ValueError(f"{PAGE.name} has no lines `{begin}` and `{end}`; put them where the table stands")
    return "\n".join([f"{before}{begin}", *lines, f"{end}{after}"])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=list(STORIES), action="append")
    parser.add_argument("--time-scale", type=float, default=TIME_SCALE, help="seconds here for a real one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="a file for all samples and requests")
    parser.add_argument("--from", dest="kept", type=Path, help="such a file: tell it, and run nothing")
    parser.add_argument("--write", action="store_true", help="put tables and pictures into docs/")
    options = parser.parse_args()
    began_s = time.perf_counter()
    before = [] if options.kept is None else msgspec.json.decode(options.kept.read_bytes(), type=list[Done])
    kept: list[Done] = []
    for name in options.only or list(STORIES):
        names = [story.name for story in STORIES[name]]
        stories = [done for done in before if done.story.name in names]
        if options.kept is None:
            stories = [run(story, options.time_scale, options.seed) for story in STORIES[name]]
        if stories:
            kept += stories
            _tell(name, stories, is_written=options.write)
    if options.json is not None:
        options.json.write_bytes(msgspec.json.encode(kept))
    print(f"\nAll of it took {time.perf_counter() - began_s:.0f} s.")


def _tell(name: str, stories: Sequence[Done], *, is_written: bool) -> None:
    late_ms = 1e3 * max(done.system.late_s_max for done in stories)
    took = f"Took {sum(done.wall_s for done in stories):.0f} s."
    late = f" Requests were sent up to {late_ms:.0f} ms late." if late_ms else ""
    lines = [*TABLES[name](stories), "", took + late]
    print(f"\n## {name}\n\n" + "\n".join(lines), flush=True)
    if is_written:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), name, lines), encoding="utf-8")
        _draw(name, stories)
    for done in stories:
        if done.system.num_wrong:
            raise SystemExit(f"{done.story.name}: {done.system.num_wrong} parts of KVCache were not what they must be")


def _draw(name: str, stories: Sequence[Done]) -> None:
    from benchmarks.case_study.adaptive_pictures import picture

    about = " ".join(WORDS[name](done) for done in stories)
    (IMAGES / f"adaptive-{name}.svg").write_text(picture(name, stories, about), encoding="utf-8")


if __name__ == "__main__":
    main()
