"""aiperf as a client, from a Python environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.clients.figures import Exchange, Figures
from benchmarks.clients.tokenizer import NAME


class Aiperf:
    """`program`: the path of the command `aiperf`. `environment` is what `hub_cache` returned."""

    def __init__(self, program: str, environment: dict[str, str]) -> None:
        self._program = program
        self._environment = environment

    def version(self) -> str:
        return subprocess.run([self._program, "--version"], capture_output=True, text=True, check=True).stdout.strip()

    def run(self, url: str, model: str, out: Path, load: Sequence[str], *, level: str = "records") -> Figures:
        """`load`: its options that say what is sent. `level` raw keeps what `exchanges` reads. Raises
        CalledProcessError; its log is in `out`."""
        argv = [
            self._program, "profile", "-m", model, "--url", url, "--endpoint-type", "completions", "--streaming",
            "--tokenizer", NAME, "--extra-inputs", "ignore_eos:true", "--use-server-token-count", *load,
            "--export-level", level, "--artifact-dir", str(out), "--ui", "none", "--no-gpu-telemetry",
            "--no-server-metrics",
        ]  # fmt: skip
        out.mkdir(parents=True)
        with (out / "aiperf.out").open("w") as log:
            subprocess.run(argv, env={**os.environ, **self._environment}, stdout=log, stderr=log, check=True)
        return figures_of(json.loads((out / "profile_export_aiperf.json").read_text()))


def figures_of(told: dict[str, Any]) -> Figures:
    """Of its summary. Its percentiles are interpolated."""

    def value(name: str, stat: str = "avg") -> float:
        return float(told.get(name, {}).get(stat, "nan"))

    num_failed = sum(int(error["count"]) for error in told["error_summary"])
    return Figures(
        num_completed=round(value("request_count")), num_failed=num_failed, num_refused=0,
        ttft_ms_mean=value("time_to_first_token"), ttft_ms_p50=value("time_to_first_token", "p50"),
        ttft_ms_p99=value("time_to_first_token", "p99"), ttft_ms_sent_mean=value("time_to_first_token"),
        tpot_ms_mean=value("inter_token_latency"),
        requests_per_s=value("request_throughput"), output_tokens_per_s=value("output_token_throughput"),
    )  # fmt: skip


def exchanges(out: Path) -> Iterator[Exchange]:
    """Those of a run with level raw that did not fail, in no order."""
    with (out / "profile_export_raw.jsonl").open() as lines:
        for line in lines:
            record = json.loads(line)
            if record.get("error"):
                continue
            payload = record["payload"]
            yield Exchange(payload["prompt"], payload["max_tokens"], "".join(_texts(record["responses"])))


def _texts(responses: list[dict[str, Any]]) -> Iterator[str]:
    for response in responses:
        for packet in response["packets"]:
            if packet["name"] == "data" and packet["value"] != "[DONE]":
                for choice in json.loads(packet["value"])["choices"]:
                    yield choice["text"]
