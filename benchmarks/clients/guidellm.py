"""guidellm as a client, from a Python environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.clients.figures import Exchange, Figures
from benchmarks.clients.tokenizer import NAME


class Guidellm:
    """`program`: the path of the command `guidellm`. `environment` is what `hub_cache` returned."""

    def __init__(self, program: str, environment: dict[str, str]) -> None:
        self._program = program
        self._environment = environment

    def version(self) -> str:
        argv = [self._program, "--version"]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()[-1]

    def run(self, url: str, model: str, out: Path, load: Sequence[str]) -> Figures:
        """`load`: its options that say what is sent. Raises CalledProcessError; what it printed is in `out`."""
        backend = f"kind=openai_http,target={url},model={model},request_format=/v1/completions"
        argv = [
            self._program, "run", "--backend", backend,
            "--tokenizer", f"kind=hf_auto,model={NAME}", *load,
            "--output", f"kind=json,path={out / 'guidellm.json'}", "--disable-console-interactive",
        ]  # fmt: skip
        out.mkdir(parents=True)
        with (out / "guidellm.out").open("w") as log:
            subprocess.run(argv, env={**os.environ, **self._environment}, stdout=log, stderr=log, check=True)
        return figures_of(_benchmark(out))


def _benchmark(out: Path) -> dict[str, Any]:
    (benchmark,) = json.loads((out / "guidellm.json").read_text())["benchmarks"]
    return dict(benchmark)


def figures_of(benchmark: dict[str, Any]) -> Figures:
    """Of its only benchmark. Rates are counted here from its record of each request, as for the other clients: its own
    are means over pieces of time. What it calls inter-token latency is the TPOT of others."""
    metrics, answered = benchmark["metrics"], benchmark["requests"]["successful"]
    ttft, tpot = (metrics[name]["successful"] for name in ("time_to_first_token_ms", "inter_token_latency_ms"))
    timings = [request["info"]["timings"] for request in answered]
    span_s = max(t["last_token_iteration"] for t in timings) - min(t["request_start"] for t in timings)
    totals = metrics["request_totals"]
    return Figures(
        num_completed=totals["successful"], num_failed=totals["errored"] + totals["incomplete"], num_refused=0,
        ttft_ms_mean=ttft["mean"], ttft_ms_p50=ttft["percentiles"]["p50"], ttft_ms_p99=ttft["percentiles"]["p99"],
        ttft_ms_sent_mean=ttft["mean"], tpot_ms_mean=tpot["mean"], requests_per_s=len(answered) / span_s,
        output_tokens_per_s=sum(request["output_metrics"]["text_tokens"] for request in answered) / span_s,
    )  # fmt: skip


def exchanges(out: Path) -> Iterator[Exchange]:
    """In no order."""
    for request in _benchmark(out)["requests"]["successful"]:
        body = json.loads(request["request_args"])["body"]
        yield Exchange(body["prompt"], body["max_tokens"], request["output"])
