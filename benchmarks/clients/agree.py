"""Whether `prfaas bench e2e`, aiperf and guidellm tell the same of the same server under the same load.

    python -m benchmarks.clients.agree [--aiperf PATH] [--guidellm PATH] [--rounds 5] [--num-requests 200] [--rate 5]

All replay one trace, made here: prompts of 500 to 1,000 tokens, answers of 32 to 64, at times of a Poisson process. The
server is a gateway with emulated engines, at a fifth of the time of the case study's. Clients run by turns, in another
order in each round, with prompts that no earlier run has sent. PATH is the command of a Python environment with aiperf
0.13.0 or guidellm 0.8.1; a client that is not given is skipped, and the output says so.

Prints a Markdown table: for each figure the median over the rounds, in parentheses the least and the greatest, and the
ratio to ours. The spread between rounds of one client is the noise in which the others must lie. Status 1 if the
gateway did not answer every request whole, or an answer is not the one that its prompt must have.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.clients import aiperf, bench_e2e, guidellm
from benchmarks.clients.figures import Exchange, Figures
from benchmarks.clients.tokenizer import hub_cache
from prfaas.bench.e2e.options import E2eOptions
from prfaas.core.planning.trace import MOONCAKE_BLOCK_TOKENS
from prfaas.testing.emulated_answers import ExpectedAnswers
from prfaas.testing.emulated_site import MODEL_NAME, EmulatedSite, emulated_document

OURS: Final = "prfaas bench e2e"
_TIME_SCALE: Final = 0.2
_ROWS: Final[tuple[tuple[str, Callable[[Figures], float], str], ...]] = (
    ("TTFT mean, ms", lambda f: f.ttft_ms_mean, ".1f"),
    ("TTFT mean, from when it was sent, ms", lambda f: f.ttft_ms_sent_mean, ".1f"),
    ("TTFT p50, ms", lambda f: f.ttft_ms_p50, ".1f"),
    ("TTFT p99, ms", lambda f: f.ttft_ms_p99, ".1f"),
    ("TPOT mean, ms", lambda f: f.tpot_ms_mean, ".3f"),
    ("answered requests/s", lambda f: f.requests_per_s, ".3f"),
    ("answered tokens/s", lambda f: f.output_tokens_per_s, ".1f"),
)

#: Sends a trace to a server, and leaves its files in a folder.
Client = Callable[[EmulatedSite, Path, Path], tuple[Figures, Iterable[Exchange]]]


@dataclass
class Rounds:
    """Of one client."""

    figures: list[Figures] = field(default_factory=list)
    #: Not answered whole, as the gateway counts; and not in the client's report of whole answers.
    num_unanswered: int = 0
    num_missing: int = 0
    wrong: list[str] = field(default_factory=list)


def main() -> int:
    """Measure and print."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="prfaas-agree-") as folder:
        clients = _clients(options, Path(folder))
        document = emulated_document(
            num_prefill=2, num_decode=2, emulation={"time_scale": _TIME_SCALE, "stream_interval": 1}
        )
        with EmulatedSite(document) as site:
            found = measure(clients, site, Path(folder), options)
    load_average = ", ".join(f"{load:.0f}" for load in os.getloadavg())
    print(f"{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()},"
          f" load average at the end {load_average}; {options.rounds} rounds of {options.num_requests} requests at"
          f" {options.rate:g} a second\n")  # fmt: skip
    print(table(found))
    for name, given in (("aiperf", options.aiperf), ("guidellm", options.guidellm)):
        if given is None:
            print(f"\n{name}: skipped, no --{name}")
    for name, rounds in found.items():
        print(f"\n{name}: {rounds.num_unanswered} requests without a whole answer at the gateway, {rounds.num_missing}"
              f" not in the client's report, {len(rounds.wrong)} wrong answers")  # fmt: skip
        for told in rounds.wrong[:5]:
            print(f"  {told}")
    return 1 if any(rounds.num_unanswered or rounds.wrong for rounds in found.values()) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--aiperf", help="path of the command")
    parser.add_argument("--guidellm", help="path of the command")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--num-requests", type=int, default=200)
    parser.add_argument("--rate", type=float, default=5.0, help="requests a second")
    return parser.parse_args()


