"""`python -m benchmarks.case_study.soak`: the emulated case study for a long time at half of what it can serve.

Every ten seconds each process is looked at: its own memory, descriptors, threads, tasks, and what it holds of requests.
After a warm-up the growth of memory is fitted. Ends with status 1 if a process's memory grows by more than 1 MB in ten
minutes, if after the load anything is held, or more descriptors or tasks are there than before it, or if a request
failed. Of descriptors, threads and tasks a few more may be idle than before: fewer than one for fifty requests.

The warm-up must be longer than five minutes: for so long nodes remember how links were. Three tables fill up to a
bound, which would take hours at this load. Here they are small, so that they are full after the warm-up: stories of
requests, blocks on record, blocks in the engines' caches. Nodes' final records (at most 10,000 landings and 4,096
transfers, about 1 KB each) are as they are; their growth is in the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import uvloop

from prfaas.bench.e2e.sent import Sent
from prfaas.core.planning.solve import solve
from prfaas.demo.case_study import MODEL, case_study_document
from prfaas.deployment.units import parse_seconds
from prfaas.scenario.build import build_scenario
from prfaas.testing.emulated_site import EmulatedSite
from prfaas.testing.footprint import Footprint, footprints, grown
from prfaas.testing.sending import Phase, planned_in, send

HALF: Final = 0.5
SAMPLE_EVERY_S: Final = 10.0
WINDOW_S: Final = 600.0
MOST_GROWTH_BYTES: Final = 1_000_000
#: Connections that are kept for a while after the last request have been closed by then.
CALM_S: Final = 15.0
#: One descriptor, thread or task that is left behind by so many requests would be found.
REQUESTS_PER_LEAK: Final = 50
#: Fewer say nothing of five unknowns.
MIN_SAMPLES: Final = 12
STORIES: Final = 256
BLOCKS: Final = 2_048
BLOCK_TOKENS: Final = 128


@dataclass(slots=True)
class Track:
    """One process over time."""

    times_s: list[float] = field(default_factory=list)
    seen: list[Footprint] = field(default_factory=list)

    def growth_bytes(self, from_s: float, bodies: Sequence[int]) -> tuple[float, float]:
        """In ten minutes, and its standard error, of what was seen after `from_s`. What more or fewer requests hold at
        a moment is taken out: heaps are fitted by time, by what the process holds, and by `bodies`, the bytes of
        requests in flight at each of its samples. That one sample is like the one before is in the error."""
        rows = [
            (1.0, at_s, float(one.num_held), float(num_bytes), float(one.heap_bytes))
            for at_s, one, num_bytes in zip(self.times_s, self.seen, bodies, strict=False)
            if at_s >= from_s
        ]
        *causes, heaps = np.array(rows).T if len(rows) > MIN_SAMPLES else np.zeros((5, 1))
        # What never changes explains nothing, and would leave the rest without an answer.
        design = np.column_stack([causes[0], *(cause for cause in causes[1:] if np.ptp(cause) > 0)])
        if design.shape[1] < 2:
            return 0.0, math.inf
        fitted, *_ = np.linalg.lstsq(design, heaps, rcond=None)
        rest = heaps - design @ fitted
        spread = np.linalg.pinv(design.T @ design)[1, 1] * (rest @ rest) / (len(rest) - design.shape[1])
        alike = float(rest[1:] @ rest[:-1] / (rest @ rest)) if rest @ rest > 0 else 0.0
        error = math.sqrt(spread * (1 + max(0.0, alike)) / (1 - max(0.0, alike)))
        return WINDOW_S * float(fitted[1]), WINDOW_S * error


class Watch:
    """Samples in a thread of its own."""

    def __init__(self, site: EmulatedSite) -> None:
        self.tracks: dict[str, Track] = {}
        self._site = site
        self._began_s = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="soak-watch", daemon=True)
        self.defect: BaseException | None = None

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *ignored: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        number = 0
        while not self._over.wait(max(0.0, self._began_s + number * SAMPLE_EVERY_S - time.monotonic())):
            number += 1
            try:
                seen = footprints(self._site)
            except OSError as error:
                self.defect = error
                return
            for name, one in seen.items():
                track = self.tracks.setdefault(name, Track())
                track.times_s.append(time.monotonic() - self._began_s)
                track.seen.append(one)


def document(time_scale: float) -> dict[str, Any]:
    """The case study with small tables."""
    found = case_study_document(time_scale=time_scale)
    found["emulation"] |= {"block_tokens": BLOCK_TOKENS, "cache_tokens": BLOCKS * BLOCK_TOKENS}
    found["gateway"] |= {"stories": STORIES, "prefix_record_blocks": BLOCKS}
    return found


def tell(watch: Watch, warm_up_s: float) -> list[str]:
    """Prints the table; returns what is wrong."""
    print("\n| process | heap, MB: first, last | growth, MB in 10 min | descriptors | threads | tasks | held | kept |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    wrong = []
    bodies = [one.num_held for one in watch.tracks["gateway"].seen]
    for name, track in watch.tracks.items():
        growth, error = (value / 1e6 for value in track.growth_bytes(warm_up_s, bodies))
        after = [one for at_s, one in zip(track.times_s, track.seen, strict=True) if at_s >= warm_up_s] or track.seen
        heaps = f"{after[0].heap_bytes / 1e6:.1f}, {after[-1].heap_bytes / 1e6:.1f}"
        counts = " | ".join(
            _span([getattr(one, figure) for one in after])
            for figure in ("num_descriptors", "num_threads", "num_tasks", "num_held", "num_remembered")
        )
        print(f"| {name} | {heaps} | {growth:+.2f} ± {error:.2f} | {counts} |")
        if (growth - 2 * error) * 1e6 > MOST_GROWTH_BYTES:
            wrong.append(f"{name}: memory grows by {growth:.2f} MB in ten minutes")
        elif (growth + 2 * error) * 1e6 > MOST_GROWTH_BYTES:
            wrong.append(f"{name}: growth of {growth:.2f} ± {error:.2f} MB in ten minutes says nothing; run it longer")
    return wrong


def _span(numbers: Sequence[int]) -> str:
    least, most = min(numbers), max(numbers)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def soak(site: EmulatedSite, options: argparse.Namespace) -> tuple[list[str], dict[str, Track]]:
    """What is wrong, nothing if all is well; and what was seen."""
    planned_rps = solve(build_scenario(site.file)).system_rps
    # One request of each way first: connections and threads that are made once are there then.
    _send(site, [Phase(HALF * planned_rps, 10.0)], options.seed + 1_000)
    site.wait_nothing_held()
    time.sleep(CALM_S)
    before = footprints(site)
    rate = f"{HALF:g} of {planned_rps:.2f} requests/s"
    print(f"{rate} for {options.duration:g} s; the first {options.warm_up:g} s do not count", flush=True)
    with Watch(site) as watch:
        sent = _send(site, [Phase(HALF * planned_rps, options.duration)], options.seed)
    wrong = tell(watch, options.warm_up)
    if watch.defect is not None:
        wrong.append(f"a process could not be looked at: {watch.defect}")
    failed = [one for one in sent if not one.is_ok]
    print(f"\n{len(sent)} requests, {len(failed)} not answered; load average {os.getloadavg()[0]:.1f}")
    wrong += [f"request {one.request_id}: {one.failure} {one.detail}" for one in failed[:5]]
    return wrong + left_behind(site, before, len(sent)), watch.tracks


def write_samples(path: Path, tracks: dict[str, Track]) -> None:
    with path.open("w", encoding="utf-8") as stream:
        for name, track in tracks.items():
            for at_s, one in zip(track.times_s, track.seen, strict=True):
                stream.write(json.dumps({"process": name, "at_s": round(at_s, 1), **asdict(one)}) + "\n")


def left_behind(site: EmulatedSite, before: dict[str, Footprint], num_requests: int) -> list[str]:
    """What is held, or there are more of, a while after the last request."""
    spare = num_requests // REQUESTS_PER_LEAK
    site.wait_nothing_held()
    deadline_s = time.monotonic() + 4 * CALM_S
    time.sleep(CALM_S)
    while (more := grown(before, footprints(site), spare)) and time.monotonic() < deadline_s:
        time.sleep(1.0)
    return [f"{name}: {figures} (before, after)" for name, figures in more.items()]


def _send(site: EmulatedSite, phases: Sequence[Phase], seed: int) -> list[Sent]:
    requests = planned_in(site.file, phases, seed)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(send(site.gateway, MODEL, requests, int.from_bytes(os.urandom(4), "little")))


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--duration", type=parse_seconds, default=1800.0, help="such as 30min")
    parser.add_argument("--warm-up", type=parse_seconds, default=600.0, help="of it, not counted")
    parser.add_argument("--samples", type=Path, help="write every sample there, a line of JSON each")
    parser.add_argument("--time-scale", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with EmulatedSite(document(options.time_scale)) as site:
        wrong, tracks = soak(site, options)
    if options.samples is not None:
        write_samples(options.samples, tracks)
    print("\n".join(["MISS " + one for one in wrong] or ["ok   nothing grows and nothing is left"]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
