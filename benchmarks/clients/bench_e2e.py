"""`prfaas bench e2e` as a client."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.clients.figures import Exchange, Figures
from prfaas.bench.e2e.options import E2eOptions
from prfaas.testing.emulated_answers import prompts_sent


def run(url: str, out: Path, load: Sequence[str]) -> Figures:
    """`load`: its options that say what is sent. Leaves run.json and requests.jsonl in `out`. Raises
    CalledProcessError."""
    out.mkdir(parents=True)
    argv = [
        sys.executable, "-m", "prfaas", "bench", "e2e", url, *load, "--warm-up", "0", "--json", "--answers",
        "--requests", str(out / "requests.jsonl"),
    ]  # fmt: skip
    with (out / "run.json").open("w") as told, (out / "stderr.txt").open("w") as log:
        subprocess.run(argv, stdout=told, stderr=log, check=True)
    return figures_of(run_of(out), lines_of(out))


def run_of(out: Path) -> dict[str, Any]:
    """The JSON object of the only run."""
    return dict(json.loads((out / "run.json").read_text())["runs"][0])


def lines_of(out: Path) -> list[dict[str, Any]]:
    """One for each request."""
    return [json.loads(line) for line in (out / "requests.jsonl").read_text().splitlines()]


def figures_of(run: dict[str, Any], lines: list[dict[str, Any]]) -> Figures:
    """Rates are as other tools count them: whole answers over the time from the first request to the last token."""
    answered = [line for line in lines if line["outcome"] == "ok"]
    span_s = max(line["end_s"] for line in answered) - min(line["sent_s"] for line in lines)
    return Figures(
        num_completed=run["num_completed"], num_failed=run["num_failed"], num_refused=run["num_refused"],
        ttft_ms_mean=1e3 * run["ttft_s_mean"], ttft_ms_p50=1e3 * run["ttft_s_p50"],
        ttft_ms_p99=1e3 * run["ttft_s_p99"],
        ttft_ms_sent_mean=1e3 * sum(line["first_token_s"] - line["sent_s"] for line in answered) / len(answered),
        tpot_ms_mean=1e3 * run["tpot_s_mean"],
        requests_per_s=len(answered) / span_s,
        output_tokens_per_s=sum(line["output_tokens"] for line in answered) / span_s,
    )  # fmt: skip


def exchanges(out: Path, options: E2eOptions) -> Iterator[Exchange]:
    """`options` are those of the run. Prompts are made again from the run's seed."""
    prompts = prompts_sent(options, run_of(out)["prompt_seed"])
    for line, prompt in zip(lines_of(out), prompts, strict=True):
        if line["outcome"] == "ok":
            yield Exchange(prompt, line["max_tokens"], line["answer"])
