"""A trace in Mooncake's format through `prfaas bench e2e`, the gateway and emulated engines: every answer is the right
one."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prfaas.bench.e2e.options import E2eOptions
from prfaas.testing.emulated_answers import ExpectedAnswers, prompts_sent
from prfaas.testing.emulated_site import EmulatedSite, emulated_document

BLOCK_TOKENS = 512
NUM_CONVERSATIONS, NUM_TURNS = 6, 4
PROMPT_SEED = 3
#: Hangs end so.
PATIENCE_S = 500.0


@pytest.fixture(scope="module")
def site() -> Iterator[EmulatedSite]:
    """Two instances of each kind, so that what one of them holds is not all there is."""
    with EmulatedSite(emulated_document(num_prfaas=2, num_decode=2)) as site:
        yield site


def write_trace(path: Path) -> int:
    """Conversations that grow, all with one system prompt before them. Returns how many requests there are."""
    rng, ids = random.Random(5), iter(range(1, 10_000))
    rows: list[dict[str, Any]] = []
    for conversation in range(NUM_CONVERSATIONS):
        blocks, at_ms = [0], rng.randrange(1000)
        for _ in range(NUM_TURNS):
            whole = [next(ids) for _ in range(rng.randrange(1, 8))]
            length = BLOCK_TOKENS * (len(blocks) + len(whole)) + rng.randrange(1, BLOCK_TOKENS)
            row = {"timestamp": at_ms, "input_length": length, "output_length": rng.randrange(1, 70)}
            rows.append({**row, "hash_ids": [*blocks, *whole, next(ids)]})
            blocks += whole
            at_ms += rng.randrange(500, 2000)
        rows.append({"timestamp": 100 * conversation, "input_length": 40, "output_length": 5, "hash_ids": [next(ids)]})
    rows.sort(key=lambda row: int(row["timestamp"]))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return len(rows)


def test_every_answer_of_a_trace_is_right(site: EmulatedSite, tmp_path: Path) -> None:
    """All are complete, prompts are offloaded, prefilled here and cached, no part of any KVCache is wrong, and each
    answer's text is the one computed from its prompt alone."""
    trace, out = tmp_path / "trace.jsonl", tmp_path / "requests.jsonl"
    num_requests = write_trace(trace)
    argv = [
        "bench", "e2e", site.gateway, "--trace", str(trace), "--prompt-seed", str(PROMPT_SEED), "--warm-up", "0",
        "--requests", str(out), "--answers", "--json",
    ]  # fmt: skip
    ran = subprocess.run(
        [sys.executable, "-m", "prfaas", *argv], capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )
    assert ran.returncode == 0, ran.stderr
    (run,) = json.loads(ran.stdout)["runs"]
    assert (run["num_completed"], run["num_other_length"]) == (num_requests, 0), ran.stderr
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    routes = Counter(line["route"] for line in lines)
    assert min(routes["remote"], routes["pd_prefill"]) > 0, routes
    engines = [instance.engine_url for instance in site.topology.instances]
    assert sum(site.metric(url, "prfaas_emulated_wrong_parts_total") for url in engines) == 0
    assert sum(site.metric(url, "vllm:prefix_cache_hits_total") for url in engines) >= BLOCK_TOKENS
    expected = ExpectedAnswers(site.file)
    prompts = prompts_sent(E2eOptions(site.gateway, trace=trace), PROMPT_SEED)
    for line, prompt in zip(lines, prompts, strict=True):
        assert len(prompt) == line["input_tokens"]
        assert line["answer"] == expected.to(prompt, line["max_tokens"]), line


def test_answers_without_a_file_for_them_are_refused(tmp_path: Path) -> None:
    """Status 2, and what to write."""
    argv = ["bench", "e2e", "http://127.0.0.1:1", "--input-tokens", "5", "--rate", "1", "--answers"]
    ran = subprocess.run([sys.executable, "-m", "prfaas", *argv], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "--answers: they are written into the file of --requests; name it too" in ran.stderr
