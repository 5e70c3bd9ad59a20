"""Where prompts repeat: the short form of `python -m benchmarks.scheduler.caches`."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from benchmarks.scheduler import caches
from prfaas.cli.main import app
from prfaas.core.cache import engine_cache
from prfaas.simulator.results import Results


@cache
def held(choice: str) -> Results:
    """Conversations over a link that is full."""
    return caches.simulated(("conversations over a link of 4 Gbps", 1, choice, ""), num_requests=900)


def test_over_a_full_link_the_rule_beats_who_looks_at_queues_or_prefixes_alone() -> None:
    """By more than a fifth of the mean time to the first token, and with the most answers a second."""
    ours = held("prfaas")
    assert ours.ttft_s_mean is not None
    for choice in ("least_load", "prefix_affinity"):
        other = held(choice)
        assert other.ttft_s_mean is not None
        assert ours.ttft_s_mean < 0.8 * other.ttft_s_mean
        assert ours.system_rps >= other.system_rps


def test_prefixes_that_move_help_over_a_full_link() -> None:
    """They are moved where nothing waits for it: more of the prompts is cached, and first tokens come sooner."""
    ours, moving = held("prfaas"), held("prfaas, prefixes move")
    assert ours.ttft_s_mean is not None
    assert moving.ttft_s_mean is not None
    assert moving.ttft_s_mean < ours.ttft_s_mean
    assert moving.cached_fraction > ours.cached_fraction


#: Qwen3-Next, whose KVCache is small, on two kinds of machines; its prompts are a few of what a small cache holds.
SMALL_CACHES = """\
model: {hf_config: config.json}
clusters:
  far: {role: prfaas, profile: fast.yaml, instances: 2}
  near: {role: pd, profile: slow.yaml, instances: 6}
links:
  - {from: far, to: near, bandwidth: 25Gbps, rtt: 30ms}
workload:
  input_tokens: {lognormal: {mu: 9.0, sigma: 1.0, min: 64, max: 100000}}
  output_tokens: 400
slo: {tpot: 25ms}
policy: {kind: prfaas}
"""
CONFIG = {
    "model_type": "qwen3_next", "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 16, "head_dim": 256,
    "num_key_value_heads": 2, "full_attention_interval": 4, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128,
    "linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_value_head_dim": 128, "dtype": "bfloat16",
}  # fmt: skip
SPEEDS = {"fast": [(1000, 0.08), (32_000, 1.1), (128_000, 6.0)], "slow": [(1000, 0.25), (32_000, 4.4)]}


def write_deployment(directory: Path) -> Path:
    for name, points in SPEEDS.items():
        table = [{"tokens": tokens, "seconds": seconds} for tokens, seconds in points]
        decode = [{"batch": 1, "step_s": 0.010}, {"batch": 32, "step_s": 0.025}]
        profile = {"profile": 1, "model": "m", "accelerator": name, "gpus_per_instance": 4, "source": "made up",
                   "prefill": {"table": table}, "decode": decode}  # fmt: skip
        (directory / f"{name}.yaml").write_text(yaml.safe_dump(profile))
    (directory / "config.json").write_text(json.dumps(CONFIG))
    file = directory / "small.yaml"
    file.write_text(SMALL_CACHES)
    return file


def recomputed(directory: Path) -> float:
    """Share of requests whose KVCache crossed in vain, with caches of 100,000 tokens under conversations."""
    file, out = write_deployment(directory), directory / "out.jsonl"
    options = ["--arrivals", "clients 30 think 4s turns 6", "--num-requests", "600", "--cache", "100000", "--json"]
    result = CliRunner().invoke(app, ["simulate", str(file), *options, "--requests", str(out)])
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    return sum(row["fallback_reason"] == "not_loaded" for row in rows) / len(rows)


def test_small_caches_are_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few prompts are sent without a prefix that the decode instance has thrown out; a record that does not learn has
    most of them computed twice."""
    learned = recomputed(tmp_path)
    monkeypatch.setattr(engine_cache, "_KEPT_LEFT", math.inf)
    monkeypatch.setattr(engine_cache, "_KEPT_GROWS", math.inf)
    assert learned < 0.05
    assert recomputed(tmp_path) > 0.2
