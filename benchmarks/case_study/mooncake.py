"""The beginning of Mooncake's conversation trace through the paper's case study on emulated engines, sent by `prfaas
bench e2e` and by aiperf.

    python -m benchmarks.case_study.mooncake --trace conversation_trace.jsonl [--aiperf PATH] [--minutes 10]
        [--scale-time 0.5] [--logs DIR]

The trace is not part of PrfaaS: github.com/kvcache-ai/Mooncake has it (FAST25-release/traces/conversation_trace.jsonl).
`--aiperf` is the command of a Python environment with aiperf 0.13.0. Whatever is not given is skipped, and the output
says so. Each client gets a deployment of its own, so that no cache holds what another one sent.

Prints a Markdown table. Status 1 if a request was not answered whole, if an engine found a wrong part of a KVCache, if
an answer is not the one that its prompt must have, or if gateway or nodes hold something afterwards.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.clients import aiperf, bench_e2e
from benchmarks.clients.figures import Exchange, Figures
from benchmarks.clients.tokenizer import hub_cache
from prfaas.bench.e2e.options import E2eOptions
from prfaas.demo.case_study import MODEL, case_study_document
from prfaas.testing.deployed import http
from prfaas.testing.emulated_answers import ExpectedAnswers
from prfaas.testing.emulated_site import EmulatedSite

_MAX_TOLD: Final = 5


@dataclass
class Outcome:
    """Of one client: its own figures, then what gateway and engines counted, and what answers were found wrong."""

    figures: Figures
    num_requests: int
    num_answers: int = 0
    wrong_answers: list[str] = field(default_factory=list)
    num_wrong_parts: int = 0
    num_loaded: int = 0
    num_not_loaded: int = 0
    requests: dict[str, int] = field(default_factory=dict)
    num_fallbacks: int = 0
    num_zero_byte: int = 0
    kv_bytes: float = 0.0
    cached_fraction: float = 0.0
    held: dict[str, float] = field(default_factory=dict)

    @property
    def is_right(self) -> bool:
        """Every request has its whole and right answer."""
        all_there = self.figures.num_completed == self.num_answers == self.num_requests
        return all_there and not self.wrong_answers and not self.num_wrong_parts and not self.held


@dataclass(frozen=True)
class Trace:
    """Of the beginning of the user's file. `scaled` has its times multiplied already, for clients that cannot."""

    file: Path
    scaled: Path
    num_requests: int
    num_too_long: int


def main() -> int:
    """Measure and print."""
    options = _options()
    if options.trace is None:
        print("skipped: no --trace; the text at the top of this file says where it is")
        return 0
    with tempfile.TemporaryDirectory(prefix="prfaas-mooncake-") as folder:
        outcomes = _measured(options, Path(folder))
    print(_table(outcomes, options.scale_time))
    if options.aiperf is None:
        print("\naiperf: skipped, no --aiperf")
    for name, outcome in outcomes.items():
        for told in outcome.wrong_answers[:_MAX_TOLD]:
            print(f"{name}: {told}")
    return 0 if all(outcome.is_right for outcome in outcomes.values()) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--aiperf", help="path of the command")
    parser.add_argument("--minutes", type=float, default=10.0, help="of the trace")
    parser.add_argument("--scale-time", type=float, default=0.5, help="of trace and engines: 0.5 is twice as fast")
    parser.add_argument("--logs", type=Path, help="keep logs and raw results there")
    return parser.parse_args()