def _clients(options: argparse.Namespace, folder: Path) -> dict[str, Client]:
    found: dict[str, Client] = {OURS: _ours}
    environment = hub_cache(folder / "hub")
    if options.aiperf is not None:
        other = aiperf.Aiperf(options.aiperf, environment)

        def send(site: EmulatedSite, trace: Path, out: Path) -> tuple[Figures, Iterable[Exchange]]:
            load = ["--input-file", str(trace), "--custom-dataset-type", "mooncake_trace", "--fixed-schedule"]
            return other.run(site.gateway, MODEL_NAME, out, load, level="raw"), aiperf.exchanges(out)

        found[f"aiperf {other.version()}"] = send
    if options.guidellm is not None:
        third = guidellm.Guidellm(options.guidellm, environment)

        def send_too(site: EmulatedSite, trace: Path, out: Path) -> tuple[Figures, Iterable[Exchange]]:
            # Its clock counts seconds, a trace milliseconds.
            data = f"kind=mooncake,source.kind=json_file,source.path={trace},time_scale=0.001"
            load = ["--data", data, "--profile", "kind=replay,schedule_turn=timestamp",
                    "--seed", f"kind=static,value={random.randrange(1 << 30)}"]  # fmt: skip
            return third.run(site.gateway, MODEL_NAME, out, load), guidellm.exchanges(out)

        found[f"guidellm {third.version()}"] = send_too
    return found


def _ours(site: EmulatedSite, trace: Path, out: Path) -> tuple[Figures, Iterable[Exchange]]:
    figures = bench_e2e.run(site.gateway, out, ["--trace", str(trace)])
    return figures, bench_e2e.exchanges(out, E2eOptions(site.gateway, trace=trace))


def measure(
    clients: dict[str, Client], site: EmulatedSite, folder: Path, options: argparse.Namespace
) -> dict[str, Rounds]:
    """By turns; each round begins with another client."""
    found = {name: Rounds() for name in clients}
    expected = ExpectedAnswers(site.file)
    names = list(clients)
    for number in range(options.rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            out = folder / f"{number}-{names.index(name)}"
            # Other ids in each run: clients make a block's text of its id, and no cache shall know it.
            trace = folder / f"{out.name}.jsonl"
            write_trace(trace, options.num_requests, options.rate, first_id=1_000_000 * (1 + len(names) * number))
            before = _num_answered(site)
            figures, exchanges = clients[name](site, trace, out)
            site.wait_nothing_held()
            found[name].num_unanswered += options.num_requests - (_num_answered(site) - before)
            _take(found[name], figures, exchanges, expected, options.num_requests)
            sys.stderr.write(f"round {number + 1}, {name}: {figures}\n")
    return found


def _num_answered(site: EmulatedSite) -> int:
    return round(site.metric(site.gateway, "prfaas_requests_total", outcome="ok"))


def _take(
    rounds: Rounds, figures: Figures, exchanges: Iterable[Exchange], expected: ExpectedAnswers, num_requests: int
) -> None:
    rounds.figures.append(figures)
    rounds.num_missing += num_requests - figures.num_completed
    for exchange in exchanges:
        right = expected.to(exchange.prompt, exchange.num_tokens)
        if exchange.answer != right:
            rounds.wrong.append(f"{exchange.answer[:40]!r} in place of {right[:40]!r}")


def write_trace(path: Path, num_requests: int, rate_rps: float, first_id: int) -> None:
    """The same lengths and times whenever it is called."""
    rng, at_s, next_id, lines = random.Random(11), 0.0, first_id, []
    for _ in range(num_requests):
        length = rng.randrange(500, 1001)
        num_blocks = -(-length // MOONCAKE_BLOCK_TOKENS)
        row = {"timestamp": round(1e3 * at_s), "input_length": length, "output_length": rng.randrange(32, 65)}
        lines.append(json.dumps({**row, "hash_ids": list(range(next_id, next_id + num_blocks))}) + "\n")
        next_id += num_blocks
        at_s += rng.expovariate(rate_rps)
    path.write_text("".join(lines))


def table(found: dict[str, Rounds]) -> str:
    """Markdown."""
    lines = [f"| | {' | '.join(found)} |", f"|---|{'---:|' * len(found)}"]
    for name, value, form in _ROWS:
        ours = statistics.median(value(each) for each in found[OURS].figures)
        cells = []
        for client, rounds in found.items():
            values = [value(each) for each in rounds.figures]
            median = statistics.median(values)
            ratio = "" if client == OURS else f", × {median / ours:.3f}"
            cells.append(f"{median:{form}} ({min(values):{form}} to {max(values):{form}}){ratio}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