def _measured(options: argparse.Namespace, folder: Path) -> dict[str, Outcome]:
    trace = cut_trace(options.trace, folder, options.minutes, options.scale_time)
    machine = f"{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}"
    print(f"{machine}, load average {os.getloadavg()[0]:.0f}", file=sys.stderr)
    print(f"first {options.minutes:g} minutes of {options.trace.name}: {trace.num_requests} requests,"
          f" {trace.num_too_long} of which do not fit the model and are left out\n")  # fmt: skip
    outcomes = {}

    def bench(site: EmulatedSite, out: Path) -> tuple[Figures, Iterable[Exchange]]:
        load = ["--trace", str(trace.file), "--scale-time", str(options.scale_time)]
        figures = bench_e2e.run(site.gateway, out, load)
        return figures, bench_e2e.exchanges(out, E2eOptions(site.gateway, trace=trace.file))

    outcomes["prfaas bench e2e"] = _outcome(bench, trace, options, folder / "bench")
    if options.aiperf is not None:
        client = aiperf.Aiperf(options.aiperf, hub_cache(folder / "hub"))

        def other(site: EmulatedSite, out: Path) -> tuple[Figures, Iterable[Exchange]]:
            load = ["--input-file", str(trace.scaled), "--custom-dataset-type", "mooncake_trace", "--fixed-schedule"]
            return client.run(site.gateway, MODEL, out, load, level="raw"), aiperf.exchanges(out)

        outcomes[f"aiperf {client.version()}"] = _outcome(other, trace, options, folder / "aiperf")
    return outcomes


def cut_trace(file: Path, folder: Path, minutes: float, scale: float) -> Trace:
    """The requests that come in the first minutes and fit the case study's model."""
    longest = case_study_document()["model"]["max_model_tokens"]
    rows = [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
    early = [row for row in rows if row["timestamp"] - rows[0]["timestamp"] < 60_000 * minutes]
    fitting = [row for row in early if row["input_length"] + row["output_length"] <= longest]
    cut, scaled = folder / "cut.jsonl", folder / "scaled.jsonl"
    cut.write_text("".join(json.dumps(row) + "\n" for row in fitting))
    faster = [{**row, "timestamp": round(row["timestamp"] * scale)} for row in fitting]
    scaled.write_text("".join(json.dumps(row) + "\n" for row in faster))
    return Trace(cut, scaled, len(fitting), len(early) - len(fitting))


def _outcome(
    client: Callable[[EmulatedSite, Path], tuple[Figures, Iterable[Exchange]]],
    trace: Trace,
    options: argparse.Namespace,
    out: Path,
) -> Outcome:
    with EmulatedSite(case_study_document(time_scale=options.scale_time)) as site:
        try:
            figures, exchanges = client(site, out)
            held = _held(site)
        finally:
            if options.logs is not None:
                shutil.copytree(site.directory / "logs", options.logs / out.name / "logs", dirs_exist_ok=True)
                if out.exists():
                    shutil.copytree(out, options.logs / out.name, dirs_exist_ok=True)
        outcome = Outcome(figures, trace.num_requests, held=held)
        _count(site, outcome)
        expected = ExpectedAnswers(site.file)
    for exchange in exchanges:
        outcome.num_answers += 1
        told = _wrong(expected, exchange)
        if told is not None:
            outcome.wrong_answers.append(told)
    return outcome


def _held(site: EmulatedSite) -> dict[str, float]:
    """What gateway and nodes do not give back, a minute after the last answer."""
    with contextlib.suppress(AssertionError):
        site.wait_nothing_held()
    return site.held()


def _wrong(expected: ExpectedAnswers, exchange: Exchange) -> str | None:
    right = expected.to(exchange.prompt, exchange.num_tokens)
    if exchange.answer == right:
        return None
    return (
        f"a prompt of {len(exchange.prompt)} tokens was answered {exchange.answer[:40]!r}, which must be {right[:40]!r}"
    )


def _count(site: EmulatedSite, outcome: Outcome) -> None:
    engines = [instance.engine_url for instance in site.topology.instances]

    def of_engines(name: str) -> float:
        return sum(site.metric(url, name) for url in engines)

    outcome.num_wrong_parts = site.num_wrong()
    outcome.num_loaded = round(of_engines("prfaas_emulated_landings_loaded_total"))
    outcome.num_not_loaded = round(of_engines("prfaas_emulated_landings_not_loaded_total"))
    outcome.requests = _requests(http(f"{site.gateway}/metrics")[0])
    outcome.num_fallbacks = round(site.metric(site.gateway, "prfaas_fallback_total"))
    outcome.num_zero_byte = round(site.metric(site.gateway, "prfaas_zero_byte_offloads_total"))
    outcome.kv_bytes = site.metric(site.gateway, "prfaas_kv_bytes_moved_total")
    hits = of_engines("vllm:prefix_cache_hits_total")
    outcome.cached_fraction = hits / of_engines("vllm:prefix_cache_queries_total")


def _requests(metrics: str) -> dict[str, int]:
    """The gateway's count of requests, by route and outcome."""
    found: dict[str, int] = {}
    for line in metrics.splitlines():
        if line.startswith("prfaas_requests_total{"):
            labels, value = line.removeprefix("prfaas_requests_total{").rsplit("} ", 1)
            names = dict(label.split("=") for label in labels.split(","))
            key = f"{names['route']} {names['outcome']}".replace('"', "")
            found[key] = round(float(value))
    return found


def _table(outcomes: dict[str, Outcome], scale: float) -> str:
    rows: list[tuple[str, Callable[[Outcome], Any]]] = [
        ("requests", lambda o: o.num_requests),
        ("answered whole, as the client says", lambda o: o.figures.num_completed),
        ("failed, refused", lambda o: f"{o.figures.num_failed}, {o.figures.num_refused}"),
        ("answers compared with the expected ones", lambda o: o.num_answers),
        ("wrong answers", lambda o: len(o.wrong_answers)),
        ("landings loaded, every byte compared", lambda o: o.num_loaded),
        ("wrong parts of KVCache", lambda o: o.num_wrong_parts),
        ("landings that could not be loaded", lambda o: o.num_not_loaded),
        ("held by gateway and nodes afterwards", lambda o: o.held or "nothing"),
        ("gateway: requests by route and outcome", lambda o: ", ".join(f"{n} {k}" for k, n in o.requests.items())),
        ("gateway: offloaded", lambda o: f"{_share(o):.1%}"),
        ("gateway: fallbacks, offloads without a byte", lambda o: f"{o.num_fallbacks}, {o.num_zero_byte}"),
        ("gateway: KVCache moved, MB", lambda o: f"{o.kv_bytes / 1e6:.0f}"),
        ("engines: prompt tokens that were cached", lambda o: f"{o.cached_fraction:.1%}"),
        ("TTFT mean, s", lambda o: f"{o.figures.ttft_ms_mean / 1e3:.3f}"),
        ("TTFT p50, p99, s", lambda o: f"{o.figures.ttft_ms_p50 / 1e3:.3f}, {o.figures.ttft_ms_p99 / 1e3:.3f}"),
        ("TPOT mean, ms", lambda o: f"{o.figures.tpot_ms_mean:.2f}"),
        ("answered requests/s", lambda o: f"{o.figures.requests_per_s:.2f}"),
        ("answered tokens/s", lambda o: f"{o.figures.output_tokens_per_s:,.0f}"),
        (f"TTFT mean in the profiles' time (÷ {scale:g}), s", lambda o: f"{o.figures.ttft_ms_mean / 1e3 / scale:.2f}"),
    ]  # fmt: skip
    lines = [f"| | {' | '.join(outcomes)} |", f"|---|{'---:|' * len(outcomes)}"]
    lines += [f"| {name} | {' | '.join(str(value(each)) for each in outcomes.values())} |" for name, value in rows]
    return "\n".join(lines)


def _share(outcome: Outcome) -> float:
    """Offloaded, of all that the gateway answered."""
    remote = sum(number for key, number in outcome.requests.items() if key.startswith("remote "))
    return remote / max(1, sum(outcome.requests.values()))


if __name__ == "__main__":
    sys.exit(main())
